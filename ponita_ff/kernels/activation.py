"""GELU whose derivative is worked out beside it: the two share an exponential and an error function."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from ponita_ff.kernels.build import KernelError, load

__all__ = ["gelu"]

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) with the exact normal distribution Φ (arXiv:1606.08415), differentiable any number of times.

    On the CPU a C++ kernel, within rounding of torch's own; torch's own elsewhere.
    """
    if x.device.type != "cpu" or x.dtype not in _SUFFIX or _library() is None:
        return torch.nn.functional.gelu(x)
    value: Tensor = _Gelu.apply(x)[0]
    return value


class _Gelu(torch.autograd.Function):
    """GELU and its derivative; the derivative is kept for the way back and is itself differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = _gelu(x)
        ctx.save_for_backward(x, slope)
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx: Any, of_value: Tensor | None, of_slope: Tensor | None) -> Tensor | None:
        x, slope = ctx.saved_tensors
        gradient = None if of_value is None else of_value * slope
        if of_slope is None:
            return gradient
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        curved = of_slope * density * (2.0 - x.square())
        return curved if gradient is None else gradient + curved


@torch.library.custom_op("ponita_ff::gelu", mutates_args=())
def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    library = _library()
    if library is None:
        raise RuntimeError("ponita_ff::gelu was compiled where there were kernels, and now there are none")
    x = x.contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x)
    function = getattr(library, f"gelu_{_SUFFIX[x.dtype]}")
    function(x.numel(), torch.get_num_threads(), x.data_ptr(), value.data_ptr(), slope.data_ptr())
    return value, slope


@_gelu.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be had (the messages' own library says so aloud)."""
    try:
        library = load("activation")
    except KernelError:
        return None
    for suffix in _SUFFIX.values():
        function = getattr(library, f"gelu_{suffix}")
        function.restype = None
        function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 3
    return library
