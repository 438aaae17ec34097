"""Predictions of potentials for ASE's structures, and ways to build a potential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.potential.potential import Potential, Prediction
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

Array = NDArray[np.float64]

#: Makes a potential with random weights: conftest's ``make_potential``.
Make = Callable[..., Potential]

#: Ways to build and use a potential; each adds something to differentiate.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "PNITA": {"num_ori": 0},
    "ZBL": {"zbl_cutoff": 1.8},
    "finer grid": {"set_grid": 32},
    "rotations": {"average": 3, "num_layers": 1},
}


def build(make_potential: Make, set_grid: int | None = None, average: int | None = None, **kwargs: Any) -> Potential:
    """A potential of one of the variants."""
    potential = make_potential(**kwargs)
    if set_grid is not None:
        potential.set_grid(set_grid)
    if average is not None:
        potential.average_rotations(average)
    return potential


def graph_of(atoms: Atoms, cutoff: float = 4.0) -> Graph:
    return build_graph(atoms.numbers, atoms.positions, cutoff, np.asarray(atoms.cell), atoms.pbc)


def predict(potential: Potential, atoms: Atoms, stress: bool = False) -> Prediction:
    return potential(graph_of(atoms), stress=stress)


def energy(potential: Potential, atoms: Atoms) -> float:
    return float(predict(potential, atoms).energy)


def turned(atoms: Atoms, rotation: Array) -> Atoms:
    """The same atoms, and their cell, turned."""
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ rotation.T)
    copy.positions = atoms.positions @ rotation.T
    return copy


def random_rotations(number: int) -> list[Array]:
    """Rotations that no grid knows about."""
    quaternions = np.random.default_rng(0).normal(size=(number, 4))
    rotations = []
    for w, x, y, z in quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True):
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotations.append(np.eye(3) + 2 * w * cross + 2 * cross @ cross)
    return rotations


def spread(potential: Potential, atoms: Atoms, number: int = 16) -> float:
    """Peak to peak of the energy over random rotations, eV."""
    graphs = [graph_of(turned(atoms, rotation)) for rotation in random_rotations(number)]
    return float(np.ptp(potential(batch_graphs(graphs), forces=False).energy.numpy()))
