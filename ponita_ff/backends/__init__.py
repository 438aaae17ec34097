"""How a prediction is computed: eagerly, compiled by torch, ahead of time, or by the native kernels."""
