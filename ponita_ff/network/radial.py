"""Radial functions: smooth functions of the distance that vanish smoothly at the cutoff."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ENVELOPE_POWER", "RadialBasis", "envelope"]

#: p of the envelope; the native training kernels are given it.
ENVELOPE_POWER = 6


def envelope(distance: Tensor, cutoff: float, power: int = ENVELOPE_POWER) -> Tensor:
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
    """Radial functions that all layers combine: MLP(Bessel functions of r) times the envelope.

    Bessel functions (cutoff/r) sin(kπr/cutoff), equation 7 of DimeNet (arXiv:2003.03123) up to a constant factor.

    Args:
        cutoff: Å.
        num_bessel: Bessel functions, k = 1 … num_bessel.
        hidden: Width of the MLP's hidden layer.
        num_basis: Functions that come out.
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
