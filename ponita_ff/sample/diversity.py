"""Which frames differ enough from each other: farthest-point selection among frames of one composition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.sample.settings import SelectionSettings
from ponita_ff.structure.graph import edge_vectors, graphs_of
from ponita_ff.structure.symmetry_functions import radial_symmetry_functions

__all__ = ["descriptors", "farthest_first", "shared_out"]


#: Atoms of structures whose symmetry functions are computed together.
_ATOMS_AT_ONCE = 2000


def descriptors(structures: Sequence[Atoms], settings: SelectionSettings) -> NDArray[np.float64]:
    """Radial symmetry functions of all atoms, each function in ascending order over the atoms of an element.

    They do not depend on translation, rotation or the order of the atoms. Norms of differences are root mean squares
    over the atoms.

    Args:
        structures: Of one composition.
        settings: Cutoff and number of functions.

    Returns:
        Shape (structures, d).
    """
    if not structures:
        return np.zeros((0, 0))
    size = len(structures[0])
    elements, counts = np.unique(structures[0].numbers, return_counts=True)
    found = np.empty((len(structures), size * len(elements) * settings.functions))
    for indices, graph in graphs_of(structures, settings.cutoff, _ATOMS_AT_ONCE):
        vectors = edge_vectors(graph["positions"], graph["offsets"], graph["neighbours"], graph["reverse"])
        species = torch.searchsorted(torch.from_numpy(elements), graph["atomic_numbers"])
        values = radial_symmetry_functions(
            torch.linalg.vector_norm(vectors, dim=-1),
            species[graph["neighbours"]],
            len(elements),
            settings.cutoff,
            settings.functions,
        ).reshape(len(indices), size, -1)
        by_element = species.reshape(len(indices), size).argsort(dim=1, stable=True)
        values = values.gather(1, by_element.unsqueeze(-1).expand_as(values))
        ordered = [part.sort(dim=1).values for part in values.split(counts.tolist(), dim=1)]
        found[indices] = torch.cat(ordered, dim=1).flatten(1).numpy() / np.sqrt(size)
    return found


def farthest_first(descriptors: NDArray[np.float64], distance: float) -> tuple[list[int], list[float]]:
    """Order frames so that each is the farthest from those before it (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5).

    Args:
        descriptors: Of all frames, shape (frames, d). The first frame comes first.
        distance: Frames nearer than this to one before them are left out.

    Returns:
        Indices of the frames, and the distance of each to those before it, descending; infinite for the first.
    """
    order: list[int] = []
    gaps: list[float] = []
    nearest = np.full(len(descriptors), np.inf)  # squares
    # About their mean, so that little is lost where squares of distances are differences of squares.
    points = descriptors - descriptors.mean(axis=0) if len(descriptors) else descriptors
    squares = np.sum(points**2, axis=1)
    while len(order) < len(points):
        best = int(nearest.argmax())
        if np.sqrt(nearest[best]) < distance:
            break
        order.append(best)
        gaps.append(float(np.sqrt(nearest[best])))
        to_best = squares + squares[best] - 2 * points @ points[best]
        nearest = np.minimum(nearest, np.maximum(to_best, 0.0))
        nearest[best] = -np.inf
    return order, gaps


def shared_out(counts: Sequence[int], total: int | None) -> list[int]:
    """Share a number of frames out among groups, the same for each as far as it has so many; earlier groups first.

    Args:
        counts: Frames that each group has.
        total: Frames in all; None for all that there are.
    """
    if total is None or total >= sum(counts):
        return list(counts)
    shares = [0] * len(counts)
    left = total
    while left:
        open_groups = [index for index, count in enumerate(counts) if shares[index] < count]
        each = max(1, left // len(open_groups))
        for index in open_groups[:left]:
            more = min(each, counts[index] - shares[index], left)
            shares[index] += more
            left -= more
    return shares
