"""Check: errors of energies and forces against labelled frames."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import get_distances

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.subject import Array, Subject, evenly, frame_atoms
from ponita_ff.data import Frame

__all__ = ["label_errors"]


def label_errors(subject: Subject) -> Outcome:
    """Mean absolute errors: overall, by element, and by the distance of an atom's nearest neighbour.

    Arrays: ``energy``, ``energy_label`` (frames,) eV/atom; ``forces``, ``forces_label`` (atoms of all frames, 3) eV/Å;
    ``nearest`` (atoms,) Å; ``bin_centre`` Å, ``bin_mae`` eV/Å and ``bin_atoms``, all (bins,).
    """
    frames, settings = subject.frames, subject.settings.labels
    if not frames:
        raise NotDone("no labelled frames were given (--data FILE)")
    chosen = [frames[int(i)] for i in evenly(len(frames), settings.max_frames)]
    energy, forces = [], []
    for frame in chosen:
        atoms = frame_atoms(frame, subject.calculator)
        energy.append(atoms.get_potential_energy() / len(frame))
        forces.append(atoms.get_forces())
    label = np.array([frame.energy / len(frame) for frame in chosen])
    error, joined = np.array(energy) - label, np.concatenate(forces)
    joined_label = np.concatenate([frame.forces for frame in chosen])
    each = np.abs(joined - joined_label).mean(axis=1)
    nearest = np.concatenate([nearest_neighbours(frame) for frame in chosen])
    numbers = np.concatenate([frame.numbers for frame in chosen])
    shifted = float(np.abs(error - error.mean()).mean())
    measures = [
        Measure("energy MAE", float(np.abs(error).mean()), "eV/atom", settings.energy_limit),
        Measure("energy MAE, mean difference taken off", shifted, "eV/atom"),
        Measure("force MAE", float(each.mean()), "eV/Å", settings.force_limit),
        Measure("force RMSE", float(np.sqrt(np.mean((joined - joined_label) ** 2))), "eV/Å"),
    ]
    for z in np.unique(numbers):
        measures.append(Measure(f"force MAE of {chemical_symbols[z]}", float(each[numbers == z].mean()), "eV/Å"))
    arrays = {"energy": np.array(energy), "energy_label": label, "forces": joined, "forces_label": joined_label}
    bins = _by_distance(nearest, each, settings.bin_width)
    note = f"{len(chosen)} of {len(frames)} frames, evenly spaced."
    return Outcome(measures, {**arrays, "nearest": nearest, **bins}, [note])


def _by_distance(nearest: Array, errors: Array, width: float) -> dict[str, Array]:
    """Mean errors in bins of distance; bins without atoms are left out."""
    finite = np.isfinite(nearest)
    number = np.floor(nearest[finite] / width).astype(np.int64)
    filled = np.unique(number)
    means = np.array([errors[finite][number == each].mean() for each in filled])
    counts = np.array([float(np.sum(number == each)) for each in filled])
    return {"bin_centre": np.array((filled + 0.5) * width), "bin_mae": means, "bin_atoms": counts}


def nearest_neighbours(frame: Frame) -> Array:
    """Distance of every atom to its nearest neighbour or image, Å, shape (n,); infinite for a lone atom."""
    _, distances = get_distances(frame.positions, cell=frame.cell, pbc=frame.pbc)
    vectors = frame.cell[frame.pbc]
    np.fill_diagonal(distances, np.linalg.norm(vectors, axis=1).min() if len(vectors) else np.inf)
    return np.asarray(distances.min(axis=1))
