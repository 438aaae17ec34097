"""Labelling of a list of frames, in parallel and resumable."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.stress import full_3x3_to_voigt_6_stress

from ponita_ff.files import write_atomically
from ponita_ff.labels.journal import Journal, journal_path
from ponita_ff.labels.methods import LabelError, Method, find_method
from ponita_ff.labels.pool import ExternalExecutor, ProcessPool, WorkerPool, outcomes
from ponita_ff.labels.results import Labels
from ponita_ff.labels.structures import read_structures
from ponita_ff.labels.worker import Failure, FrameToLabel, Task
from ponita_ff.outputs import check_outputs
from ponita_ff.progress import progress_bar

__all__ = ["LabelResult", "check_size", "disagreed_path", "label_frames"]

_LOG = logging.getLogger(__name__)

#: Largest number of processes, and of threads of each: this many for any machine, and this many for each core.
_MANY, _MANY_PER_CORE = 64, 4


@dataclass(frozen=True)
class LabelResult:
    """The result of a labelling run.

    Attributes:
        path: The labelled file; None if it would have no frame.
        journal: The journal, with every outcome.
        frames: Number of frames in the input.
        labelled: Number of frames in the labelled file.
        failures: Reasons of failed frames, by number in the input.
        disagreed: Number of frames about which the members of an ensemble disagree too much.
        disagreed_path: The file of these, without labels; None if there are none.
    """

    path: Path | None
    journal: Path
    frames: int
    labelled: int
    failures: Mapping[int, str]
    disagreed: int = 0
    disagreed_path: Path | None = None


def label_frames(
    frames: str | Path | Iterable[Atoms],
    method: str | Callable[[], BaseCalculator] | Method,
    out: str | Path,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    name: str | None = None,
    executor: Executor | None = None,
    processes: int = 1,
    threads_per_process: int = 1,
    max_spread: float | None = None,
    retry_failed: bool = False,
    force: bool = False,
    progress: bool = False,
) -> LabelResult:
    """Label frames with energy (eV), forces (eV/Å) and, for crystals if the method has it, stress (eV/Å³).

    Every outcome is written at once to a journal beside ``out``; the same call again labels only missing frames. At the
    end ``out`` is written in input order, without failed frames. ``read_frames`` reads it.

    A new calculator is made for every frame. It sees elements, positions, cell and periodicity only. An ensemble
    (``ani-2x``) gets many frames at once, and its labels have spreads: ``energy_spread`` (eV) in the comment line and
    ``forces_spread`` (eV/Å) for each atom; see `Labels`.

    Args:
        frames: A file that ASE reads (labelled or not), or ASE's atoms.
        method: ``gfn2-xtb``, ``gfn1-xtb`` or ``ipea1-xtb`` (tblite; crystals at the Γ point); ``functional/basis``,
            e.g. ``pbe/def2-svp`` (PySCF, molecules); the Python path of an ASE calculator, e.g.
            ``ase.calculators.emt:EMT``; ``ani-2x`` or ``ani-2x{weights: FOLDER}``; a factory of an ASE calculator: a
            class or function of a module, or a ``functools.partial`` of one; or a `Method` of your own.
        out: The file to write, ``.xyz`` or ``.extxyz`` (extended XYZ).
        charge: Charge of every frame in elementary charges; None is 0. For methods of tblite and PySCF.
        multiplicity: 2S + 1 of every frame; None is 1. For methods of tblite and PySCF.
        name: Name of the method to record with the labels, if ``method`` is a factory; None: the name of the factory.
        executor: Executor that labels the frames, on other machines if it uses some, instead of processes of this
            call: anything with ``submit`` that returns futures, such as Dask's ``Client.get_executor()``. It is not
            shut down, and its number of threads is not changed.
        processes: Number of worker processes without ``executor``. They are spawned: in a script, the call must be
            under ``if __name__ == "__main__":``.
        threads_per_process: Threads of each process, for programs that use OpenMP, OpenBLAS or MKL.
        max_spread: eV/Å, of an ensemble. Frames with an atom whose ``forces_spread`` is larger are left out of ``out``
            and written, without labels, to `disagreed_path`. Another call may give another value; nothing is labelled
            anew for it.
        retry_failed: Whether to try frames again that failed in an earlier call.
        force: Overwrite ``out`` even if it has no journal and may be somebody else's.
        progress: Whether to show a progress bar.

    Returns:
        Paths and counts of the labelled file.

    Raises:
        OutputError: ``out`` is the file of the frames, or exists without a journal of labels.
        LockedError: Another run is using the journal.
        LabelError: Invalid arguments; frames that the method cannot calculate; a journal of another method or of other
            frames; processes that cannot be started.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C. The journal is complete up to then, and worker processes have ended.
    """
    path = _check_output_path(out, frames, force, max_spread is not None)
    label_method = find_method(method, charge=charge, multiplicity=multiplicity, name=name)
    _check_max_spread(max_spread, label_method)
    if executor is None:
        check_size(processes, threads_per_process)
    prefix, structures = read_structures(frames)
    label_method.check((f"{prefix}frame {number}", atoms) for number, atoms in enumerate(structures))
    given = prefix.removesuffix(", ") or "the frames given"
    with Journal(journal_path(path), label_method, structures, given) as journal:
        missing = journal.missing(retry_failed=retry_failed)
        batches = _batches(missing, structures, label_method.batch_atoms, processes)
        pool = (
            ProcessPool(label_method, min(processes, max(len(batches), 1)), threads_per_process)
            if executor is None
            else ExternalExecutor(executor, label_method)
        )
        total, done = len(structures), len(structures) - len(missing)
        bar = progress_bar(progress, total=total, initial=done, unit="frame", desc="labelling")
        with bar, pool:
            _label(journal, (_task(structures, batch, prefix, label_method) for batch in batches), pool, bar)
        return _write_results(path, structures, journal, label_method, max_spread)


def disagreed_path(out: Path) -> Path:
    """Path of the file of the frames about which an ensemble disagrees, in the same folder as the labelled file."""
    return out.with_name(f"{out.stem}.disagreed{out.suffix}")


def _check_output_path(out: str | Path, frames: object, force: bool, disagreed: bool) -> Path:
    path = Path(out)
    if path.suffix.lower() not in (".xyz", ".extxyz"):
        raise LabelError(f"--out {path}: labels are written as extended XYZ; name the file .xyz or .extxyz")
    inputs = [frames] if isinstance(frames, str | Path) else []
    outputs = [path, journal_path(path)] + ([disagreed_path(path)] if disagreed else [])
    check_outputs(outputs, inputs, force, lambda _: journal_path(path).is_file())
    return path


def _check_max_spread(max_spread: float | None, method: Method) -> None:
    if max_spread is None:
        return
    if not (math.isfinite(max_spread) and max_spread > 0):
        raise LabelError(f"--max-spread {max_spread}: expected a finite number of eV/Å above 0")
    if not method.ensemble:
        raise LabelError(f"--max-spread is for ensembles such as ani-2x; {method.name} has one value for each label")


def check_size(processes: int, threads: int) -> None:
    """Refuse numbers of processes and threads that would bring a machine down.

    Raises:
        LabelError: Naming the option.
    """
    limit = max(_MANY, _MANY_PER_CORE * (os.cpu_count() or 1))
    for name, number in (("processes", processes), ("threads-per-process", threads)):
        if not 1 <= number <= limit:
            raise LabelError(
                f"--{name} {number}: expected 1 to {limit} on this machine with {os.cpu_count()} cores; for other "
                "machines, the function in Python takes an executor"
            )


def _batches(numbers: Sequence[int], structures: Sequence[Atoms], atoms: int, processes: int) -> list[list[int]]:
    """Numbers of the frames of each task.

    Frames of similar size are together, so that little is filled up. There are enough batches for all processes.

    Args:
        numbers: Of the frames to label.
        structures: All frames.
        atoms: Largest number of atoms of a batch of several frames; 0 for batches of one, in the order given.
        processes: Number of processes.
    """
    if atoms == 0:
        return [[number] for number in numbers]
    limit = min(atoms, math.ceil(sum(len(structures[number]) for number in numbers) / processes))
    batches: list[list[int]] = []
    for number in sorted(numbers, key=lambda number: len(structures[number])):
        if batches and (len(batches[-1]) + 1) * len(structures[number]) <= limit:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _task(structures: Sequence[Atoms], batch: Sequence[int], prefix: str, method: Method) -> Task:
    return Task(tuple(_frame(structures[number], number, prefix) for number in batch), method)


def _frame(atoms: Atoms, number: int, prefix: str) -> FrameToLabel:
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return FrameToLabel(number, f"{prefix}frame {number}", bare)


def _label(journal: Journal, tasks: Iterator[Task], pool: WorkerPool, bar: Any) -> None:
    failed = 0
    for task, done in outcomes(tasks, pool):
        # A task whose process died is one frame by then, and has one failure.
        for frame, outcome in zip(task.frames, repeat(done) if isinstance(done, Failure) else done, strict=False):
            journal.add(frame.number, outcome)
            failed += isinstance(outcome, Failure)
            bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
            bar.update()


def _write_results(
    path: Path, structures: Sequence[Atoms], journal: Journal, method: Method, max_spread: float | None
) -> LabelResult:
    """Write the labelled file and, with a largest spread, that of the frames that are above it."""
    labelled, disagreed = journal.labelled, []
    if max_spread is not None:
        disagreed = [number for number in labelled if _largest_spread(journal.labels(number)) > max_spread]
        labelled = sorted(set(labelled) - set(disagreed))
        others = disagreed_path(path)
        _write_or_remove(others, disagreed, lambda temporary: _write_bare(temporary, disagreed, structures))
    if labelled or disagreed:
        _write_or_remove(path, labelled, lambda temporary: _write(temporary, labelled, structures, journal, method))
    return LabelResult(
        path if labelled else None,
        journal.path,
        len(structures),
        len(labelled),
        journal.failures,
        len(disagreed),
        disagreed_path(path) if disagreed else None,
    )


def _write_or_remove(path: Path, numbers: Sequence[int], write: Callable[[Path], None]) -> None:
    """Write a file; where it would have no frames, remove that of an earlier call with another largest spread."""
    if numbers:
        write_atomically(path, write)
    else:
        path.unlink(missing_ok=True)


def _largest_spread(labels: Labels) -> float:
    assert labels.forces_spread is not None
    return float(labels.forces_spread.max())


def _write_bare(path: Path, numbers: Sequence[int], structures: Sequence[Atoms]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            atoms = structures[number].copy()
            atoms.info["source_frame"] = number
            write_extxyz(file, atoms)


def _write(path: Path, numbers: Sequence[int], structures: Sequence[Atoms], journal: Journal, method: Method) -> None:
    stress = _all_have_stress(numbers, journal)
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            write_extxyz(file, _labelled(structures[number], number, journal, method, stress))


def _all_have_stress(numbers: Sequence[int], journal: Journal) -> bool:
    """Whether all frames have a stress; readers want it in all frames of a file or in none."""
    without = [number for number in numbers if journal.labels(number).stress is None]
    if 0 < len(without) < len(numbers):
        _LOG.warning(
            "frame %d and %d others have no stress, so that the file is written without stresses; the journal has them",
            without[0],
            len(without) - 1,
        )
    return not without


def _labelled(atoms: Atoms, number: int, journal: Journal, method: Method, stress: bool) -> Atoms:
    labels = journal.labels(number)
    result = atoms.copy()
    result.info |= {"method": method.name, "program": labels.program, "source_frame": number}
    for key, value in (("charge", method.charge), ("multiplicity", method.multiplicity)):
        result.info.pop(key, None)
        if value is not None:
            result.info[key] = value
    result.info |= {"energy_unit": "eV", "length_unit": "Angstrom"}
    if labels.forces_spread is not None:
        result.info["energy_spread"] = labels.energy_spread
        result.set_array("forces_spread", labels.forces_spread)
    results: dict[str, Any] = {"energy": labels.energy, "forces": labels.forces}
    if stress:
        assert labels.stress is not None
        results["stress"] = full_3x3_to_voigt_6_stress(labels.stress)
    result.calc = SinglePointCalculator(result, **results)
    return result
