"""Sums over neighbours with kernels Σ_l A_l R_l, and their derivatives of any order, without ever holding a kernel.

The spatial convolution of the force-field form is the derivative with respect to g of

    Q(A, R, f, g) = Σ_{i,m,l,o,c} A[i,m,l,o] R[i,m,l,c] f[j(i,m),o,c] g[i,o,c]

over atoms i, their neighbours j = j(i, m) in slots m, degrees l, orientations o and channels c. Q is linear in each
argument, so its four partial derivatives are closed under differentiation: the derivative of one is a sum of others
with other arguments. Two operators are enough: a sum of messages (∂Q/∂g, ∂Q/∂f) and the slopes of each edge
(∂Q/∂A, ∂Q/∂R). On the CPU they are C++ (messages.cpp), on a GPU Triton (triton_messages.py), elsewhere torch in chunks;
nothing of the size edges × orientations × channels is ever kept.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.loader import SUFFIX, Kernels
from ponita_ff.kernels.structs import MessageShape
from ponita_ff.kernels.threads import number_of_threads

__all__ = ["Edges", "convolve"]

logger = logging.getLogger(__name__)

#: Elements, edges × orientations × channels, that the torch version holds at a time.
_CHUNK = 4_000_000


class Edges(NamedTuple):
    """Topology of a graph, one edge a slot (i, m) of its receiver; each of shape (N, M).

    Attributes:
        neighbours: Sender j of the edge.
        reverse: Slot of the reversed edge in row j.
        active: Whether the edge counts, the same for an edge and its reverse. The others send nothing and have zero
            gradients.
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
            slopes = _EdgeSlopes.apply(angular, radial, senders, receivers, *edges)
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
        first = _EdgeSlopes.apply(angular, radial, senders, receivers, *edges)
        second = _EdgeSlopes.apply(angular2, radial2, senders, receivers, *edges)
        back = _PairSum.apply(angular, radial, angular2, radial2, gradient, *edges, not ctx.adjoint)
        return *first, *second, back, None, None, None, None


class _EdgeSlopes(torch.autograd.Function):
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
        return _edge_slopes(angular, radial, features, receivers, neighbours, active)

    @staticmethod
    def backward(ctx: Any, grad_angular: Tensor, grad_radial: Tensor) -> tuple[Tensor | None, ...]:
        angular, radial, features, receivers, *edges = ctx.saved_tensors
        pair = (grad_angular, radial, angular, grad_radial)
        return (
            *_EdgeSlopes.apply(grad_angular, grad_radial, features, receivers, *edges),
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
    if (triton := _triton_for(features)) is not None:
        return triton.sum_messages(angular, radial, angular2, radial2, features, neighbours, reverse, active, adjoint)
    kernels = _kernels_for(features, angular.shape[2])
    if kernels is None:
        return _sum_by_torch(angular, radial, angular2, radial2, features, edges, adjoint)
    return _sum_by_kernel(kernels, angular, radial, angular2, radial2, features, edges, adjoint)


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
    angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    if (triton := _triton_for(features)) is not None:
        return triton.edge_slopes(angular, radial, features, receivers, neighbours, active)
    kernels = _kernels_for(features, angular.shape[2])
    if kernels is None:
        return _edge_slopes_by_torch(angular, radial, features, receivers, neighbours, active)
    return (
        _slopes_by_kernel(kernels, radial, features, receivers, neighbours, active, True),
        _slopes_by_kernel(kernels, angular, features, receivers, neighbours, active, False),
    )


@_edge_slopes.register_fake
def _(
    angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    return angular.new_empty(angular.shape), radial.new_empty(radial.shape)


# ---------------------------------------------------------------------------------------------------- torch


def _chunks(atoms: int, max_neighbours: int, orientations: int, channels: int) -> list[slice]:
    """Rows of the neighbour table, few enough at a time that a chunk's kernels stay small."""
    step = max(1, _CHUNK // max(1, max_neighbours * orientations * channels))
    return [slice(start, start + step) for start in range(0, atoms, step)]


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


def _edge_slopes_by_torch(
    angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor, neighbours: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    pieces = []
    for rows in _chunks(len(features), neighbours.shape[1], *features.shape[1:]):
        product = features[neighbours[rows]] * receivers[rows].unsqueeze(1)
        slopes = (radial[rows] @ product.transpose(-1, -2), angular[rows] @ product)
        pieces.append([torch.where(active[rows, :, None, None], value, 0.0) for value in slopes])
    by_angular, by_radial = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return by_angular, by_radial


# --------------------------------------------------------------------------------------------------- Triton


def _triton_for(features: Tensor) -> Any | None:
    """The Triton kernels for these features; None where they are on no GPU, or there is no Triton."""
    if features.device.type != "cuda":
        return None
    kernels = _triton()
    return kernels if kernels is not None and features.dtype in kernels.DTYPES else None


@functools.cache
def _triton() -> Any | None:
    """The module; None where it cannot be imported, which is logged once."""
    try:
        from ponita_ff.kernels import triton_messages
    except ImportError as error:
        logger.warning(
            "the GPU runs the sums over neighbours in plain torch, which is slow: Triton cannot be imported (%s); "
            "'pip install triton' gives it",
            error,
        )
        return None
    return triton_messages


# ------------------------------------------------------------------------------------------------------ C++


class _MessageKernels:
    """The two functions of messages.cpp for one dtype.

    Raises:
        KernelError: Where the library cannot be had.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        kernels, pointer = Kernels("messages", dtype), ctypes.c_void_p
        self.width, self.max_degrees = kernels.width, kernels.limit("MAX_DEGREES")
        # Shape, four or two factors, features, a flag, the result.
        self.sum = kernels.function("sum_messages", None, *[pointer] * 6, ctypes.c_bool, pointer)
        self.edge_gradients = kernels.function("edge_gradients", None, *[pointer] * 5, ctypes.c_bool, pointer)


def _kernels_for(features: Tensor, degrees: int) -> _MessageKernels | None:
    """Kernels for these features and as many Legendre degrees; None where torch has to do it."""
    if features.device.type != "cpu" or features.dtype not in SUFFIX:
        return None
    kernels = _kernels(features.dtype)
    return kernels if kernels is not None and degrees <= kernels.max_degrees else None


@functools.cache
def _kernels(dtype: torch.dtype) -> _MessageKernels | None:
    """The kernels; None where they cannot be had, which is logged once."""
    try:
        return _MessageKernels(dtype)
    except KernelError as error:
        _warn_once(str(error))
        return None


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("native kernels are not used: %s", reason)


def _contiguous(tensor: Tensor, padding: int = 0) -> Tensor:
    """As the kernels read it: contiguous, with ``padding`` zeros appended to the last axis."""
    return functional.pad(tensor, (0, padding)) if padding else tensor.contiguous()


def _message_shape(
    degrees: int, features: Tensor, neighbours: Tensor, reverse: Tensor | None, active: Tensor
) -> MessageShape:
    atoms, orientations, channels = features.shape
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (neighbours, reverse, active)]
    threads = number_of_threads()
    return MessageShape(atoms, neighbours.shape[1], degrees, orientations, channels, threads, *addresses)


def _sum_by_kernel(
    kernels: _MessageKernels,
    angular: Tensor,
    radial: Tensor,
    angular2: Tensor | None,
    radial2: Tensor | None,
    features: Tensor,
    edges: Edges,
    adjoint: bool,
) -> Tensor:
    channels = features.shape[-1]
    padding = -channels % kernels.width
    topology = [_contiguous(tensor) for tensor in edges]
    factors = [
        None if tensor is None else _contiguous(tensor, fill)
        for tensor, fill in ((angular, 0), (radial, padding), (angular2, 0), (radial2, padding))
    ]
    f = _contiguous(features, padding)
    out = torch.empty_like(f)
    shape = _message_shape(angular.shape[2], f, *topology)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in factors]
    kernels.sum(ctypes.addressof(shape), *addresses, f.data_ptr(), adjoint, out.data_ptr())
    return out[..., :channels].contiguous()


def _slopes_by_kernel(
    kernels: _MessageKernels,
    factor: Tensor,
    features: Tensor,
    receivers: Tensor,
    neighbours: Tensor,
    active: Tensor,
    angular: bool,
) -> Tensor:
    channels = features.shape[-1]
    padding = -channels % kernels.width
    factor = _contiguous(factor, padding if angular else 0)
    f, g = _contiguous(features, padding), _contiguous(receivers, padding)
    indices, counts = _contiguous(neighbours), _contiguous(active)
    out = f.new_empty(*factor.shape[:3], f.shape[1 if angular else 2])
    shape = _message_shape(factor.shape[2], f, indices, None, counts)
    a, r = (None, factor.data_ptr()) if angular else (factor.data_ptr(), None)
    kernels.edge_gradients(ctypes.addressof(shape), a, r, f.data_ptr(), g.data_ptr(), angular, out.data_ptr())
    return out if angular else out[..., :channels].contiguous()
