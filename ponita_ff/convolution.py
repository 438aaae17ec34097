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

from ponita_ff.kernels.activation import gelu
from ponita_ff.kernels.messages import Edges, convolve

__all__ = ["ConvNeXt", "RadialBasis", "SeparableConvolution", "envelope", "over_orientations"]


def envelope(distance: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Polynomial that falls from 1 to 0 at the cutoff with two continuous derivatives there, zero beyond.

    Equation 8 of DimeNet (arXiv:2003.03123), 1 − (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) − p(p+1)/2 u^(p+2), u = r/cutoff.

    Args:
        distance: r, any shape, Å.
        cutoff: Å.
        power: p.
    """
    u = (distance / cutoff).clamp(max=1.0)
    p = power
    tail = (p + 1) * (p + 2) / 2 - p * (p + 2) * u + p * (p + 1) / 2 * u.square()
    return 1.0 - u.pow(p) * tail


class RadialBasis(nn.Module):
    """Smooth functions of the distance that all layers share: Bessel functions through a small network.

    Bessel functions sin(kπr/cutoff)/r are equation 7 of DimeNet (arXiv:2003.03123).
    """

    def __init__(self, cutoff: float, num_bessel: int, hidden: int, num_basis: int) -> None:
        super().__init__()
        self.cutoff, self.num_bessel = cutoff, num_bessel
        self.network = nn.Sequential(nn.Linear(num_bessel, hidden), nn.SiLU(), nn.Linear(hidden, num_basis), nn.SiLU())

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (...), Å, to basis values (..., num_basis)."""
        r = distance.unsqueeze(-1)
        bessel = torch.sin(self._frequencies(r) * r) * (self.cutoff / r)
        basis: Tensor = self.network(bessel)
        return basis * envelope(r, self.cutoff)

    def _frequencies(self, r: Tensor) -> Tensor:
        # Made here, in the dtype of the distances: a buffer would keep the rounding of the dtype it was made in.
        return torch.arange(1, self.num_bessel + 1, dtype=r.dtype, device=r.device) * math.pi / self.cutoff


def over_orientations(features: Tensor, kernel: Tensor, fused: bool) -> Tensor:
    """Depthwise fibre convolution Σ_n' k(n', n) g(n').

    Args:
        features: g, shape (N, O', C).
        kernel: Quadrature weight of n' times the kernel, shape (O', O, C), senders first.
        fused: Write the sum as a compiler likes it.

    Returns:
        Shape (N, O, C).
    """
    if fused:
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
        self.own = nn.Parameter(torch.ones(channels))
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
        neighbours: Tensor,
        reverse: Tensor,
        active: Tensor,
        fused: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, O, C).
            basis: Radial basis times envelope, shape (N, M, K).
            angular: P_l(c), shape (N, M, l_max + 1, O).
            fibre_angular: Quadrature weight of n' times P_l(n·n'), shape (l_max + 1, O', O), senders first.
            neighbours: Shape (N, M).
            reverse: Shape (N, M).
            active: Edges within the cutoff, shape (N, M); the others send nothing.
            fused: See :func:`over_orientations`.

        Returns:
            Shape (N, O, C).
        """
        radial = self.radial(basis).unflatten(-1, (self.l_max + 1, self.channels))
        spatial = self.own * features + convolve(angular, radial, features, Edges(neighbours, reverse, active))
        if self.fibre is not None:
            spatial = over_orientations(spatial, torch.einsum("lpo,lc->poc", fibre_angular, self.fibre), fused)
        return spatial + self.bias


class ConvNeXt(nn.Module):
    """Separable convolution, LayerNorm, Linear–GELU–Linear, residual."""

    def __init__(self, convolution: nn.Module, channels: int, widening: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, widening * channels)
        self.contract = nn.Linear(widening * channels, channels)

    def forward(self, features: Tensor, *geometry: Tensor, fused: bool = False) -> Tensor:
        """Features (N, O, C) to features (N, O, C); ``geometry`` as the convolution takes it."""
        hidden = self.norm(self.convolution(features, *geometry, fused=fused))
        return features + self.contract(gelu(self.expand(hidden)))
