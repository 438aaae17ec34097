"""Check: errors of energies and forces on labelled frames."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import get_distances

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import Array, AuditTarget, evenly_spaced
from ponita_ff.data import Frame

__all__ = ["label_errors", "nearest_neighbour_distances"]


def label_errors(target: AuditTarget) -> CheckResult:
    """Measure mean absolute errors: overall, by element, and by the distance of an atom's nearest neighbour.

    Returns:
        Arrays ``energy`` and ``energy_label`` (frames,), eV/atom; ``forces`` and ``forces_label`` (atoms of all
        frames, 3), eV/Å; ``nearest`` (atoms of all frames,), Å; ``bin_centre``, Å, ``bin_mae``, eV/Å, and
        ``bin_atoms``, all (bins,).

    Raises:
        CheckSkipped: If there are no labelled frames.
    """
    frames, settings = target.frames, target.settings.labels
    if not frames:
        raise CheckSkipped("no labelled frames were given (--data FILE)")
    chosen = [frames[int(i)] for i in evenly_spaced(len(frames), settings.max_frames)]
    energies, forces = [], []
    for frame in chosen:
        atoms = target.attach(frame.to_atoms())
        energies.append(atoms.get_potential_energy() / len(frame))
        forces.append(atoms.get_forces())
    energy, energy_label = np.array(energies), np.array([frame.energy / len(frame) for frame in chosen])
    force, force_label = np.concatenate(forces), np.concatenate([frame.forces for frame in chosen])
    nearest = np.concatenate([nearest_neighbour_distances(frame) for frame in chosen])
    atom_errors = np.abs(force - force_label).mean(axis=1)
    energy_error = energy - energy_label
    centred_mae = float(np.abs(energy_error - energy_error.mean()).mean())
    measurements = [
        Measurement("energy MAE", float(np.abs(energy_error).mean()), "eV/atom", settings.energy_limit),
        Measurement("energy MAE after subtracting the mean error", centred_mae, "eV/atom"),
        Measurement("force MAE", float(atom_errors.mean()), "eV/Å", settings.force_limit),
        Measurement("force RMSE", float(np.sqrt(np.mean((force - force_label) ** 2))), "eV/Å"),
        *_by_element(np.concatenate([frame.numbers for frame in chosen]), atom_errors),
    ]
    arrays = {"energy": energy, "energy_label": energy_label, "forces": force, "forces_label": force_label}
    arrays |= {"nearest": nearest, **_by_distance(nearest, atom_errors, settings.bin_width)}
    return CheckResult(measurements, arrays, [f"{len(chosen)} of {len(frames)} frames, evenly spaced."])


def _by_element(numbers: Array, errors: Array) -> list[Measurement]:
    """Return the mean error of each element."""
    return [
        Measurement(f"force MAE of {chemical_symbols[z]}", float(errors[numbers == z].mean()), "eV/Å")
        for z in np.unique(numbers)
    ]


def _by_distance(nearest: Array, errors: Array, width: float) -> dict[str, Array]:
    """Return mean errors in bins of the nearest-neighbour distance, without empty bins."""
    finite = np.isfinite(nearest)
    number = np.floor(nearest[finite] / width).astype(np.int64)
    filled = np.unique(number)
    means = np.array([errors[finite][number == each].mean() for each in filled])
    counts = np.array([float(np.sum(number == each)) for each in filled])
    return {"bin_centre": np.array((filled + 0.5) * width), "bin_mae": means, "bin_atoms": counts}


def nearest_neighbour_distances(frame: Frame) -> Array:
    """Return the distance of every atom to the nearest other atom or periodic image, Å, shape (n,).

    Infinite for a single atom that is not periodic.
    """
    _, distances = get_distances(frame.positions, cell=frame.cell, pbc=frame.pbc)
    vectors = frame.cell[frame.pbc]
    np.fill_diagonal(distances, np.linalg.norm(vectors, axis=1).min() if len(vectors) else np.inf)
    return np.asarray(distances.min(axis=1))
