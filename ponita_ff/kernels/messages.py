"""Sums over neighbours with kernels Σ_l A_l R_l, and their derivatives of any order, without ever holding a kernel.

The spatial convolution of the force-field form is the derivative by g of

    Q(A, R, f, g) = Σ_{i,m,l,o,c} A[i,m,l,o] R[i,m,l,c] f[j(i,m),o,c] g[i,o,c]

over atoms i, slots m with neighbours j, degrees l, orientations o and channels c. Q is linear in each argument, so its
four partial derivatives are closed under differentiation: the derivative of one is a sum of others with other
arguments. Two operators do all: a sum of messages (∂Q/∂g, ∂Q/∂f) and the slopes of each edge (∂Q/∂A, ∂Q/∂R). On the
CPU they are C++, elsewhere torch in pieces; nothing of the size edges × orientations × channels is ever kept.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ponita_ff.kernels.build import KernelError, load

__all__ = ["Edges", "convolve"]

logger = logging.getLogger(__name__)

#: Elements, edges × orientations × channels, that the torch version holds at a time.
_CHUNK = 4_000_000

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class Edges(NamedTuple):
    """Topology: sender and slot of the reversed edge of every slot, and which slots count; each of shape (N, M).

    ``active`` must be the same for an edge and its reverse. Slots that do not count send nothing and have no slopes.
    """

    neighbours: Tensor
    reverse: Tensor
    active: Tensor


def convolve(angular: Tensor, radial: Tensor, features: Tensor, edges: Edges) -> Tensor:
    """Σ_m Σ_l A[i,m,l,o] R[i,m,l,c] f[j,o,c], differentiable any number of times.

    Args:
        angular: A, shape (N, M, L, O).
        radial: R, shape (N, M, L, C).
        features: f, shape (N, O, C).
        edges: See :class:`Edges`.

    Returns:
        Shape (N, O, C).
    """
    return _Sum.apply(angular, radial, features, *edges, False)


class _Sum(torch.autograd.Function):
    """∂Q/∂g, or ∂Q/∂f where ``adjoint`` (``features`` then stands for g)."""

    @staticmethod
    def forward(
        ctx: Any,
        angular: Tensor,
        radial: Tensor,
        features: Tensor,
        neighbours: Tensor,
        reverse: Tensor,
        active: Tensor,
        adjoint: bool,
    ) -> Tensor:
        ctx.save_for_backward(angular, radial, features, neighbours, reverse, active)
        ctx.adjoint = adjoint
        return _sum_messages(angular, radial, None, None, features, neighbours, reverse, active, adjoint)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        angular, radial, features, *edges = ctx.saved_tensors
        need_angular, need_radial, need_features = ctx.needs_input_grad[:3]
        senders, receivers = (gradient, features) if ctx.adjoint else (features, gradient)
        slopes: tuple[Tensor | None, ...] = (None, None)
        if need_angular or need_radial:
            slopes = _Slopes.apply(angular, radial, senders, receivers, *edges)
        back = _Sum.apply(angular, radial, gradient, *edges, not ctx.adjoint) if need_features else None
        return *slopes, back, None, None, None, None


class _PairSum(torch.autograd.Function):
    """The sum of two: ∂Q/∂g, or ∂Q/∂f, of A, R plus that of A', R'. One pass over the features for both."""

    @staticmethod
    def forward(
        ctx: Any,
        angular: Tensor,
        radial: Tensor,
        angular2: Tensor,
        radial2: Tensor,
        features: Tensor,
        neighbours: Tensor,
        reverse: Tensor,
        active: Tensor,
        adjoint: bool,
    ) -> Tensor:
        ctx.save_for_backward(angular, radial, angular2, radial2, features, neighbours, reverse, active)
        ctx.adjoint = adjoint
        return _sum_messages(angular, radial, angular2, radial2, features, neighbours, reverse, active, adjoint)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        angular, radial, angular2, radial2, features, *edges = ctx.saved_tensors
        senders, receivers = (gradient, features) if ctx.adjoint else (features, gradient)
        first = _Slopes.apply(angular, radial, senders, receivers, *edges)
        second = _Slopes.apply(angular2, radial2, senders, receivers, *edges)
        back = _PairSum.apply(angular, radial, angular2, radial2, gradient, *edges, not ctx.adjoint)
        return *first, *second, back, None, None, None, None


class _Slopes(torch.autograd.Function):
    """∂Q/∂A and ∂Q/∂R."""

    @staticmethod
    def forward(
        ctx: Any,
        angular: Tensor,
        radial: Tensor,
        features: Tensor,
        receivers: Tensor,
        neighbours: Tensor,
        reverse: Tensor,
        active: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(angular, radial, features, receivers, neighbours, reverse, active)
        return (
            _edge_slopes(radial, features, receivers, neighbours, active, True),
            _edge_slopes(angular, features, receivers, neighbours, active, False),
        )

    @staticmethod
    def backward(ctx: Any, of_angular: Tensor, of_radial: Tensor) -> tuple[Tensor | None, ...]:
        angular, radial, features, receivers, *edges = ctx.saved_tensors
        pair = (of_angular, radial, angular, of_radial)
        slope_angular, slope_radial = _Slopes.apply(of_angular, of_radial, features, receivers, *edges)
        return (
            slope_angular,
            slope_radial,
            _PairSum.apply(*pair, receivers, *edges, True),
            _PairSum.apply(*pair, features, *edges, False),
            None,
            None,
            None,
        )


# ------------------------------------------------------------------------------------------------ operators


@torch.library.custom_op("ponita_ff::sum_messages", mutates_args=())
def _sum_messages(
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
    edges = Edges(neighbours, reverse, active)
    library = _library() if features.device.type == "cpu" and features.dtype in _SUFFIX else None
    if library is None:
        return _sum_by_torch(angular, radial, angular2, radial2, features, edges, adjoint)
    return _sum_by_kernel(library, angular, radial, angular2, radial2, features, edges, adjoint)


@_sum_messages.register_fake
def _(
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
    return features.new_empty(features.shape)


@torch.library.custom_op("ponita_ff::edge_slopes", mutates_args=())
def _edge_slopes(
    factor: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor, angular: bool
) -> Tensor:
    library = _library() if features.device.type == "cpu" and features.dtype in _SUFFIX else None
    if library is None:
        return _slopes_by_torch(factor, features, receivers, neighbours, active, angular)
    return _slopes_by_kernel(library, factor, features, receivers, neighbours, active, angular)


@_edge_slopes.register_fake
def _(factor: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor, angular: bool) -> Tensor:
    return factor.new_empty(*factor.shape[:3], features.shape[1 if angular else 2])


# ---------------------------------------------------------------------------------------------------- torch


def _chunks(edges: int, slots: int, orientations: int, channels: int) -> list[slice]:
    """Rows of the neighbour table, so many at a time that a chunk's kernels stay small."""
    step = max(1, _CHUNK // max(1, slots * orientations * channels))
    return [slice(start, start + step) for start in range(0, edges, step)]


def _sum_by_torch(
    angular: Tensor,
    radial: Tensor,
    angular2: Tensor | None,
    radial2: Tensor | None,
    features: Tensor,
    edges: Edges,
    adjoint: bool,
) -> Tensor:
    out = torch.empty_like(features, memory_format=torch.contiguous_format)
    for rows in _chunks(len(features), edges.neighbours.shape[1], *features.shape[1:]):
        senders = edges.neighbours[rows]
        where: Any = (senders, edges.reverse[rows]) if adjoint else rows
        kernel = angular[where].transpose(-1, -2) @ radial[where]
        if angular2 is not None and radial2 is not None:
            kernel = kernel + angular2[where].transpose(-1, -2) @ radial2[where]
        kernel = torch.where(edges.active[rows, :, None, None], kernel, 0.0)
        out[rows] = (kernel * features[senders]).sum(1)
    return out


def _slopes_by_torch(
    factor: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor, angular: bool
) -> Tensor:
    pieces = []
    for rows in _chunks(len(features), neighbours.shape[1], *features.shape[1:]):
        product = features[neighbours[rows]] * receivers[rows].unsqueeze(1)
        slopes = factor[rows] @ (product.transpose(-1, -2) if angular else product)
        pieces.append(torch.where(active[rows, :, None, None], slopes, 0.0))
    return torch.cat(pieces)


# ------------------------------------------------------------------------------------------------------ C++


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "slots", "degrees", "orientations", "channels", "threads")),
        *((name, ctypes.c_void_p) for name in ("neighbours", "reverse", "active")),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernels, or None, said once, where they cannot be had."""
    try:
        library = load("messages")
    except KernelError as error:
        logger.warning("no native kernels, going on without: %s", error)
        return None
    for suffix in _SUFFIX.values():
        getattr(library, f"width_{suffix}").restype = ctypes.c_int64
        # Sizes, four or two factors and features, a flag, the result; nothing comes back.
        pointer = ctypes.c_void_p
        getattr(library, f"sum_{suffix}").argtypes = [pointer] * 6 + [ctypes.c_bool, pointer]
        getattr(library, f"slopes_{suffix}").argtypes = [pointer] * 5 + [ctypes.c_bool, pointer]
        for kind in ("sum", "slopes"):
            getattr(library, f"{kind}_{suffix}").restype = None
    return library


def _padding(library: ctypes.CDLL, features: Tensor) -> int:
    """Channels that are missing to the next whole vector."""
    width = getattr(library, f"width_{_SUFFIX[features.dtype]}")()
    return -features.shape[-1] % int(width)


def _whole(tensor: Tensor, padding: int = 0) -> Tensor:
    """As the kernels read it: in one piece, channels filled up with zeros."""
    return functional.pad(tensor, (0, padding)) if padding else tensor.contiguous()


def _sizes(degrees: int, features: Tensor, neighbours: Tensor, reverse: Tensor | None, active: Tensor) -> _Sizes:
    atoms, orientations, channels = features.shape
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (neighbours, reverse, active)]
    slots = neighbours.shape[1]
    return _Sizes(atoms, slots, degrees, orientations, channels, torch.get_num_threads(), *addresses)


def _sum_by_kernel(
    library: ctypes.CDLL,
    angular: Tensor,
    radial: Tensor,
    angular2: Tensor | None,
    radial2: Tensor | None,
    features: Tensor,
    edges: Edges,
    adjoint: bool,
) -> Tensor:
    padding, channels = _padding(library, features), features.shape[-1]
    topology = [_whole(tensor) for tensor in edges]
    factors = [
        None if tensor is None else _whole(tensor, fill)
        for tensor, fill in ((angular, 0), (radial, padding), (angular2, 0), (radial2, padding))
    ]
    f = _whole(features, padding)
    out = torch.empty_like(f)
    sizes = _sizes(angular.shape[2], f, *topology)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in factors]
    function = getattr(library, f"sum_{_SUFFIX[features.dtype]}")
    function(ctypes.addressof(sizes), *addresses, f.data_ptr(), adjoint, out.data_ptr())
    return out[..., :channels].contiguous()


def _slopes_by_kernel(
    library: ctypes.CDLL,
    factor: Tensor,
    features: Tensor,
    receivers: Tensor,
    neighbours: Tensor,
    active: Tensor,
    angular: bool,
) -> Tensor:
    padding, channels = _padding(library, features), features.shape[-1]
    factor = _whole(factor, padding if angular else 0)
    f, g = _whole(features, padding), _whole(receivers, padding)
    indices, counts = _whole(neighbours), _whole(active)
    out = f.new_empty(*factor.shape[:3], f.shape[1 if angular else 2])
    sizes = _sizes(factor.shape[2], f, indices, None, counts)
    a, r = (None, factor.data_ptr()) if angular else (factor.data_ptr(), None)
    function = getattr(library, f"slopes_{_SUFFIX[features.dtype]}")
    function(ctypes.addressof(sizes), a, r, f.data_ptr(), g.data_ptr(), angular, out.data_ptr())
    return out if angular else out[..., :channels].contiguous()
