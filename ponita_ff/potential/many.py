"""Predictions for many structures, many in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.backends.predictor import Predictor
from ponita_ff.energy.model import EnergyModel
from ponita_ff.structure.graph import COINCIDENT, Graph, graphs_of, name_structure, shortest_edge

__all__ = ["Predictions", "predict_many"]


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


def predict_many(
    model: EnergyModel,
    predict: Predictor,
    structures: Sequence[Atoms],
    forces: bool = True,
    stress: bool = False,
    max_atoms: int | None = None,
) -> Predictions:
    """See :meth:`ponita_ff.potential.potential.Potential.evaluate`."""
    if isinstance(structures, Atoms):
        raise TypeError("evaluate takes a sequence of structures: put a single one into a list")
    _check_structures(model, structures, stress)
    energies = np.empty(len(structures))
    force: list[NDArray[np.float64]] = [np.empty(0)] * len(structures)
    tensors = np.empty((len(structures), 3, 3))
    max_batch_atoms = predict.max_batch_atoms if max_atoms is None else max_atoms
    for indices, graph in graphs_of(structures, model.cutoff, max_batch_atoms):
        _refuse_coincident(graph, indices)
        energy, _, *rest = (value.cpu().numpy() for value in predict(graph.to(model.device), stress, forces))
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


def _check_structures(model: EnergyModel, structures: Sequence[Atoms], stress: bool) -> None:
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
    if np.isin(numbers, model.species).all() and np.isfinite(positions).all():
        return
    for index, atoms in enumerate(structures):
        with name_structure(index):
            model.check_species(atoms.numbers)
            bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
            if bad.size:
                raise ValueError(f"position of atom {bad[0]} is {atoms.positions[bad[0]].tolist()}, not finite")


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
