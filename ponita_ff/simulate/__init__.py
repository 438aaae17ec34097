"""Uses of a potential: molecular dynamics, relaxation, predictions of many structures, with their files and plots."""
