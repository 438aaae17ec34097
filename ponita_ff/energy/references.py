"""Reference energies: one energy per species, so that the network learns interactions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["fit_reference_energies", "reference_vector"]


def fit_reference_energies(
    species: Sequence[int], compositions: NDArray[np.float64], energies: NDArray[np.float64]
) -> dict[int, float]:
    """Per-species energies that explain total energies best: least squares, smallest norm where not unique.

    A set of one composition only (one molecule) cannot tell species apart; the smallest-norm solution shares its
    mean energy out, which leaves the molecule's own total right and says nothing about others.

    Args:
        species: Atomic numbers, length S.
        compositions: Number of atoms of each species in each frame, shape (n, S).
        energies: Total energies, shape (n,), eV.

    Returns:
        Energy of each species by atomic number, eV.
    """
    solution = np.linalg.lstsq(compositions, energies, rcond=None)[0]
    return {int(z): float(e) for z, e in zip(species, solution, strict=True)}


def reference_vector(species: Sequence[int], energies: Mapping[int, float]) -> Tensor:
    """Reference energies in the network's species order, shape (S,), float64 eV; zero where none is given."""
    return torch.tensor([float(energies.get(z, 0.0)) for z in species], dtype=torch.float64)
