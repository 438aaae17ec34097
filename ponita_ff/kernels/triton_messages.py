"""The two operators of messages.py in Triton, for GPUs: every sum is a gather over the table of neighbours.

One program computes a block of orientations × channels of one atom (:func:`sum_messages`), or both slopes of one edge
(:func:`edge_slopes`). Nothing of the size edges × orientations × channels is written, nothing is added atomically, and
the order of every sum is fixed: the same bits in every run. Products and sums are in the features' dtype, float32 or
float64; TF32 is never used here.

Imported only where Triton is installed. With ``TRITON_INTERPRET=1`` set before the import the same code runs on the
CPU, slowly, which is what the tests do.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DTYPES", "edge_slopes", "sum_messages"]

#: What the kernels compute in.
DTYPES = (torch.float32, torch.float64)

#: Most orientations and channels in a block of a sum. With three degrees one warp then needs 96 registers a thread, 168
#: for two products at once (compiled for compute capability 9.0); 16 × 64 in one warp does not fit into 255.
_SUM_BLOCK = (4, 64)

#: Orientations × channels up to which one program computes both slopes of an edge; beyond, blocks of so many along
#: either axis.
_LARGEST_BLOCK, _SLOPES_BLOCK = 8192, 64

#: a · b + c in one rounding: Triton asks for the choice.
_FUSED = {"enable_fp_fusion": True}

#: Slots that a program works on at a time: their loads are under way together.
_UNROLL = 4


# What is not used is neither read nor multiplied: its mask is empty, because sizes are multiplied by 0. Helpers are
# written out, since a call costs the interpreter ten times a kernel's own work.


@triton.jit
def _sum(
    angular,
    radial,
    angular2,
    radial2,
    features,
    neighbours,
    reverse,
    active,
    out,
    slots,
    orientations,
    channels,
    DEGREES: tl.constexpr,
    PAIR: tl.constexpr,
    ADJOINT: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.full((BLOCK_O, BLOCK_C), 0.0, features.dtype.element_ty)
    for first in range(0, slots, UNROLL):
        for step in tl.static_range(UNROLL):
            edge = atom * slots + first + step
            used = tl.load(active + edge, first + step < slots, other=0).to(tl.int32)
            sender = tl.load(neighbours + edge, used != 0, other=0)
            if ADJOINT:
                edge = sender * slots + tl.load(reverse + edge, used != 0, other=0)
            in_o, in_c = o < orientations * used, c < channels * used
            kernel = tl.full((BLOCK_O, BLOCK_C), 0.0, features.dtype.element_ty)
            for degree in tl.static_range(DEGREES):
                row = edge * DEGREES + degree
                a = tl.load(angular + row * orientations + o, in_o, other=0.0)
                r = tl.load(radial + row * channels + c, in_c, other=0.0)
                kernel += a[:, None] * r[None, :]
                if PAIR:
                    a = tl.load(angular2 + row * orientations + o, in_o, other=0.0)
                    r = tl.load(radial2 + row * channels + c, in_c, other=0.0)
                    kernel += a[:, None] * r[None, :]
            places = (sender * orientations + o[:, None]) * channels + c[None, :]
            total += kernel * tl.load(features + places, in_o[:, None] & in_c[None, :], other=0.0)
    places = (atom * orientations + o[:, None]) * channels + c[None, :]
    tl.store(out + places, total, (o < orientations)[:, None] & (c < channels)[None, :])


@triton.jit
def _slopes(
    angular,
    radial,
    features,
    receivers,
    neighbours,
    active,
    angular_slopes,
    radial_slopes,
    slots,
    orientations,
    channels,
    DEGREES: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """∂Q/∂A and ∂Q/∂R of an edge, where one block holds all orientations and channels."""
    edge = tl.program_id(0).to(tl.int64)
    o, c = tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_C)
    used = tl.load(active + edge).to(tl.int32)
    sender = tl.load(neighbours + edge, used != 0, other=0)
    in_o, in_c = o < orientations * used, c < channels * used
    mask = in_o[:, None] & in_c[None, :]
    product = tl.load(features + (sender * orientations + o[:, None]) * channels + c[None, :], mask, other=0.0)
    places = (edge // slots * orientations + o[:, None]) * channels + c[None, :]
    product *= tl.load(receivers + places, mask, other=0.0)
    for degree in tl.static_range(DEGREES):
        row = edge * DEGREES + degree
        a = tl.load(angular + row * orientations + o, in_o, other=0.0)
        r = tl.load(radial + row * channels + c, in_c, other=0.0)
        tl.store(angular_slopes + row * orientations + o, tl.sum(product * r[None, :], axis=1), o < orientations)
        tl.store(radial_slopes + row * channels + c, tl.sum(product * a[:, None], axis=0), c < channels)


@triton.jit
def _slopes_in_blocks(
    factor,
    features,
    receivers,
    neighbours,
    active,
    slopes,
    slots,
    orientations,
    channels,
    kept,
    summed,
    kept_stride,
    summed_stride,
    DEGREES: tl.constexpr,
    BLOCK_KEPT: tl.constexpr,
    BLOCK_SUMMED: tl.constexpr,
):
    """∂Q/∂A or ∂Q/∂R of an edge for a block of the axis that is kept, summed over blocks of the other."""
    edge = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_KEPT + tl.arange(0, BLOCK_KEPT)
    used = tl.load(active + edge).to(tl.int32)
    sender = tl.load(neighbours + edge, used != 0, other=0)
    start, own = sender * orientations * channels, edge // slots * orientations * channels
    for degree in tl.static_range(DEGREES):
        row = edge * DEGREES + degree
        total = tl.full((BLOCK_KEPT,), 0.0, features.dtype.element_ty)
        for first in range(0, summed, BLOCK_SUMMED):
            s = first + tl.arange(0, BLOCK_SUMMED)
            in_s = s < summed * used
            mask = (k < kept)[:, None] & in_s[None, :]
            places = k[:, None] * kept_stride + s[None, :] * summed_stride
            product = tl.load(features + start + places, mask, other=0.0)
            product *= tl.load(receivers + own + places, mask, other=0.0)
            total += tl.sum(product * tl.load(factor + row * summed + s, in_s, other=0.0)[None, :], axis=1)
        tl.store(slopes + row * kept + k, total, k < kept)


def sum_messages(
    angular: Tensor,
    radial: Tensor,
    angular2: Tensor | None,
    radial2: Tensor | None,
    features: Tensor,
    neighbours: Tensor,
    reverse: Tensor,
    active: Tensor,
    adjoint: bool,
) -> Tensor:
    """As the operator ``sum_messages`` of messages.py; shape (N, O, C)."""
    atoms, orientations, channels = features.shape
    out = torch.empty_like(features, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    pair = angular2 is not None and radial2 is not None
    block_o, block_c = _block(orientations, _SUM_BLOCK[0]), _block(channels, _SUM_BLOCK[1])
    grid = (atoms, triton.cdiv(orientations, block_o), triton.cdiv(channels, block_c))
    _sum[grid](
        *(value.contiguous() for value in (angular, radial)),
        *(value.contiguous() if value is not None else features for value in (angular2, radial2)),
        *(value.contiguous() for value in (features, neighbours, reverse)),
        _bytes(active),
        out,
        neighbours.shape[1],
        orientations,
        channels,
        DEGREES=angular.shape[2],
        PAIR=pair,
        ADJOINT=adjoint,
        BLOCK_O=block_o,
        BLOCK_C=block_c,
        UNROLL=_UNROLL,
        num_warps=_warps(block_o * block_c),
        **_FUSED,
    )
    return out


def edge_slopes(
    angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """As the operator ``edge_slopes`` of messages.py; shapes (N, M, L, O) and (N, M, L, C)."""
    orientations, channels = features.shape[1:]
    slopes = (
        torch.empty_like(angular, memory_format=torch.contiguous_format),
        torch.empty_like(radial, memory_format=torch.contiguous_format),
    )
    edges = neighbours.numel()
    if edges == 0:
        return slopes
    angular, radial, features = angular.contiguous(), radial.contiguous(), features.contiguous()
    table = (features, receivers.contiguous(), neighbours.contiguous(), _bytes(active))
    sizes = (neighbours.shape[1], orientations, channels)
    degrees = angular.shape[2]
    block_o, block_c = triton.next_power_of_2(orientations), triton.next_power_of_2(channels)
    if block_o * block_c <= _LARGEST_BLOCK:
        warps = _warps(block_o * block_c)
        blocks = (block_o, block_c)
        _slopes[(edges,)](angular, radial, *table, *slopes, *sizes, degrees, *blocks, num_warps=warps, **_FUSED)
        return slopes
    axes = ((orientations, channels), (channels, 1))
    for factor, found, kept, summed in ((radial, slopes[0], 0, 1), (angular, slopes[1], 1, 0)):
        lengths, strides = zip(axes[kept], axes[summed], strict=True)
        sides = [_block(length, _SLOPES_BLOCK) for length in lengths]
        grid = (edges, triton.cdiv(lengths[0], sides[0]))
        _slopes_in_blocks[grid](
            factor, *table, found, *sizes, *lengths, *strides, degrees, *sides, num_warps=8, **_FUSED
        )
    return slopes


def _block(size: int, largest: int) -> int:
    """The power of two that covers an axis, up to a largest one; Triton has no other blocks."""
    return min(int(triton.next_power_of_2(size)), largest)


def _warps(block: int) -> int:
    """Warps of a program: up to 16 numbers of the block for each thread."""
    return max(1, min(8, block // 512))


def _bytes(flags: Tensor) -> Any:
    """Booleans as the kernels read them."""
    return flags.contiguous().view(torch.uint8)
