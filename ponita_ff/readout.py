"""From the network's atomic energies to eV: scale, per-species reference energies, short-range repulsion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["ZBL", "fit_reference_energies", "sum_over_structures"]

#: e²/(4πε0) in eV Å, from CODATA 2018 as in ase.units (Hartree times Bohr).
_COULOMB = 14.399645478425668

#: Coefficients and exponents of the universal screening function: Ziegler, Biersack, Littmark, "The Stopping and
#: Range of Ions in Matter" (1985), equation 2-60.
_ZBL_COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
_ZBL_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)
_COEFFICIENTS, _EXPONENTS = np.array(_ZBL_COEFFICIENTS), -np.array(_ZBL_EXPONENTS)


class ZBL(nn.Module):
    """Ziegler–Biersack–Littmark screened nuclear repulsion, switched off smoothly at a short cutoff.

    E_ij = Z_i Z_j e²/(4πε0 r) φ(r/a), a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), times a switch (1 − u)³(1 + 3u + 6u²) of
    u = r/cutoff that has two continuous derivatives at the cutoff.

    Args:
        atomic_numbers: Z of each species, in the network's order.
        cutoff: Å; short, because bonds are the network's business.
    """

    def __init__(self, atomic_numbers: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.charges: Tensor
        charges = torch.tensor(atomic_numbers, dtype=torch.float64)
        self.register_buffer("charges", charges, persistent=False)

    def forward(self, species: Tensor, neighbours: Tensor, distance: Tensor) -> Tensor:
        """Atomic repulsion energies, shape (N,), eV, half of each pair on either atom.

        Args:
            species: Shape (N,).
            neighbours: Shape (N, M).
            distance: Shape (N, M), Å; unused slots lie beyond the cutoff and give zero.
        """
        charge = self.charges.to(distance.dtype)[species]
        charge_i, charge_j = charge.unsqueeze(1), charge[neighbours]
        screening_length = 0.46850 / (charge_i.pow(0.23) + charge_j.pow(0.23))
        reduced = distance / screening_length
        screening = sum(c * torch.exp(-k * reduced) for c, k in zip(_ZBL_COEFFICIENTS, _ZBL_EXPONENTS, strict=True))
        u = (distance / self.cutoff).clamp(max=1.0)
        switch = (1.0 - u).pow(3) * (1.0 + 3.0 * u + 6.0 * u.square())
        energy: Tensor = 0.5 * (_COULOMB * charge_i * charge_j / distance * screening * switch).sum(1)
        return energy

    def pair_terms(
        self, charge_i: NDArray[np.float64], charge_j: NDArray[np.float64], distance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (eV) of pairs of nuclei and their derivatives by the distance (eV/Å), each array of shape (pairs,).

        The same as :meth:`forward`, a whole pair each, differentiated by hand: what a step of dynamics can afford.
        """
        inverse_length = (charge_i**0.23 + charge_j**0.23) / 0.46850
        terms = np.exp(np.outer(distance * inverse_length, _EXPONENTS)) * _COEFFICIENTS
        screening, screening_slope = terms.sum(1), inverse_length * (terms @ _EXPONENTS)
        u = np.minimum(distance / self.cutoff, 1.0)
        switch, switch_slope = (1 - u) ** 3 * (1 + 3 * u + 6 * u * u), -30 * (u * (1 - u)) ** 2 / self.cutoff
        coulomb = _COULOMB * charge_i * charge_j / distance
        slope = coulomb * (screening_slope * switch + screening * switch_slope - screening * switch / distance)
        return coulomb * screening * switch, slope


def sum_over_structures(values: Tensor, batch: Tensor, number: int) -> Tensor:
    """Sum of per-atom values (N,) over the atoms of each structure, shape (number,).

    A product with a membership matrix for the few structures of a training batch (adds in one order, so that runs
    repeat bit for bit, and compiles), an ``index_add`` for many.
    """
    if number == 1:
        return values.sum(0, keepdim=True)
    if number <= 64:
        member = batch == torch.arange(number, device=batch.device).unsqueeze(1)
        return member.to(values.dtype) @ values
    return values.new_zeros(number).index_add(0, batch, values)


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
