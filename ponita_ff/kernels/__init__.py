"""C++ kernels for the CPU, compiled where they run, and their use from torch."""
