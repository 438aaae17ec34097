"""Check: the structure, and the dynamics of the calculator, stay within the domain of the labelled frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import Array, AuditTarget, evenly_spaced
from ponita_ff.potential.domain import RADIUS, TrainingDomain
from ponita_ff.structure.graph import graphs_of

__all__ = ["training_domain"]

#: Frames that the spread of a committee is measured on.
_COMMITTEE_FRAMES = 50

#: Share of the frames whose spread counts as that of the frames.
_SPREAD_QUANTILE = 0.99

#: Atoms of structures that are looked at together.
_BATCH_ATOMS = 1000


def _domain_of(frames: Sequence[Atoms]) -> TrainingDomain:
    """Return the domain of at least three frames.

    Raises:
        CheckSkipped: For fewer than three frames.
    """
    if len(frames) < 3:
        raise CheckSkipped("at least three labelled frames are needed")
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})
    return TrainingDomain.from_graphs((graph for _, graph in graphs_of(frames, RADIUS, _BATCH_ATOMS)), elements, RADIUS)


def _distances(domain: TrainingDomain, structures: Sequence[Atoms]) -> Array:
    """Return the distance of each structure from the frames, shape (structures,); 1 is the limit of the domain."""
    found = np.zeros(len(structures))
    for indices, graph in graphs_of(structures, RADIUS, _BATCH_ATOMS):
        found[indices] = domain.distances(graph)
    return found


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
        snapshots; 1 is the limit of the domain (`ponita_ff.potential.domain.TrainingDomain`). For committees also
        ``std <temperature>`` with the largest ``forces_std`` of each snapshot, eV/Å.

    Raises:
        CheckSkipped: If there are no labelled frames, or fewer than three.
    """
    settings = target.settings.domain
    if not target.frames:
        raise CheckSkipped("no labelled frames were given (--data FILE)")
    indices = evenly_spaced(len(target.frames), settings.max_frames)
    frames = [target.frames[int(i)].to_atoms() for i in indices]
    domain = _domain_of(frames)
    name = "distance of the structure from the frames"
    missing = sorted(set(target.structure.numbers.tolist()) - set(domain.species))
    if missing:
        symbols = ", ".join(chemical_symbols[z] for z in missing)
        note = f"no {symbols} in the frames"
        measurement = Measurement(name, float("inf"), "", settings.limit, note=note)
        return CheckResult([measurement], notes=[f"The labelled frames contain no {symbols}."])
    distance = float(_distances(domain, [target.structure])[0])
    measurements = [Measurement(name, distance, "", settings.limit)]
    arrays: dict[str, object] = {"limit": settings.limit, "structure": distance}
    notes = [f"{len(frames)} frames; each half of them lies within a distance of 1 from the other."]
    frame_spread = _committee_spread(target, frames[:: max(1, len(frames) // _COMMITTEE_FRAMES)])
    spread_edge = None if frame_spread is None else float(np.quantile(frame_spread, _SPREAD_QUANTILE))
    for temperature, snapshots in target.snapshots.items():
        limit = settings.outside_limit if temperature <= target.settings.temperature else None
        name = f"fraction of the NVT run at {temperature:g} K outside"
        if not snapshots:
            measurements.append(Measurement(name, None, "", limit, note="the run ended before its first snapshot"))
            continue
        distances = _distances(domain, snapshots)
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
        notes.append(f"Committee: {_SPREAD_QUANTILE:.0%} of the frames have a spread below {spread_edge:.3g} eV/Å.")
    return CheckResult(measurements, arrays, notes)
