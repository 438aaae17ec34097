"""Which frames to label: those far from one another and from all that is labelled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

__all__ = ["descriptor", "farthest"]

#: Å added to distances before they are inverted, so that close contacts do not outweigh everything.
_SOFT = 0.5


def descriptor(atoms: Atoms) -> NDArray[np.float64]:
    """1/(r + 0.5 Å) of every pair of atoms, shape (n (n − 1)/2,): tells apart shapes of one molecule, not where it is.

    Atoms are compared one by one: it is for frames of one structure, in one order. Distances in periodic directions are
    those to the nearest image.
    """
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    values: NDArray[np.float64] = 1.0 / (distances[np.triu_indices(len(atoms), 1)] + _SOFT)
    return values


def farthest(
    candidates: Sequence[Atoms], known: Sequence[Atoms], number: int, weights: NDArray[np.float64] | None = None
) -> list[int]:
    """Frames chosen one after the other, each the farthest from those chosen before it and from the known ones.

    Farthest-point sampling (Gonzalez, Theor. Comput. Sci. 38, 293 (1985)), the distance times a weight.

    Args:
        candidates: To choose from.
        known: Labelled already; those of other elements or another number of atoms tell nothing of a candidate.
        number: How many, at most.
        weights: Of each candidate, above zero; None: all alike.

    Returns:
        Their numbers, in the order of choice.
    """
    weights = np.ones(len(candidates)) if weights is None else weights
    points = [descriptor(atoms) for atoms in candidates]
    kinds = [atoms.numbers.tobytes() for atoms in candidates]
    # As far as can be from anything until there is something to compare with.
    distance = np.full(len(candidates), 1e3)

    def approach(kind: bytes, point: NDArray[np.float64]) -> None:
        for index, (own, its) in enumerate(zip(points, kinds, strict=True)):
            if its == kind:
                distance[index] = min(distance[index], np.linalg.norm(own - point))

    for atoms in known:
        approach(atoms.numbers.tobytes(), descriptor(atoms))
    chosen: list[int] = []
    while len(chosen) < min(number, len(candidates)):
        score = distance * weights
        score[chosen] = -1.0
        best = int(score.argmax())
        chosen.append(best)
        approach(kinds[best], points[best])
    return chosen
