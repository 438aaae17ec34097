"""The network through the C++ kernels: predictions, and gradients with respect to weights for training."""
