"""Radial functions, separable convolution on R³×S² and the ConvNeXt block around it.

One block computes, at every atom i, orientation n and channel c (PONITA, arXiv:2310.02970, Section 4),

    g_i(n)  = w f_i(n) + Σ_j k1(x_ij, n) f_j(n)   spatial, depthwise
    h_i(n)  = ⟨k2(n·n') g_i(n')⟩_n' + b        fibre, depthwise, ⟨⟩ the grid's quadrature
    f_i(n) += W2 gelu(W1 layernorm(h_i(n)))    channels

The force-field form expands both kernels in Legendre polynomials, k1 = Σ_l R_l(r) P_l(c) and k2 = Σ_l w_l P_l(n·n'):
smooth everywhere, defined on any grid, and the network runs once an edge instead of once an edge and orientation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges, convolve

__all__ = ["SeparableConvolution", "over_orientations", "sum_over_neighbours"]


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


def over_orientations(features: Tensor, kernel: Tensor, for_compile: bool) -> Tensor:
    """Depthwise fibre convolution Σ_n' k(n', n) g(n').

    Args:
        features: g, shape (N, O', C).
        kernel: Quadrature weight of n' times the kernel, shape (O', O, C), senders first.
        for_compile: Write the sum as a compiler likes it.

    Returns:
        Shape (N, O, C).
    """
    if for_compile:
        return (features.unsqueeze(2) * kernel).sum(1)
    # A contiguous batched product over channels: einsum would fall into many small strided copies.
    product = features.permute(2, 0, 1).contiguous() @ kernel.permute(2, 0, 1).contiguous()
    return product.permute(1, 2, 0)


class SeparableConvolution(nn.Module):
    """Depthwise convolution over the atom itself and its neighbours, then over orientations."""

    def __init__(self, channels: int, l_max: int, num_basis: int, avg_num_neighbours: float, fibre: bool) -> None:
        super().__init__()
        self.channels, self.l_max = channels, l_max
        self.radial = nn.Linear(num_basis, (l_max + 1) * channels, bias=False)
        self.fibre = nn.Parameter(torch.zeros(l_max + 1, channels)) if fibre else None
        self.self_weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        with torch.no_grad():
            # Spatial sum of unit variance whatever the number of neighbours; P_l² averages to 1/(2l + 1).
            self.radial.weight.normal_(std=1.0 / math.sqrt(num_basis * avg_num_neighbours))
            if self.fibre is not None:
                # Start near the identity, Σ_l (2l + 1) P_l, so that no degree is lost on the way.
                degrees = 2 * torch.arange(l_max + 1) + 1.0
                self.fibre.copy_(degrees[:, None] * (1.0 + 0.5 * torch.randn(l_max + 1, channels)))

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
            for_compile: See :func:`over_orientations`.

        Returns:
            Shape (N, O, C).
        """
        radial = self.radial(basis).unflatten(-1, (self.l_max + 1, self.channels))
        spatial = self.self_weight * features + convolve(angular, radial, features, edges)
        if self.fibre is not None:
            spatial = over_orientations(spatial, torch.einsum("lpo,lc->poc", fibre_angular, self.fibre), for_compile)
        return spatial + self.bias
