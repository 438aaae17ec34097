"""Energies, forces and stresses of all structures in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError
from ponita_ff.data.structures import iter_structures
from ponita_ff.files import write_atomically
from ponita_ff.potential.domain_watch import domain_distances, domains_of, familiarity
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import package_versions
from ponita_ff.simulate.frames import as_traj_keeps_it, with_results
from ponita_ff.uncertainty import Calibration

__all__ = [
    "FORMATS",
    "PredictionError",
    "check_format",
    "is_prediction",
    "predict_frames",
    "read_structures",
    "write_structures",
]

#: Formats that hold all predictions, by suffix: ASE's names of them.
FORMATS = {".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "traj"}

#: Comment of every predicted structure: by which version.
_MARK = "predicted_by"

#: Structures that are given to the potentials at once; they make their own batches of these.
_CHUNK = 256


class PredictionError(ValueError):
    """A file or structure that cannot be used; the message names it."""


def read_structures(path: Path) -> list[Atoms]:
    """All structures of any file that ASE reads.

    Raises:
        PredictionError: For a file that is missing, empty or cannot be read.
    """
    try:
        frames = list(iter_structures(path))
    except DataError as error:
        raise PredictionError(str(error)) from error
    if not frames:
        raise PredictionError(f"{path}: there are no structures in it")
    return frames


def check_format(path: Path) -> str:
    """ASE's name of the format of a file that predictions are written to.

    Raises:
        PredictionError: For a suffix that is not in :data:`FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise PredictionError(f"{path}: give a file that ends in one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix]


def is_prediction(path: Path) -> bool:
    """Whether a file was written by :func:`write_structures` of this package's predictions."""
    try:
        first = ase.io.read(path, index=0, format=check_format(path), do_not_split_by_at_sign=True)
    except Exception:  # ASE's readers raise anything
        return False
    return isinstance(first, Atoms) and str(first.info.get(_MARK, "")).startswith("ponita-ff")


def write_structures(path: Path, frames: Sequence[Atoms]) -> None:
    """Write structures with their results, whole or not at all.

    Per-atom spread is ``arrays["forces_std"]`` when read from extended XYZ, and ``info["forces_std"]`` from ``.traj``.

    Raises:
        PredictionError: For a suffix that is not in :data:`FORMATS`.
        OSError: For a file that cannot be written.
    """
    kind = check_format(path)
    kept = [as_traj_keeps_it(frame) for frame in frames] if kind == "traj" else list(frames)
    write_atomically(path, lambda temporary: ase.io.write(temporary, kept, format=kind))


def predict_frames(
    members: Sequence[Potential],
    frames: Sequence[Atoms],
    backend: str = "auto",
    calibration: Calibration | None = None,
    progress: Callable[[int], object] | None = None,
    strict: bool = False,
) -> list[Atoms]:
    """Copies of structures with predicted energy (eV), forces (eV/Å) and, for full periodicity, stress (eV/Å³).

    Args:
        members: A potential, or a committee, whose mean is given; then ``info["energy_std"]`` (eV) and
            ``arrays["forces_std"]`` (n, 3), eV/Å, hold standard deviations over its members, calibrated if possible.
        frames: Any; other results than these, and constraints, are left behind.
        backend: See :class:`ponita_ff.backends.predictor.Predictor`.
        calibration: Of the committee.
        progress: Called with the number of structures done so far.
        strict: Refuse structures outside the training data. Where it is known, ``info["domain_distance"]`` says how far
            they are from it; 1 is the limit.

    Returns:
        The copies; ASE reads the results back from a file as those of a calculator.

    Raises:
        ValueError: For a calibration of other potentials.
        PredictionError: For a structure that cannot be calculated; the message begins with its number.
    """
    if calibration is not None:
        calibration.check_members(members)
    done: list[Atoms] = []
    for start in range(0, len(frames), _CHUNK):
        chunk = frames[start : start + _CHUNK]
        try:
            predicted = _predict(members, chunk, backend, calibration)
        except ValueError:
            _name_wrong_frame(members, chunk, start, backend)
            raise
        _add_distances(members, predicted, start, strict)
        done += predicted
        if progress is not None:
            progress(len(done))
    return done


def _predict(
    members: Sequence[Potential], frames: Sequence[Atoms], backend: str, calibration: Calibration | None
) -> list[Atoms]:
    """Predictions for frames that pass together: those with stress, then those without."""
    periodic = np.array([bool(atoms.pbc.all()) for atoms in frames], dtype=bool)
    results: list[Atoms | None] = [None] * len(frames)
    for stress in (True, False):
        places = np.flatnonzero(periodic == stress).tolist()
        chosen = [frames[place] for place in places]
        if not chosen:
            continue
        predictions = [member.evaluate(chosen, stress=stress, backend=backend) for member in members]
        energies = np.stack([p.energies for p in predictions])
        tensors = np.stack([p.stress for p in predictions if p.stress is not None]) if stress else None
        for k, place in enumerate(places):
            forces = np.stack([p.forces[k] for p in predictions if p.forces is not None])
            tensor = None if tensors is None else tensors[:, k].mean(axis=0)
            results[place] = _with_results(frames[place], energies[:, k], forces, tensor, calibration)
    return [atoms for atoms in results if atoms is not None]


def _add_distances(members: Sequence[Potential], frames: Sequence[Atoms], start: int, strict: bool) -> None:
    """Write to each structure how far it is from the training data."""
    distances = domain_distances(members, frames)
    if strict and (distances is None or len(domains_of(members)) < len(members)):
        raise PredictionError("strict: the potential's file holds no statistics of its training data")
    if distances is None:
        return
    if strict and distances.max() > 1:
        place = int((distances > 1).argmax())
        found = familiarity(members, frames[place])
        assert found is not None
        raise PredictionError(f"frame {start + place}: {found.reason}")
    for atoms, distance in zip(frames, distances, strict=True):
        atoms.info["domain_distance"] = float(distance)


def _with_results(
    atoms: Atoms,
    energies: NDArray[np.float64],
    forces: NDArray[np.float64],
    stress: NDArray[np.float64] | None,
    calibration: Calibration | None,
) -> Atoms:
    """A copy with the members' mean as results of a calculator, and their spread beside it."""
    results: dict[str, Any] = {"energy": float(energies.mean()), "forces": forces.mean(axis=0)}
    if stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    if len(energies) > 1:
        factors = (1.0, 1.0) if calibration is None else (calibration.energy, calibration.forces)
        results["energy_std"] = factors[0] * float(energies.std())
        results["forces_std"] = factors[1] * forces.std(axis=0)
    frame = with_results(atoms, results)
    frame.info[_MARK] = f"ponita-ff {package_versions().get('ponita-ff', '')}".strip()
    frame.set_constraint()
    return frame


def _name_wrong_frame(members: Sequence[Potential], frames: Sequence[Atoms], start: int, backend: str) -> None:
    """Find the structure that made a batch fail, and name it by its place in the file."""
    for place, atoms in enumerate(frames):
        try:
            _predict(members, [atoms], backend, None)
        except ValueError as error:
            reason = str(error).removeprefix("structure 0: ")
            raise PredictionError(f"frame {start + place}: {reason}") from error
