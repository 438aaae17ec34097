"""Labelling a list of frames: in parallel, and going on after any stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.stress import full_3x3_to_voigt_6_stress
from tqdm import tqdm

from ponita_ff.files import write_atomically
from ponita_ff.labels.journal import Journal, frame_key, journal_path
from ponita_ff.labels.methods import LabelError, Method, find_method
from ponita_ff.labels.pool import Crew, Lent, Pool
from ponita_ff.labels.structures import read_structures
from ponita_ff.labels.worker import Failure, Outcome, Task

__all__ = ["Labelling", "label_frames"]

_LOG = logging.getLogger(__name__)

#: How often a frame is tried again, alone, after a process has died with it.
RETRIES = 2


@dataclass(frozen=True)
class Labelling:
    """What came of labelling.

    Attributes:
        path: The labelled file; None where no frame could be labelled.
        journal: The journal, with every outcome.
        frames: How many frames were given.
        labelled: How many have labels now.
        failures: Why a frame has none, by its number in the input.
    """

    path: Path | None
    journal: Path
    frames: int
    labelled: int
    failures: Mapping[int, str]


def label_frames(
    frames: str | Path | Iterable[Atoms],
    method: str | Callable[[], BaseCalculator],
    out: str | Path,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    name: str | None = None,
    executor: Executor | None = None,
    processes: int = 1,
    threads_per_process: int = 1,
    retry_failed: bool = False,
    progress: bool = False,
) -> Labelling:
    """Energies (eV), forces (eV/Å) and, of crystals where the method gives it, stress (eV/Å³) of frames.

    Every outcome goes at once into a journal beside ``out``; the same call again labels only what is missing. At the
    end ``out`` is written in the input's order, without the frames that failed. ``read_frames`` reads it.

    Calculators see elements, positions, cell and periodicity, nothing else, and every frame has a new one.

    Args:
        frames: A file that ASE reads (labelled or not), or ASE's atoms.
        method: ``gfn2-xtb``, ``gfn1-xtb`` or ``ipea1-xtb`` (tblite; crystals at the Γ point); ``functional/basis``,
            e.g. ``pbe/def2-svp`` (PySCF, molecules); the Python path of an ASE calculator, e.g.
            ``ase.calculators.emt:EMT``; or what makes an ASE calculator when called: a class or function of a module,
            or a ``functools.partial`` of one.
        out: Extended XYZ to write, ``.xyz`` or ``.extxyz``.
        charge: Of every frame, in elementary charges; 0 if None. For methods of tblite and PySCF.
        multiplicity: 2S + 1 of every frame; 1 if None. For methods of tblite and PySCF.
        name: What the labels are to say made them, if ``method`` is called and its own name does not do.
        executor: Labels the frames instead of processes of this call, on other machines if it likes: anything with
            ``submit`` that gives futures, such as Dask's ``Client.get_executor()``. It is not shut down, and its
            threads are its own affair.
        processes: How many of our own, without ``executor``. They are spawned: in a script the call must stand under
            ``if __name__ == "__main__":``.
        threads_per_process: For programs that know OpenMP, OpenBLAS or MKL.
        retry_failed: Try the frames again that failed in an earlier call.
        progress: Show a progress bar.

    Raises:
        LabelError: A mistake in the call, frames that the method cannot do by their nature, a journal that belongs to
            something else, or processes that cannot be started.
        OSError: Something cannot be read or written.
        KeyboardInterrupt: Ctrl-C; the journal is whole, the processes are gone.
    """
    path = _checked_out(out, frames)
    chosen = find_method(method, charge=charge, multiplicity=multiplicity, name=name)
    if processes < 1 or threads_per_process < 1:
        raise LabelError(f"processes={processes}, threads_per_process={threads_per_process}: expected at least 1")
    prefix, structures = read_structures(frames)
    chosen.check((f"{prefix}frame {number}", atoms) for number, atoms in enumerate(structures))
    keys = [frame_key(atoms, chosen) for atoms in structures]
    with Journal(journal_path(path), chosen, keys, prefix.removesuffix(", ") or "the frames given") as journal:
        missing = journal.missing(retry_failed=retry_failed)
        crew = Pool(chosen, processes, threads_per_process) if executor is None else Lent(executor, chosen)
        done = len(keys) - len(missing)
        bar = tqdm(total=len(keys), initial=done, unit="frame", desc="labelling", disable=not progress)
        with bar, crew:
            _label(journal, (_task(structures, number, prefix, chosen) for number in missing), crew, bar)
        if journal.labelled:
            write_atomically(path, lambda temporary: _write(temporary, structures, journal, chosen))
        written = path if journal.labelled else None
        return Labelling(written, journal.path, len(keys), len(journal.labelled), journal.failures)


def _checked_out(out: str | Path, frames: object) -> Path:
    path = Path(out)
    if path.suffix.lower() not in (".xyz", ".extxyz"):
        raise LabelError(f"--out {path}: labels are written as extended XYZ; name the file .xyz or .extxyz")
    if isinstance(frames, str | Path) and path.exists() and Path(frames).exists() and path.samefile(frames):
        raise LabelError(f"--out {path} is the file of the frames itself; choose another")
    if path.exists() and not journal_path(path).exists():
        raise LabelError(f"--out {path} is there already, without a journal of labels; choose another, or move it away")
    return path


def _task(structures: Sequence[Atoms], number: int, prefix: str, method: Method) -> Task:
    atoms = structures[number]
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return Task(number, f"{prefix}frame {number}", bare, method)


def _label(journal: Journal, tasks: Iterator[Task], crew: Crew, bar: tqdm[Any]) -> None:
    failed = 0
    for task, outcome in _outcomes(tasks, crew):
        journal.add(task.number, outcome)
        failed += isinstance(outcome, Failure)
        bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
        bar.update()


def _outcomes(tasks: Iterator[Task], crew: Crew) -> Iterator[tuple[Task, Outcome]]:
    """Every task with its outcome, in the order in which they are done.

    When a process dies, nobody knows which of the tasks under way was its death. They are tried again at the end, one
    after the other with none beside it: what dies then does so by its own fault, or is too large even alone.
    """
    suspects = []
    for task, outcome in _together(tasks, crew):
        if outcome is None:
            suspects.append(task)
        else:
            yield task, outcome
    for task in suspects:
        yield task, _alone(task, crew)


def _together(tasks: Iterator[Task], crew: Crew) -> Iterator[tuple[Task, Outcome | None]]:
    """Tasks as many at a time as the crew takes; None where a process died."""
    flying: dict[Future[Outcome], Task] = {}
    task = next(tasks, None)
    while task is not None or flying:
        while task is not None and len(flying) < crew.in_flight:
            future = crew.submit(task)
            if future is None:
                break
            flying[future] = task
            task = next(tasks, None)
        wait(flying, return_when=FIRST_COMPLETED)
        # Until none is left: all that died together must be seen to before anything is sent to new processes.
        while done := [future for future in flying if future.done()]:
            for future in done:
                landed = flying.pop(future)
                yield landed, _outcome(landed, future, crew)


def _alone(task: Task, crew: Crew) -> Outcome:
    for _ in range(RETRIES):
        task = task.died()
        while (future := crew.submit(task)) is None:
            pass
        outcome = _outcome(task, future, crew)
        if outcome is not None:
            return outcome
    reason = f"the process died that calculated it, {RETRIES + 1} times (its memory may not suffice)"
    return Failure(f"{task.source}: {reason}")


def _outcome(task: Task, future: Future[Outcome], crew: Crew) -> Outcome | None:
    """What a future holds, waiting for it if need be; None if the process died."""
    try:
        return future.result()
    except Exception as error:
        if crew.died(error):
            return None
        # Never the program's fault, which `label` would have caught: a lost connection, an executor that is gone.
        raise LabelError(
            f"{task.source}: the executor gave no result ({type(error).__name__}: {error}); the labels so far are "
            "kept, and the same call with a new executor goes on"
        ) from error


def _write(path: Path, structures: Sequence[Atoms], journal: Journal, method: Method) -> None:
    numbers = journal.labelled
    stress = _stress_to_write(numbers, journal)
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            write_extxyz(file, _labelled(structures[number], number, journal, method, stress))


def _stress_to_write(numbers: Sequence[int], journal: Journal) -> bool:
    """All frames or none, as readers want it."""
    without = [number for number in numbers if journal.labels(number).stress is None]
    if 0 < len(without) < len(numbers):
        _LOG.warning(
            "frame %d and %d others have no stress, so that the file is written without any; the journal has them",
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
    results: dict[str, Any] = {"energy": labels.energy, "forces": labels.forces}
    if stress:
        assert labels.stress is not None
        results["stress"] = full_3x3_to_voigt_6_stress(labels.stress)
    result.calc = SinglePointCalculator(result, **results)
    return result
