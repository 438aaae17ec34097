"""Selection of frames to label that differ from each other and from labelled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

__all__ = ["descriptor", "select_farthest"]

#: Å, added to distances before they are inverted, so that close contacts do not dominate.
_DISTANCE_OFFSET = 0.5


def descriptor(atoms: Atoms) -> NDArray[np.float64]:
    """1/(r + 0.5 Å) of every pair of atoms, shape (n (n − 1)/2,), which is invariant to translation and rotation.

    It is not invariant to the order of atoms, and compares frames of one structure only. Distances in periodic
    directions are those to the nearest image.
    """
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    values: NDArray[np.float64] = 1.0 / (distances[np.triu_indices(len(atoms), 1)] + _DISTANCE_OFFSET)
    return values


def select_farthest(
    candidates: Sequence[Atoms], labelled: Sequence[Atoms], number: int, weights: NDArray[np.float64] | None = None
) -> list[int]:
    """Select frames one after the other, each the farthest from the frames selected before and from labelled ones.

    Farthest-point sampling (Gonzalez, Theor. Comput. Sci. 38, 293 (1985)); the distance is that of the descriptors
    times a weight.

    Args:
        candidates: Frames to select from.
        labelled: Frames with labels. Those of other elements or another number of atoms than a candidate's are ignored
            for it.
        number: Largest number of frames to select.
        weights: Weight of each candidate, positive, shape (candidates,); None: all 1.

    Returns:
        Indices of the selected candidates, in order of selection.
    """
    weights = np.ones(len(candidates)) if weights is None else weights
    descriptors = [descriptor(atoms) for atoms in candidates]
    elements = [atoms.numbers.tobytes() for atoms in candidates]
    # Of each candidate to the nearest labelled or selected frame; a large value until there is one.
    distances = np.full(len(candidates), 1e3)

    def update_distances(frame_elements: bytes, frame_descriptor: NDArray[np.float64]) -> None:
        for index in range(len(candidates)):
            if elements[index] == frame_elements:
                distances[index] = min(distances[index], np.linalg.norm(descriptors[index] - frame_descriptor))

    for atoms in labelled:
        update_distances(atoms.numbers.tobytes(), descriptor(atoms))
    selected: list[int] = []
    while len(selected) < min(number, len(candidates)):
        scores = distances * weights
        scores[selected] = -1.0
        best = int(scores.argmax())
        selected.append(best)
        update_distances(elements[best], descriptors[best])
    return selected
