"""Real spherical harmonics, normalised such that Σ_m Y_lm(u) Y_lm(v) = P_l(u·v) (the addition theorem)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["degrees_of_harmonics", "spherical_harmonics"]


def spherical_harmonics(units: Tensor, l_max: int) -> Tensor:
    """Y_lm(u) for l = 0 … l_max and m = −l … l, polynomials of x, y, z.

    Associated Legendre functions without their power of the sine, by recursion in l, times Re and Im of (x + iy)^m.

    Args:
        units: Unit vectors, shape (..., 3).
        l_max: Highest degree.

    Returns:
        Shape (..., (l_max + 1)²).
    """
    x, y, z = units.unbind(-1)
    real, imaginary = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(l_max):
        real, imaginary = [*real, x * real[-1] - y * imaginary[-1]], [*imaginary, x * imaginary[-1] + y * real[-1]]
    found: dict[tuple[int, int], Tensor] = {}
    for m in range(l_max + 1):
        before, now = torch.zeros_like(z), torch.full_like(z, float(math.prod(range(1, 2 * m, 2))))
        for degree in range(m, l_max + 1):
            norm = math.sqrt((1 if m == 0 else 2) * math.factorial(degree - m) / math.factorial(degree + m))
            found[degree, m] = norm * now * real[m]
            found[degree, -m] = norm * now * imaginary[m] if m else found[degree, 0]
            before, now = now, ((2 * degree + 1) * z * now - (degree + m) * before) / (degree + 1 - m)
    return torch.stack([found[degree, m] for degree in range(l_max + 1) for m in range(-degree, degree + 1)], dim=-1)


def degrees_of_harmonics(l_max: int, device: torch.device) -> Tensor:
    """The degree l of every harmonic, in the order of :func:`spherical_harmonics`; shape ((l_max + 1)²,)."""
    degrees = torch.arange(l_max + 1, device=device)
    return degrees.repeat_interleave(2 * degrees + 1, output_size=(l_max + 1) ** 2)
