"""The authors' network, number for number, and their files."""
