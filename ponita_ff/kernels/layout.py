"""How networks lie in memory for the C++ kernels: padded to whole vectors, matrices in panels."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ponita_ff.kernels.build import KernelError, load

__all__ = ["LAYER_WEIGHTS", "SUFFIX", "Kernels", "Shape", "Widths", "check_layers", "pack", "pad", "round_up"]

#: What the names of the kernels for a dtype end in.
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


#: A layer's weights but for its radial functions, in the order in which both kernels take them.
LAYER_WEIGHTS = (
    "fibre",
    "fibre_adjoint",
    "own",
    "bias",
    "expand",
    "expand_bias",
    "contract",
    "contract_bias",
    "contract_adjoint",
    "expand_adjoint",
    "readout",
)


class Shape(ctypes.Structure):
    """``Shape`` of network.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "num_ori",
                "ori_stride",
                "degrees",
                "channels",
                "stride",
                "hidden",
                "num_layers",
                "has_fibre",
            )
        ),
        ("norm_eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("orientations", "weights")),
    )


#: network.h's, which holds pointers for so many and no more.
_MAX_LAYERS = 64


def check_layers(number: int) -> None:
    """Refuse a network that the kernels have no room for.

    Raises:
        KernelError: For more than 64 layers.
    """
    if number > _MAX_LAYERS:
        raise KernelError(f"the native kernels take up to {_MAX_LAYERS} layers, not {number}")


class Kernels:
    """The functions of one library for one dtype.

    Args:
        name: Of the source file, without suffix.
        dtype: float32 or float64.

    Raises:
        KernelError: For another dtype, or where the library cannot be had.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        if dtype not in SUFFIX:
            raise KernelError(f"the native kernels compute in float32 and float64, not {dtype}")
        self._library, self._suffix = load(name), SUFFIX[dtype]
        #: Elements of a vector.
        self.width = int(self.function("vector_width", ctypes.c_int64)())

    def function(self, name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
        """The function ``<name>_<dtype>``, told what it takes and gives back."""
        function = getattr(self._library, f"{name}_{self._suffix}")
        function.restype, function.argtypes = result, arguments
        return function


class Widths(NamedTuple):
    """Channels, hidden width and orientations, filled up to whole vectors."""

    stride: int
    hidden: int
    ori_stride: int

    @classmethod
    def of(cls, channels: int, widening: int, num_ori: int, width: int) -> Widths:
        """For a machine whose vectors have ``width`` elements."""
        return cls(round_up(channels, 2 * width), round_up(channels * widening, 2 * width), round_up(num_ori, width))


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


def pad(tensor: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """The tensor with zeros behind: the last axis up to ``columns``, and the one before up to ``rows``."""
    below = 0 if rows is None else rows - tensor.shape[-2]
    right = columns - tensor.shape[-1]
    return functional.pad(tensor, (0, right, 0, below) if below else (0, right)) if below or right else tensor


def pack(matrix: Tensor, width: int) -> Tensor:
    """Matrices (..., depth, columns) in panels of two vectors' columns, (..., columns / 2 width, depth, 2 width)."""
    return matrix.unflatten(-1, (-1, 2 * width)).transpose(-2, -3).contiguous()
