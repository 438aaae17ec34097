"""How weights lie in memory for the C++ kernels: padded to whole vectors, matrices in panels (see network.h)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

__all__ = ["Widths", "pack", "pad", "round_up"]


class Widths(NamedTuple):
    """Channels, hidden units and orientations, rounded up to whole vectors.

    Attributes:
        stride: Channels.
        hidden: Hidden units of a block.
        ori_stride: Orientations.
    """

    stride: int
    hidden: int
    ori_stride: int

    @classmethod
    def of(cls, channels: int, widening: int, num_ori: int, width: int) -> Widths:
        """For vectors of ``width`` elements."""
        return cls(round_up(channels, 2 * width), round_up(channels * widening, 2 * width), round_up(num_ori, width))


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


def pad(tensor: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """The tensor with zeros appended.

    Args:
        tensor: Shape (..., r, c), or (c,) without ``rows``.
        columns: Size of the last axis afterwards.
        rows: Size of the axis before it afterwards; None: as it is.
    """
    below = 0 if rows is None else rows - tensor.shape[-2]
    right = columns - tensor.shape[-1]
    return functional.pad(tensor, (0, right, 0, below) if below else (0, right)) if below or right else tensor


def pack(matrix: Tensor, width: int) -> Tensor:
    """Matrices in panels of two vectors' columns.

    Args:
        matrix: Shape (..., depth, columns), columns a multiple of 2 ``width``.
        width: Elements of a vector.

    Returns:
        Shape (..., columns / (2 width), depth, 2 width).
    """
    return matrix.unflatten(-1, (-1, 2 * width)).transpose(-2, -3).contiguous()
