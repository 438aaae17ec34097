"""Radial symmetry functions: what surrounds each atom, by element and distance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["radial_symmetry_functions"]


def radial_symmetry_functions(
    distances: Tensor, neighbour_species: Tensor, number_of_species: int, cutoff: float, number: int
) -> Tensor:
    """Radial symmetry functions of every atom: Σ_j exp(−(r_ij − r_k)² / 2w²) f_c(r_ij) for each element of j.

    G2 of Behler 2011, doi:10.1063/1.3553717, with equally spaced centres r_k from 0.8 Å to the cutoff, w their spacing,
    and a cosine cutoff f_c.

    Args:
        distances: Of each slot of a graph, shape (N, M), Å.
        neighbour_species: Index of the element of each neighbour, shape (N, M).
        number_of_species: Elements of neighbours that count.
        cutoff: Radius of the environment, Å.
        number: Number of functions for each element, at least two.

    Returns:
        Shape (N, number_of_species · number), of the distances' dtype.
    """
    centres = torch.linspace(0.8, cutoff, number, dtype=distances.dtype, device=distances.device)
    width = (cutoff - 0.8) / (number - 1)
    smooth = torch.where(distances < cutoff, 0.5 + 0.5 * torch.cos(torch.pi * distances / cutoff), 0.0)
    values = torch.exp(-0.5 / width**2 * (distances.unsqueeze(-1) - centres).square()) * smooth.unsqueeze(-1)
    species = torch.arange(number_of_species, device=distances.device).unsqueeze(1)
    of_species = (neighbour_species.unsqueeze(1) == species).to(values.dtype)
    return (of_species @ values).flatten(1)
