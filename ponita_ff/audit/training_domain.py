"""Check: the structure, and the dynamics of the calculator, stay within the domain of the labelled frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.settings import DomainSettings
from ponita_ff.audit.target import Array, AuditTarget, evenly_spaced

__all__ = ["TrainingDomain", "symmetry_functions", "training_domain"]

#: Radial functions for each element of the neighbours.
_RADIAL = 16

#: Frames that the spread of a committee is measured on.
_COMMITTEE_FRAMES = 50


def symmetry_functions(atoms: Atoms, elements: Sequence[int], cutoff: float) -> Array:
    """Return radial symmetry functions of every atom: Σ_j exp(−(r_ij − r_k)² / 2w²) f_c(r_ij) for each element of j.

    G2 of Behler 2011, doi:10.1063/1.3553717, with 16 equally spaced centres r_k, w their spacing, and a cosine cutoff.

    Args:
        atoms: The structure.
        elements: Atomic numbers of the neighbours that count.
        cutoff: Radius of the environment, Å.

    Returns:
        Shape (n, 16 elements).
    """
    i, j, r = neighbor_list("ijd", atoms, cutoff)
    centres = np.linspace(0.5, cutoff, _RADIAL)
    width = centres[1] - centres[0]
    values = np.exp(-0.5 * ((r[:, None] - centres) / width) ** 2) * (0.5 + 0.5 * np.cos(np.pi * r / cutoff))[:, None]
    functions = np.zeros((len(atoms), len(elements), _RADIAL))
    for column, element in enumerate(elements):
        of_element = atoms.numbers[j] == element
        np.add.at(functions[:, column], i[of_element], values[of_element])
    return functions.reshape(len(atoms), -1)


def _nearest_distances(points: Array, others: Array, excluded: Array | None = None) -> Array:
    """Return the distance of each point to the nearest of the others, shape (points,).

    Args:
        points: Shape (points, features).
        others: Shape (others, features).
        excluded: Pairs that do not count, shape (points, others), or broadcastable to it.
    """
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    if excluded is not None:
        squares = np.where(excluded, np.inf, squares)
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0.0)))


@dataclass(frozen=True)
class TrainingDomain:
    """Region that a set of frames covers in the space of symmetry functions.

    The distance of a structure is that of its farthest atom to the nearest atom of the same element in the frames. It
    is measured in units of the ``quantile`` of the frames' distances from each other: 1 is the edge of the domain.

    Attributes:
        points: Symmetry functions of the frames' atoms by atomic number, each of shape (atoms, features).
        elements: Atomic numbers that occur in the frames.
        edge: Unit of the distance.
        cutoff: Radius of the environments, Å.
    """

    points: dict[int, Array]
    elements: tuple[int, ...]
    edge: float
    cutoff: float

    @classmethod
    def from_frames(cls, frames: Sequence[Atoms], settings: DomainSettings) -> TrainingDomain:
        """Return the domain of at least three frames.

        Raises:
            CheckSkipped: For fewer than three frames, or frames that are all the same.
        """
        if len(frames) < 3:
            raise CheckSkipped("at least three labelled frames are needed")
        elements = tuple(sorted({int(z) for atoms in frames for z in atoms.numbers}))
        rows = np.concatenate([symmetry_functions(atoms, elements, settings.cutoff) for atoms in frames])
        numbers = np.concatenate([atoms.numbers for atoms in frames])
        owners = np.repeat(np.arange(len(frames)), [len(atoms) for atoms in frames])
        farthest = np.zeros(len(frames))
        for z in elements:
            points, owner = rows[numbers == z], owners[numbers == z]
            # Row by row: the matrix of all pairs may be too large for the memory.
            nearest = [
                _nearest_distances(point[None], points, owner[None] == own)[0]
                for point, own in zip(points, owner, strict=True)
            ]
            np.maximum.at(farthest, owner, nearest)
        finite = farthest[np.isfinite(farthest)]
        edge = float(np.quantile(finite, settings.quantile)) if len(finite) else 0.0
        if edge <= 0:
            raise CheckSkipped("the labelled frames do not differ from each other")
        return cls({z: rows[numbers == z] for z in elements}, elements, edge, settings.cutoff)

    def distance(self, atoms: Atoms) -> float:
        """Return the distance of a structure; infinite if it has an element that does not occur in the frames."""
        if not set(atoms.numbers.tolist()) <= set(self.elements):
            return float("inf")
        rows = symmetry_functions(atoms, self.elements, self.cutoff)
        distances = [
            _nearest_distances(rows[atoms.numbers == z], self.points[int(z)]).max() for z in np.unique(atoms.numbers)
        ]
        return float(max(distances)) / self.edge


def _committee_spread(target: AuditTarget, structures: Sequence[Atoms]) -> Array | None:
    """Return the largest norm of ``forces_std`` over the atoms of each structure, eV/Å; None without a committee."""
    spreads = []
    for atoms in structures:
        copy = target.attach(atoms)
        copy.get_forces()
        forces_std = getattr(target.calculator, "results", {}).get("forces_std")
        if forces_std is None:
            return None
        spreads.append(np.linalg.norm(np.asarray(forces_std), axis=-1).max())
    return np.array(spreads)


def training_domain(target: AuditTarget) -> CheckResult:
    """Measure the distance of the structure and of the NVT runs from the labelled frames.

    Returns:
        Arrays ``limit`` and ``structure``, and one array for each temperature of the NVT runs with the distances of all
        snapshots, in units of the domain's edge. For committees also ``std <temperature>`` with the largest
        ``forces_std`` of each snapshot, eV/Å.

    Raises:
        CheckSkipped: If there are no labelled frames, or too few; see `TrainingDomain.from_frames`.
    """
    settings = target.settings.domain
    if not target.frames:
        raise CheckSkipped("no labelled frames were given (--data FILE)")
    indices = evenly_spaced(len(target.frames), settings.max_frames)
    frames = [target.frames[int(i)].to_atoms() for i in indices]
    domain = TrainingDomain.from_frames(frames, settings)
    name = "distance of the structure from the frames"
    missing = sorted(set(target.structure.numbers.tolist()) - set(domain.elements))
    if missing:
        symbols = ", ".join(chemical_symbols[z] for z in missing)
        note = f"no {symbols} in the frames"
        measurement = Measurement(name, float("inf"), "edges", settings.limit, note=note)
        return CheckResult([measurement], notes=[f"The labelled frames contain no {symbols}."])
    distance = domain.distance(target.structure)
    measurements = [Measurement(name, distance, "edges", settings.limit)]
    arrays: dict[str, object] = {"limit": settings.limit, "structure": distance}
    notes = [f"{len(frames)} frames; {settings.quantile:.0%} of them lie within a distance of 1 from the others."]
    frame_spread = _committee_spread(target, frames[:: max(1, len(frames) // _COMMITTEE_FRAMES)])
    spread_edge = None if frame_spread is None else float(np.quantile(frame_spread, settings.quantile))
    for temperature, snapshots in target.snapshots.items():
        limit = settings.outside_limit if temperature <= target.settings.temperature else None
        name = f"fraction of the NVT run at {temperature:g} K outside"
        if not snapshots:
            measurements.append(Measurement(name, None, "", limit, note="the run ended before its first snapshot"))
            continue
        distances = np.array([domain.distance(atoms) for atoms in snapshots])
        arrays[f"{temperature:g} K"] = distances
        measurements.append(Measurement(name, float((distances > 1).mean()), "", limit))
        if spread_edge is not None:
            spread = _committee_spread(target, snapshots)
            assert spread is not None
            arrays[f"std {temperature:g} K"] = spread
            name = f"fraction at {temperature:g} K with a committee spread above that of the frames"
            measurements.append(Measurement(name, float((spread > spread_edge).mean()), ""))
    if not target.snapshots:
        notes.append("There was no NVT run: only the structure was compared.")
    if spread_edge is not None:
        notes.append(f"Committee: {settings.quantile:.0%} of the frames have a spread below {spread_edge:.3g} eV/Å.")
    return CheckResult(measurements, arrays, notes)
