"""The separable convolution on R³×S² (PONITA, arXiv:2310.02970, Section 4).

At every atom i, orientation n and channel c,

    g_i(n) = w f_i(n) + Σ_j k1(x_ij, n) f_j(n)       spatial convolution, one kernel a channel
    h_i(n) = Σ_n' q(n') k2(n·n') g_i(n') + b         fibre convolution, q the grid's quadrature weights

and the block around it (block.py) mixes channels, f_i(n) += W2 gelu(W1 layernorm(h_i(n))).

The force-field form expands both kernels in Legendre polynomials, k1 = Σ_l R_l(r) P_l(c) and k2 = Σ_l w_l P_l(n·n'):
they are smooth everywhere and defined on any grid, and the radial network runs once for an edge, not once for each
edge and orientation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges, convolve

__all__ = ["OrientedSum", "SeparableConvolution", "fibre_convolution", "radial_weights", "sum_over_neighbours"]


def sum_over_neighbours(angular: Tensor, radial: Tensor, features: Tensor, edges: Edges) -> Tensor:
    """Spatial convolution Σ_j k1(x_ij, n) f_j(n) with k1 = Σ_l R_l(r) P_l(c) (arXiv:2310.02970, Section 4).

    The plain form, which states the equation. :func:`ponita_ff.kernels.messages.convolve` computes the same without
    holding anything of the size edges × orientations × channels, and is tested against this.

    Args:
        angular: P_l(c), shape (N, M, L, O).
        radial: R_l(r), shape (N, M, L, C).
        features: f, shape (N, O, C).
        edges: Sender of every edge, and which edges lie within the cutoff; shape (N, M) each.

    Returns:
        Shape (N, O, C).
    """
    return torch.einsum("im,imlo,imlc,imoc->ioc", edges.active.to(radial), angular, radial, features[edges.neighbours])


def fibre_convolution(features: Tensor, kernel: Tensor, for_compile: bool) -> Tensor:
    """Fibre convolution Σ_n' q(n') k2(n·n') g(n'), one kernel a channel (arXiv:2310.02970, Section 4).

    Args:
        features: g, shape (N, O', C).
        kernel: q(n') k2(n·n'), shape (O', O, C), senders n' first.
        for_compile: Write the sum so that a compiler fuses it.

    Returns:
        Shape (N, O, C).
    """
    if for_compile:
        return (features.unsqueeze(2) * kernel).sum(1)
    # A contiguous batched product over channels: einsum would fall into many small strided copies.
    product = features.permute(2, 0, 1).contiguous() @ kernel.permute(2, 0, 1).contiguous()
    return product.permute(1, 2, 0)


class OrientedSum(nn.Module):
    """A sum over neighbours on R³ or R³×S²: the atom itself and what neighbours send, then over orientations.

        h_i(n) = Σ_n' q(n') k2(n·n') (w f_i(n') + Σ_j m_ij(n')) + b

    The messages m_ij(n) are the subclass's. Without orientations there is no k2.

    Args:
        channels: C.
        l_max: Highest Legendre degree of the kernels.
        fibre: Whether there are orientations.

    Attributes:
        fibre: w_l, shape (l_max + 1, C); None without orientations.
        self_weight: w, shape (C,).
        bias: b, shape (C,).
    """

    def __init__(self, channels: int, l_max: int, fibre: bool) -> None:
        super().__init__()
        self.channels, self.l_max = channels, l_max
        self.fibre = nn.Parameter(torch.zeros(l_max + 1, channels)) if fibre else None
        self.self_weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if self.fibre is not None:
            with torch.no_grad():
                # Start near the identity, Σ_l (2l + 1) P_l, so that no degree is lost on the way.
                degrees = 2 * torch.arange(l_max + 1) + 1.0
                self.fibre.copy_(degrees[:, None] * (1.0 + 0.5 * torch.randn(l_max + 1, channels)))

    def over_orientations(self, features: Tensor, messages: Tensor, fibre_angular: Tensor, for_compile: bool) -> Tensor:
        """h from f and the sum of messages, shape (N, O, C) each.

        Args:
            features: f.
            messages: Σ_j m_ij(n).
            fibre_angular: Quadrature weight of n' times P_l(n·n'), shape (l_max + 1, O', O), senders first.
            for_compile: See :func:`fibre_convolution`.
        """
        spatial = self.self_weight * features + messages
        if self.fibre is not None:
            spatial = fibre_convolution(spatial, torch.einsum("lpo,lc->poc", fibre_angular, self.fibre), for_compile)
        return spatial + self.bias


class SeparableConvolution(OrientedSum):
    """Convolution over the atom itself and its neighbours, then over orientations; one kernel a channel.

    Args:
        channels: C.
        l_max: Highest Legendre degree of both kernels.
        num_basis: Radial functions that come in, K.
        avg_num_neighbours: Scales the first weights, so that the sum over neighbours has unit variance.
        fibre: Whether there are orientations.

    Attributes:
        radial: Radial functions R_l of every degree and channel from the basis, (num_basis) to ((l_max + 1) · C).
    """

    def __init__(self, channels: int, l_max: int, num_basis: int, avg_num_neighbours: float, fibre: bool) -> None:
        radial = radial_weights(num_basis, (l_max + 1) * channels, avg_num_neighbours)
        super().__init__(channels, l_max, fibre)
        self.radial = radial

    def forward(
        self,
        features: Tensor,
        basis: Tensor,
        angular: Tensor,
        fibre_angular: Tensor,
        edges: Edges,
        for_compile: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, O, C).
            basis: Radial basis times envelope, shape (N, M, K).
            angular: P_l(c), shape (N, M, l_max + 1, O).
            fibre_angular: Quadrature weight of n' times P_l(n·n'), shape (l_max + 1, O', O), senders first.
            edges: Topology, and which edges lie within the cutoff: the others send nothing.
            for_compile: See :func:`fibre_convolution`.

        Returns:
            Shape (N, O, C).
        """
        radial = self.radial(basis).unflatten(-1, (self.l_max + 1, self.channels))
        messages = convolve(angular, radial, features, edges)
        return self.over_orientations(features, messages, fibre_angular, for_compile)


def radial_weights(num_basis: int, outputs: int, avg_num_neighbours: float) -> nn.Linear:
    """Radial functions of degrees and channels from the basis, such that a sum over neighbours has unit variance.

    Whatever the number of neighbours; P_l² averages to 1/(2l + 1).
    """
    linear = nn.Linear(num_basis, outputs, bias=False)
    nn.init.normal_(linear.weight, std=1.0 / math.sqrt(num_basis * avg_num_neighbours))
    return linear
