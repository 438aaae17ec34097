"""A potential: energy, forces and stress of a graph. The only place that differentiates for predictions."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.backends import Predictor
from ponita_ff.graph import COINCIDENT, Graph, edge_vectors, graphs_of, name_structure, shortest_edge
from ponita_ff.model import ExactModule, Network, Ponita
from ponita_ff.orientations import averaging_rotations, orientation_grid
from ponita_ff.readout import ZBL, reference_vector, sum_over_structures

__all__ = ["Potential", "Prediction", "Predictions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """Energies in eV (float64), forces in eV/Å, stress in eV/Å³ with ASE's sign.

    Attributes:
        energy: Total energy of each structure, shape (B,).
        energies: Atomic energies, shape (N,), float64; they sum to ``energy``.
        forces: −dE/dx, shape (N, 3), or None when not asked for.
        stress: dE/dε / volume, shape (B, 3, 3), symmetric, or None when not asked for.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions for many structures, in eV, eV/Å and eV/Å³ with ASE's sign.

    Attributes:
        energies: Total energy of each structure, shape (n,).
        forces: Forces of each structure, n arrays of shape (atoms, 3), or None when not asked for.
        stress: Shape (n, 3, 3), or None when not asked for.
    """

    energies: NDArray[np.float64]
    forces: list[NDArray[np.float64]] | None = None
    stress: NDArray[np.float64] | None = None


class Potential(ExactModule):
    """Network, scale, reference energies and optional ZBL repulsion, in eV and Å.

    E_i = scale · network_i + reference[species_i] + ZBL_i; reference energies are added in float64 whatever the
    network's dtype, because float32 would round a molecule's thousands of eV to half a meV.

    Args:
        network: Gives atomic energies.
        species: Atomic numbers that it knows, ascending; their order is the network's species order.
        reference_energies: eV by atomic number.
        scale: eV per unit of network output.
        zbl_cutoff: Å; None for no ZBL term.
        metadata: JSON-able facts that travel in the file: units, training data, errors, where references came from.
    """

    exact = ("reference_energies", "rotations")

    def __init__(
        self,
        network: Network,
        species: Sequence[int],
        reference_energies: Mapping[int, float],
        scale: float = 1.0,
        zbl_cutoff: float | None = None,
        metadata: Mapping[str, Any] | None = None,
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
        self.metadata: dict[str, Any] = dict(metadata or {})
        #: Where it was read from; a package lies beside it. None for one made in memory.
        self.file: Path | None = None
        self._predictor: tuple[Any, Predictor, Any] | None = None
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

        Costs ``number`` times the time and brings down what the grid leaves of the energy's dependence on how a
        molecule is turned. Forces stay the exact gradient, because the average itself is differentiated.

        Raises:
            ValueError: For anything but a whole number of at least 1.
        """
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"the number of rotations must be a whole number of at least 1, got {number!r}")
        group = ""
        if isinstance(self.network, Ponita) and self.network.config.num_ori:
            group = orientation_grid(len(self.network.orientations)).group
        self.rotations = averaging_rotations(number, group).to(self.rotations.device)

    def predictor(self, backend: str = "auto") -> Predictor:
        """Predictions of this potential as it is now, by the chosen backend (see :class:`Predictor`).

        Made once for the same weights, grid and rotations: native kernels take up to a second to set up.

        Raises:
            ValueError: For a backend that does not exist.
        """
        state = [*self.parameters(), *self.buffers()]
        key = (backend, self.scale, self.device, self.dtype, *((id(t), t._version) for t in state))
        if self._predictor is None or self._predictor[0] != key:
            # The tensors go with the key: an address may come again, a living tensor's cannot.
            self._predictor = (key, Predictor(self, backend), state)
        return self._predictor[1]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the predictor, which is this object's own."""
        return {**self.__dict__, "_predictor": None}

    def clone(self) -> Potential:
        """An independent copy, in eval mode, without gradients of weights."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid (see :meth:`Ponita.set_grid`).

        Raises:
            ValueError: For a grid that does not exist, or a network without orientations or with a grid of its own.
        """
        if not isinstance(self.network, Ponita):
            raise ValueError("this potential's network is bound to the orientation grid in its file")
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

    def interaction_energies(self, graph: Graph, positions: Tensor, offsets: Tensor, fused: bool = False) -> Tensor:
        """Atomic energies without the references, shape (N,), eV, in the network's dtype; differentiable."""
        species = self.species_index[graph.atomic_numbers]
        vectors = edge_vectors(positions, offsets, graph.neighbours, graph.reverse)
        # Differences are taken in float64 and rounded after: unwrapped molecules may be far from the origin.
        turned = [vectors @ rotation for rotation in self.rotations] if len(self.rotations) > 1 else [vectors]
        networks = [self.network(graph, species, v.to(self.dtype), fused=fused) for v in turned]
        energies: Tensor = sum(networks[1:], start=networks[0]) * (self.scale / len(networks))
        vectors = vectors.to(self.dtype)
        if self.zbl is not None:
            energies = energies + self.zbl(species, graph.neighbours, vectors.square().sum(-1).sqrt())
        return energies

    def differentiate(
        self,
        graph: Graph,
        forces: bool = True,
        stress: bool = False,
        create_graph: bool = False,
        fused: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Interaction energies (N,) in the network's dtype, forces (N, 3) and stress (B, 3, 3) in float64.

        Stress is the derivative with respect to a symmetric strain of positions and cell, over the volume (Knuth et
        al., Comput. Phys. Commun. 190, 33 (2015)).
        """
        with torch.enable_grad():
            positions, offsets, inputs = self._displaced(graph, forces, stress)
            energies = self.interaction_energies(graph, positions, offsets, fused)
            if not inputs:
                return energies, None, None
            gradients = list(torch.autograd.grad(energies.sum(), inputs, create_graph=create_graph))
        force = -gradients.pop(0) if forces else None
        if not stress:
            return energies, force, None
        volume = torch.linalg.det(graph.cell).abs()
        return energies, force, gradients.pop(0) / volume[:, None, None]

    @staticmethod
    def _displaced(graph: Graph, forces: bool, stress: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Positions (N, 3), offsets (N, M, 3) and what they can be differentiated by, in the order of the arguments.

        That is the positions themselves and a strain of each structure (B, 3, 3), which is zero.
        """
        positions, offsets, inputs = graph.positions, graph.offsets, []
        if forces:
            positions = positions.detach().requires_grad_(True)
            inputs.append(positions)
        if not stress:
            return positions, offsets, inputs
        number = graph.cell.shape[0]
        strain = torch.zeros(number, 3, 3, dtype=positions.dtype, device=positions.device, requires_grad=True)
        inputs.append(strain)
        per_atom = (0.5 * (strain + strain.transpose(-1, -2)))[graph.batch]
        moved = positions + (per_atom @ positions.unsqueeze(-1)).squeeze(-1)
        return moved, offsets + (per_atom.unsqueeze(1) @ offsets.unsqueeze(-1)).squeeze(-1), inputs

    def predict(self, graph: Graph, forces: bool, stress: bool, fused: bool = False) -> tuple[Tensor, ...]:
        """Total energies (B,), atomic energies (N,), then forces (N, 3) and stress (B, 3, 3) as asked for; detached."""
        energies, force, tensor = self.differentiate(graph, forces, stress, fused=fused)
        atomic = energies.detach().double() + self.reference_energies[self.species_index[graph.atomic_numbers]]
        total = sum_over_structures(atomic, graph.batch, graph.cell.shape[0])
        return total, atomic, *(value.detach() for value in (force, tensor) if value is not None)

    def repulsion(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """The ZBL term alone: energies (N,), gradient (N, 3), derivative by a strain (B, 3, 3); float64, eV and Å.

        For graphs on the CPU; only the few pairs within its cutoff are worked on.
        """
        if self.zbl is None:
            raise ValueError("this potential has no ZBL term")
        positions, neighbours = graph["positions"].detach().numpy(), graph["neighbours"].numpy()
        vectors = positions[neighbours] - positions[:, None] + graph["offsets"].numpy()
        squared = np.einsum("imk,imk->im", vectors, vectors)
        receivers, slots = np.nonzero(squared < self.zbl.cutoff**2)
        senders, bonds = neighbours[receivers, slots], vectors[receivers, slots]
        energies, gradient = np.zeros(len(positions)), np.zeros((len(positions), 3))
        strain = np.zeros((len(graph["cell"]), 3, 3))
        if len(receivers):
            charges, distance = graph["atomic_numbers"].numpy().astype(np.float64), np.sqrt(squared[receivers, slots])
            energy, slope = self.zbl.pair_terms(charges[receivers], charges[senders], distance)
            # Every pair comes twice, once from either end: each gets half of the energy and all of its own gradient.
            slopes = (slope / distance)[:, None] * bonds
            np.add.at(energies, receivers, 0.5 * energy)
            np.subtract.at(gradient, receivers, slopes)
            # Symmetric, since the force is along the bond.
            np.add.at(strain, graph["batch"].numpy()[receivers], 0.5 * slopes[:, :, None] * bonds[:, None, :])
        return torch.from_numpy(energies), torch.from_numpy(gradient), torch.from_numpy(strain)

    def evaluate(
        self,
        structures: Sequence[Atoms],
        forces: bool = True,
        stress: bool = False,
        max_atoms: int | None = None,
        backend: str = "auto",
    ) -> Predictions:
        """Predict many structures, many in one pass: replicas, frames of a trajectory, candidates.

        Args:
            structures: Molecules and crystals of any sizes, mixed as they come.
            forces: Whether forces are wanted.
            stress: Whether stress is wanted; every structure must then be periodic in all directions.
            max_atoms: Atoms in one pass (a larger structure passes alone); bounds the memory. None: what suits the
                backend.
            backend: See :class:`ponita_ff.backends.Predictor`.

        Raises:
            ValueError: For a structure that cannot be calculated; the message begins with its number in the sequence.
            TypeError: For a single structure instead of a sequence.
        """
        if isinstance(structures, Atoms):
            raise TypeError("evaluate takes a sequence of structures: put a single one into a list")
        predict = self.predictor(backend)
        self._check_structures(structures, stress)
        energies = np.empty(len(structures))
        force: list[NDArray[np.float64]] = [np.empty(0)] * len(structures)
        tensors = np.empty((len(structures), 3, 3))
        pass_atoms = predict.pass_atoms if max_atoms is None else max_atoms
        for indices, graph in graphs_of(structures, self.cutoff, pass_atoms):
            _refuse_coincident(graph, indices)
            energy, _, *rest = (value.cpu().numpy() for value in predict(graph.to(self.device), stress, forces))
            energies[indices] = energy
            if forces:
                ends = np.cumsum([len(structures[index]) for index in indices])
                for index, values in zip(indices, np.split(rest.pop(0), ends[:-1]), strict=True):
                    force[index] = values
            if stress:
                tensors[indices] = rest.pop(0)
        finite = np.isfinite(energies)
        if forces:
            finite &= np.array([np.isfinite(values).all() for values in force], dtype=bool)
        if not finite.all():
            raise ValueError(
                f"structure {finite.argmin()}: energy or forces are not finite: it is far outside anything the "
                "potential was trained on"
            )
        return Predictions(energies, force if forces else None, tensors if stress else None)

    def _check_structures(self, structures: Sequence[Atoms], stress: bool) -> None:
        """Refuse structures that cannot be calculated, all at once where there is nothing to refuse."""
        for index, atoms in enumerate(structures):
            if len(atoms) == 0:
                raise ValueError(f"structure {index} is empty")
            if stress and not atoms.pbc.all():
                raise ValueError(
                    f"structure {index}: stress needs a cell that is periodic in all directions, but pbc is {atoms.pbc}"
                )
        if not structures:
            return
        numbers = np.concatenate([atoms.numbers for atoms in structures])
        positions = np.concatenate([atoms.positions for atoms in structures])
        if np.isin(numbers, self.species).all() and np.isfinite(positions).all():
            return
        for index, atoms in enumerate(structures):
            with name_structure(index):
                self.check_species(atoms.numbers)
                bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
                if bad.size:
                    raise ValueError(f"position of atom {bad[0]} is {atoms.positions[bad[0]].tolist()}, not finite")

    def forward(self, graph: Graph, forces: bool = True, stress: bool = False) -> Prediction:
        """Predict, detached from autograd.

        Args:
            graph: One structure or a batch, on the potential's device; all its elements known.
            forces: Whether forces are wanted.
            stress: Whether stress is wanted; every structure then needs a cell with a volume.
        """
        with torch.set_grad_enabled(forces or stress):
            energy, energies, *rest = self.predict(graph, forces, stress)
        return Prediction(energy, energies, rest.pop(0) if forces else None, rest.pop(0) if stress else None)


def _refuse_coincident(graph: Graph, indices: Sequence[int]) -> None:
    """Refuse atoms in one place in a batch of the structures with these numbers."""
    distance, first, second = shortest_edge(graph)
    if distance < COINCIDENT:
        place = int(graph.batch[first])
        start = int((graph.batch < place).sum())
        raise ValueError(
            f"structure {indices[place]}: atoms {first - start} and {second - start} are in one place "
            f"({distance:.2g} Å apart)"
        )
