"""Ziegler–Biersack–Littmark repulsion of nuclei at short range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ponita_ff.structure.graph import Graph

__all__ = ["ZBL"]

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
        cutoff: Å; shorter than bonds, which the network describes.
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
        """Energies (eV) of pairs of nuclei, and derivatives with respect to the distance (eV/Å); shape (pairs,) each.

        The same as :meth:`forward`, a whole pair each, with analytic derivatives, which is faster than autograd.
        """
        inverse_length = (charge_i**0.23 + charge_j**0.23) / 0.46850
        terms = np.exp(np.outer(distance * inverse_length, _EXPONENTS)) * _COEFFICIENTS
        screening, screening_slope = terms.sum(1), inverse_length * (terms @ _EXPONENTS)
        u = np.minimum(distance / self.cutoff, 1.0)
        switch, switch_slope = (1 - u) ** 3 * (1 + 3 * u + 6 * u * u), -30 * (u * (1 - u)) ** 2 / self.cutoff
        coulomb = _COULOMB * charge_i * charge_j / distance
        slope = coulomb * (screening_slope * switch + screening * switch_slope - screening * switch / distance)
        return coulomb * screening * switch, slope

    # Atoms in one place give what is not finite, and the results are refused: no warning before that.
    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def terms(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (N,), gradient with respect to positions (N, 3), derivative with respect to a strain (B, 3, 3).

        Float64, eV and Å. For graphs on the CPU; only the few pairs within the cutoff are worked on.
        """
        positions, neighbours = graph["positions"].detach().numpy(), graph["neighbours"].numpy()
        vectors = positions[neighbours] - positions[:, None] + graph["offsets"].numpy()
        squared = np.einsum("imk,imk->im", vectors, vectors)
        receivers, slots = np.nonzero(squared < self.cutoff**2)
        senders, bonds = neighbours[receivers, slots], vectors[receivers, slots]
        energies, gradient = np.zeros(len(positions)), np.zeros((len(positions), 3))
        strain = np.zeros((len(graph["cell"]), 3, 3))
        if len(receivers):
            charges, distance = graph["atomic_numbers"].numpy().astype(np.float64), np.sqrt(squared[receivers, slots])
            energy, slope = self.pair_terms(charges[receivers], charges[senders], distance)
            # Every pair comes twice, once from either end: each gets half of the energy and all of its own gradient.
            slopes = (slope / distance)[:, None] * bonds
            np.add.at(energies, receivers, 0.5 * energy)
            np.subtract.at(gradient, receivers, slopes)
            # Symmetric, since the force is along the bond.
            np.add.at(strain, graph["batch"].numpy()[receivers], 0.5 * slopes[:, :, None] * bonds[:, None, :])
        return torch.from_numpy(energies), torch.from_numpy(gradient), torch.from_numpy(strain)
