"""GELU computed together with its derivative: both need the same exponential and error function."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.loader import SUFFIX, load
from ponita_ff.kernels.threads import number_of_threads

__all__ = ["gelu"]


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) with the exact normal distribution Φ (arXiv:1606.08415), differentiable any number of times.

    On the CPU a C++ kernel, which agrees with torch's own within rounding; elsewhere torch's own.

    Args:
        x: Any shape.

    Returns:
        The shape of ``x``.
    """
    if x.device.type != "cpu" or x.dtype not in SUFFIX or _library() is None:
        return torch.nn.functional.gelu(x)
    value: Tensor = _Gelu.apply(x)[0]
    return value


class _Gelu(torch.autograd.Function):
    """GELU and its derivative; the derivative is kept for the backward pass and is itself differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = _gelu(x)
        ctx.save_for_backward(x, derivative)
        ctx.set_materialize_grads(False)
        return value, derivative

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_derivative: Tensor | None) -> Tensor | None:
        x, derivative = ctx.saved_tensors
        gradient = None if grad_value is None else grad_value * derivative
        if grad_derivative is None:
            return gradient
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        second = grad_derivative * density * (2.0 - x.square())
        return second if gradient is None else gradient + second


@torch.library.custom_op("ponita_ff::gelu", mutates_args=())
def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    library = _library()
    if library is None:
        raise RuntimeError("ponita_ff::gelu was compiled on a machine with native kernels, and this one has none")
    x = x.contiguous()
    value, derivative = torch.empty_like(x), torch.empty_like(x)
    function = getattr(library, f"gelu_{SUFFIX[x.dtype]}")
    function(x.numel(), number_of_threads(), x.data_ptr(), value.data_ptr(), derivative.data_ptr())
    return value, derivative


@_gelu.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be had (messages.py logs it)."""
    try:
        library = load("activation")
    except KernelError:
        return None
    for suffix in SUFFIX.values():
        function = getattr(library, f"gelu_{suffix}")
        function.restype = None
        function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 3
    return library
