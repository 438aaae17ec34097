"""Systems on which both neighbour lists are tried, numpy's and torch's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ponita_ff.structure.neighbours import NeighbourList, neighbour_list

__all__ = ["BOX", "GOOD", "PBCS", "Floats", "cutoffs_at_a_distance", "random_cell"]

Floats = NDArray[np.float64]
PBCS = list(itertools.product([False, True], repeat=3))

#: Positions and a cell with which nothing is wrong.
GOOD = np.arange(12.0).reshape(4, 3)
BOX = 5.0 * np.eye(3)


def random_cell(rng: np.random.Generator, low: float = 1.5, high: float = 9.0) -> Floats:
    """Triclinic, rotated, of either handedness, but never nearly flat."""
    while True:
        unit = rng.normal(size=(3, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        if abs(np.linalg.det(unit)) > 0.3:
            return unit * rng.uniform(low, high, size=(3, 1))


def cutoffs_at_a_distance(
    trials: int,
) -> Iterator[tuple[Floats, Floats, tuple[bool, ...], NeighbourList, int, float, float]]:
    """Pairs of atoms with cutoffs of a distance between them and 1 ulp to either side.

    Yields:
        Positions, cell, pbc, a longer list, one of its edges, that edge's length and the cutoff.
    """
    rng = np.random.default_rng(8)
    for trial in range(trials):
        pbc = PBCS[trial % 8]
        cell = random_cell(rng, 5.0, 9.0)
        positions = rng.uniform(-1, 2, size=(2, 3)) @ cell
        loose = neighbour_list(positions, 6.0, cell, pbc)
        if not len(loose.receivers):
            continue
        edge = int(rng.integers(len(loose.receivers)))
        # Not by numpy's norm: that is a dot product, which rounds once less on processors that fuse its operations.
        x, y, z = loose.vectors(positions, cell)[edge].tolist()
        distance = math.sqrt(x * x + y * y + z * z)
        for cutoff in (math.nextafter(distance, 0), distance, math.nextafter(distance, 9)):
            yield positions, cell, pbc, loose, edge, distance, cutoff
