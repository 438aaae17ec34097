"""The weights of a potential: network, scale, reference energies, ZBL repulsion; assembly.py has what they give."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.energy.references import reference_vector
from ponita_ff.energy.repulsion import ZBL
from ponita_ff.network.base import Float64Buffers, Network
from ponita_ff.network.orientations import averaging_rotations
from ponita_ff.structure.graph import Graph

__all__ = ["EnergyModel"]

logger = logging.getLogger(__name__)


class EnergyModel(Float64Buffers):
    """Network, scale, reference energies and optional ZBL repulsion, in eV and Å.

    Args:
        network: Gives atomic energies.
        species: Atomic numbers that it knows, ascending; their order is the network's species order.
        reference_energies: eV by atomic number.
        scale: eV per unit of network output.
        zbl_cutoff: Å; None for no ZBL term.

    Raises:
        ValueError: For species that are not distinct ascending atomic numbers, or a ZBL cutoff beyond the network's.
    """

    float64_buffers = ("reference_energies", "rotations")

    def __init__(
        self,
        network: Network,
        species: Sequence[int],
        reference_energies: Mapping[int, float],
        scale: float = 1.0,
        zbl_cutoff: float | None = None,
    ) -> None:
        super().__init__()
        if list(species) != sorted(set(species)) or not species or min(species) < 1 or max(species) > 118:
            raise ValueError(f"species must be distinct ascending atomic numbers, got {list(species)}")
        reach = float("inf") if network.cutoff is None else network.cutoff
        if zbl_cutoff is not None and not 0.0 < zbl_cutoff <= reach:
            raise ValueError(
                f"zbl_cutoff must lie above 0 and not beyond the network's {reach:g} Å, got {zbl_cutoff!r}"
            )
        self.network = network
        self.species = tuple(int(z) for z in species)
        self.scale = float(scale)
        self.zbl_cutoff = zbl_cutoff
        self.zbl = ZBL(self.species, zbl_cutoff) if zbl_cutoff is not None else None
        self.reference_energies: Tensor
        self.register_buffer("reference_energies", reference_vector(self.species, reference_energies))
        self.species_index: Tensor
        self.rotations: Tensor
        self.register_buffer("rotations", torch.eye(3, dtype=torch.float64).unsqueeze(0))
        index = torch.full((119,), -1, dtype=torch.int64)
        index[list(self.species)] = torch.arange(len(self.species))
        self.register_buffer("species_index", index, persistent=False)

    def average_rotations(self, number: int) -> None:
        """Average over a fixed set of rotations of the grid, the identity first (:func:`averaging_rotations`).

        Costs ``number`` times the time and reduces the remaining dependence of the energy on
        orientation. Forces stay the exact gradient, because the average itself is differentiated.

        Raises:
            ValueError: For anything but a whole number of at least 1.
        """
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"the number of rotations must be a whole number of at least 1, got {number!r}")
        self.rotations = averaging_rotations(number, self.network.grid_group).to(self.rotations.device)

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid (see :meth:`Ponita.set_grid`).

        Raises:
            ValueError: For a grid that does not exist, or a network without orientations or with a grid of its own.
        """
        self.network.set_grid(num_ori)
        if num_ori != self.network.config.num_ori:
            logger.warning("num_ori=%d is not the grid of the training: energies and forces change with it", num_ori)

    @property
    def cutoff(self) -> float | None:
        """Å; None where all pairs of a molecule interact."""
        return self.network.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the network's weights."""
        return next(self.network.parameters()).device

    def check_species(self, atomic_numbers: NDArray[np.integer[Any]]) -> None:
        """Refuse elements that the network was never trained on.

        Raises:
            ValueError: Naming the first such atom and the known elements.
        """
        unknown = np.flatnonzero(~np.isin(atomic_numbers, self.species))
        if unknown.size:
            known = ", ".join(chemical_symbols[z] for z in self.species)
            z = int(atomic_numbers[unknown[0]])
            symbol = chemical_symbols[z] if 0 <= z < len(chemical_symbols) else "?"
            raise ValueError(
                f"atom {unknown[0]} is {symbol} (Z = {z}), which this potential does not know; it knows {known}. "
                "Train or fine-tune a potential on data with that element"
            )

    def species_of(self, graph: Graph) -> Tensor:
        """Index of each atom's element in :attr:`species`, shape (N,); −1 for an unknown one."""
        return self.species_index[graph["atomic_numbers"]]
