"""The network that the paper describes, each equation in one place; no units, no files, nothing differentiates."""
