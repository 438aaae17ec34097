"""Which frames differ enough from each other: farthest-point selection among frames of one composition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.sample.settings import SelectionSettings
from ponita_ff.structure.graph import build_graph, edge_vectors
from ponita_ff.structure.symmetry_functions import radial_symmetry_functions

__all__ = ["descriptor", "farthest_first", "shared_out"]


def descriptor(atoms: Atoms, settings: SelectionSettings) -> NDArray[np.float64]:
    """Radial symmetry functions of all atoms, each function in ascending order over the atoms of an element.

    It does not depend on translation, rotation or the order of the atoms. Norms of differences are root mean squares
    over the atoms.

    Args:
        atoms: A structure.
        settings: Cutoff and number of functions.

    Returns:
        Flat, of the same length for structures of the same composition.
    """
    elements = sorted(set(atoms.numbers.tolist()))
    graph = build_graph(atoms.numbers, atoms.positions, settings.cutoff, atoms.cell.array, atoms.pbc)
    vectors = edge_vectors(graph["positions"], graph["offsets"], graph["neighbours"], graph["reverse"])
    species = torch.searchsorted(torch.tensor(elements), graph["atomic_numbers"].long())
    values = radial_symmetry_functions(
        torch.linalg.vector_norm(vectors, dim=-1),
        species[graph["neighbours"]],
        len(elements),
        settings.cutoff,
        settings.functions,
    )
    ordered = [values[species == s].sort(0).values.flatten() for s in range(len(elements))]
    return np.asarray(torch.cat(ordered).double().numpy() / np.sqrt(len(atoms)))


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
    nearest = np.full(len(descriptors), np.inf)
    while len(order) < len(descriptors):
        best = int(nearest.argmax())
        if nearest[best] < distance:
            break
        order.append(best)
        gaps.append(float(nearest[best]))
        nearest = np.minimum(nearest, np.linalg.norm(descriptors - descriptors[best], axis=1))
        nearest[order] = -1.0
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
