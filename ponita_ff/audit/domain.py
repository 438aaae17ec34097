"""Check: does the calculator stay where its labelled frames are?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.settings import DomainSettings
from ponita_ff.audit.subject import Array, Subject, evenly, frame_atoms

__all__ = ["Domain", "environments", "training_domain"]

#: Radial functions per element of a neighbour.
_RADIAL = 16


def environments(atoms: Atoms, elements: Sequence[int], cutoff: float) -> Array:
    """Radial symmetry functions of every atom: Σ_j exp(−(r_ij − r_k)² / 2w²) f_c(r_ij) for each element of j.

    G2 of Behler 2011, doi:10.1063/1.3553717, with 16 equally spaced centres r_k, w their spacing, and a cosine cutoff.

    Args:
        atoms: The structure.
        elements: Atomic numbers of neighbours that count.
        cutoff: Å.

    Returns:
        Shape (n, elements · 16).
    """
    i, j, r = neighbor_list("ijd", atoms, cutoff)
    centres = np.linspace(0.5, cutoff, _RADIAL)
    width = centres[1] - centres[0]
    values = np.exp(-0.5 * ((r[:, None] - centres) / width) ** 2) * (0.5 + 0.5 * np.cos(np.pi * r / cutoff))[:, None]
    found = np.zeros((len(atoms), len(elements), _RADIAL))
    for column, element in enumerate(elements):
        mine = atoms.numbers[j] == element
        np.add.at(found[:, column], i[mine], values[mine])
    return found.reshape(len(atoms), -1)


def _nearest(points: Array, others: Array, same_frame: Array | None = None) -> Array:
    """Distance of each of ``points`` to the nearest of ``others``; pairs in one frame do not count."""
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    if same_frame is not None:
        squares = np.where(same_frame, np.inf, squares)
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0.0)))


@dataclass(frozen=True)
class Domain:
    """The range of a set of frames, in the space of atomic environments.

    A structure's distance is that of its farthest atom to the nearest atom of the same element in the frames, in units
    of what ``quantile`` of the frames have from the other frames: 1 is the edge.

    Attributes:
        points: Environments in the frames by atomic number.
        elements: Atomic numbers in the frames.
        edge: The unit.
        cutoff: Å.
    """

    points: dict[int, Array]
    elements: tuple[int, ...]
    edge: float
    cutoff: float

    @classmethod
    def of(cls, frames: Sequence[Atoms], settings: DomainSettings) -> Domain:
        """The range of at least three frames.

        Raises:
            NotDone: For fewer, or frames that are all the same.
        """
        if len(frames) < 3:
            raise NotDone("a range needs at least three labelled frames")
        elements = tuple(sorted({int(z) for atoms in frames for z in atoms.numbers}))
        rows = np.concatenate([environments(atoms, elements, settings.cutoff) for atoms in frames])
        numbers = np.concatenate([atoms.numbers for atoms in frames])
        frame = np.repeat(np.arange(len(frames)), [len(atoms) for atoms in frames])
        far = np.zeros(len(frames))
        for z in elements:
            mine, owner = rows[numbers == z], frame[numbers == z]
            nearest = np.array(
                [_nearest(row[None], mine, owner[None] == o)[0] for row, o in zip(mine, owner, strict=True)]
            )
            np.maximum.at(far, owner, nearest)
        finite = far[np.isfinite(far)]
        edge = float(np.quantile(finite, settings.quantile)) if len(finite) else 0.0
        if edge <= 0:
            raise NotDone("the labelled frames do not differ from each other")
        return cls({z: rows[numbers == z] for z in elements}, elements, edge, settings.cutoff)

    def distance(self, atoms: Atoms) -> float:
        """Of a structure; infinite for an element that is not in the frames."""
        if not set(atoms.numbers.tolist()) <= set(self.elements):
            return float("inf")
        rows = environments(atoms, self.elements, self.cutoff)
        found = [_nearest(rows[atoms.numbers == z], self.points[int(z)]).max() for z in np.unique(atoms.numbers)]
        return float(max(found)) / self.edge


def _committee_std(subject: Subject, structures: Sequence[Atoms]) -> Array | None:
    """Largest norm of ``forces_std`` over the atoms of each structure, eV/Å; None for no committee."""
    found = []
    for atoms in structures:
        copy = subject.attach(atoms)
        copy.get_forces()
        spread = getattr(subject.calculator, "results", {}).get("forces_std")
        if spread is None:
            return None
        found.append(np.linalg.norm(np.asarray(spread), axis=-1).max())
    return np.array(found)


def training_domain(subject: Subject) -> Outcome:
    """Distance of the structure, and of what the calculator's own dynamics visit, from the labelled frames.

    Arrays: ``limit``; ``structure``; ``frames_edge`` 1; one array per temperature of the NVT runs with the distance of
    every snapshot, in units of the frames' range. For committees ``std …`` with the largest ``forces_std`` in eV/Å.
    """
    settings = subject.settings.domain
    if not subject.frames:
        raise NotDone("no labelled frames were given (--data FILE)")
    frames = [frame_atoms(subject.frames[int(i)], None) for i in evenly(len(subject.frames), settings.max_frames)]
    domain = Domain.of(frames, settings)
    missing = sorted(set(subject.structure.numbers.tolist()) - set(domain.elements))
    if missing:
        names = ", ".join(chemical_symbols[z] for z in missing)
        structure = Measure(
            "structure from the frames", float("inf"), "ranges", settings.limit, note=f"no {names} there"
        )
        return Outcome([structure], notes=[f"The labelled frames hold no {names}."])
    distance = domain.distance(subject.structure)
    measures = [Measure("structure from the frames", distance, "ranges", settings.limit)]
    arrays: dict[str, object] = {"limit": settings.limit, "structure": distance}
    notes = [f"Range of {len(frames)} frames; {settings.quantile:.0%} of them lie within 1 of the others."]
    std = _committee_std(subject, frames[:: max(1, len(frames) // 50)])
    edge = None if std is None else float(np.quantile(std, settings.quantile))
    for temperature, snapshots in subject.snapshots.items():
        limit = settings.outside_limit if temperature <= subject.settings.temperature else None
        name = f"part of the NVT run at {temperature:g} K outside"
        if not snapshots:
            measures.append(Measure(name, None, "", limit, note="the run broke before its first frame"))
            continue
        found = np.array([domain.distance(atoms) for atoms in snapshots])
        arrays[f"{temperature:g} K"] = found
        measures.append(Measure(name, float((found > 1).mean()), "", limit))
        if edge is not None:
            spread = _committee_std(subject, snapshots)
            assert spread is not None
            arrays[f"std {temperature:g} K"] = spread
            part = float((spread > edge).mean())
            measures.append(Measure(f"part at {temperature:g} K with a committee spread beyond the frames'", part, ""))
    if not subject.snapshots:
        notes.append("No NVT run was done: only the structure was looked at.")
    if edge is not None:
        notes.append(
            f"Committee: {settings.quantile:.0%} of the frames have a spread of the forces below {edge:.3g} eV/Å."
        )
    return Outcome(measures, arrays, notes)
