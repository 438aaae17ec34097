"""Atoms as a graph: lattices, neighbour lists on the host and on the device, batches."""
