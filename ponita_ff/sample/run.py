"""Sampling: molecules become tasks, tasks frames, and the frames that differ enough a file."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz

from ponita_ff.files import write_atomically, write_json, write_text
from ponita_ff.labels.methods import AniMethod, CalculatorMethod, Method
from ponita_ff.labels.pool import ExternalExecutor, ProcessPool, outcomes
from ponita_ff.labels.run import check_size
from ponita_ff.outputs import check_outputs, claim_folder
from ponita_ff.progress import progress_bar
from ponita_ff.sample.journal import Journal
from ponita_ff.sample.methods import method_for, method_of
from ponita_ff.sample.molecules import HoldOut, Molecule, Skipped, in_order, read_molecules, usable
from ponita_ff.sample.settings import CLUSTER_KINDS, MOLECULE_KINDS, SampleError, SampleSettings
from ponita_ff.sample.worker import Made, SampleTask

__all__ = ["FRAMES_FILE", "JOURNAL_FILE", "REPORT_FILE", "SKIPPED_FILE", "SampleResult", "sample"]

_LOG = logging.getLogger(__name__)

#: In the folder of a run.
FRAMES_FILE, JOURNAL_FILE, REPORT_FILE, SKIPPED_FILE = "frames.xyz", "journal.jsonl", "report.json", "skipped.csv"

#: Random clusters are drawn so often for each one that is wanted; small lists of molecules have few.
_ATTEMPTS = 20


@dataclass(frozen=True)
class SampleResult:
    """The result of a sampling run.

    Attributes:
        path: The file of frames, extended XYZ.
        report: The report, JSON.
        frames: Number of frames in the file.
        kinds: Numbers of frames by kind.
        tasks: Number of molecules and clusters.
        failures: Why a molecule or cluster has no frames, by its name.
        skipped: What of the input was not used, and why.
    """

    path: Path
    report: Path
    frames: int
    kinds: Mapping[str, int]
    tasks: int
    failures: Mapping[str, str]
    skipped: Sequence[Skipped]


def sample(
    molecules: str | Path | Atoms | Iterable[str | Path | Atoms],
    settings: SampleSettings | Mapping[str, Any],
    out: str | Path,
    *,
    executor: Executor | None = None,
    processes: int = 1,
    threads_per_process: int = 1,
    retry_failed: bool = False,
    force: bool = False,
    progress: bool = False,
) -> SampleResult:
    """Make diverse frames of molecules, without labels.

    What is finished is written at once to a journal in ``out``; the same call again goes on. The frames depend on
    molecules, settings and seed, not on the number of processes or on interruptions. The file of frames is written at
    the end, in the order of the molecules. Each frame says in its comment line what it was made of and how:
    ``smiles``, ``source``, ``kind``, ``conformer``, ``temperature``, …, ``seed``, ``sampling_method``.

    Args:
        molecules: Files of SMILES (``.smi``) or structures, SMILES strings, or ASE's atoms; one or several. Files of
            structures may say ``charge``, ``multiplicity`` and ``smiles`` in their comment lines.
        settings: See `SampleSettings`; as a mapping by dotted name, or nested.
        out: Folder of the run, new or stopped.
        executor: Executor that does the tasks, as for `ponita_ff.labels.label_frames`; without one, processes of this
            call do.
        processes: Number of worker processes without ``executor``. They are spawned: in a script, the call must be
            under ``if __name__ == "__main__":``.
        threads_per_process: Threads of each process, for programs that use OpenMP, OpenBLAS or MKL.
        retry_failed: Whether to try tasks again that failed in an earlier call.
        force: Overwrite results in ``out`` even if they may be somebody else's.
        progress: Whether to show a progress bar.

    Returns:
        Paths and counts.

    Raises:
        SampleError: Wrong settings; molecules that cannot be read; none that may be used; no frame at the end; a folder
            of a run with other settings; RDKit is missing.
        OutputError: A result would overwrite an input, or a file of somebody else.
        LockedError: Another run is using the folder.
        LabelError: The method's program is missing or cannot be set up; a structure file that cannot be read.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C. The journal is complete up to then, and worker processes have ended.
    """
    if not isinstance(settings, SampleSettings):
        settings = SampleSettings.make({}, settings)
    if executor is None:
        check_size(processes, threads_per_process)
    inputs = [molecules] if isinstance(molecules, str | Path | Atoms) else list(molecules)
    folder = Path(out)
    results = (FRAMES_FILE, REPORT_FILE, SKIPPED_FILE)
    paths = [None if isinstance(given, Atoms) else given for given in inputs]
    check_outputs([folder / name for name in results], paths, force)
    method = method_for(settings.method)
    tasks, skipped = _tasks(inputs, settings, method)
    with (
        claim_folder(folder, results),
        Journal(folder / JOURNAL_FILE, _identity(settings, method)) as journal,
    ):
        missing = [task for task in tasks if not journal.is_done(task.key, retry_failed=retry_failed)]
        pool = (
            ProcessPool(method, min(processes, max(len(missing), 1)), threads_per_process)
            if executor is None
            else ExternalExecutor(executor, method)
        )
        done = len(tasks) - len(missing)
        bar = progress_bar(progress, total=len(tasks), initial=done, unit="molecule", desc="sampling")
        with bar, pool:
            for task, outcome in outcomes(iter(missing), pool):
                journal.add(task.key, outcome)
                bar.update()
        return _write_results(folder, tasks, skipped, settings, journal)


def _identity(settings: SampleSettings, method: Method) -> dict[str, Any]:
    """All that frames depend on, besides molecules."""
    identity = settings.model_dump(mode="json", exclude={"selection"})
    if hashes := method.weights_sha256():
        identity["weights_sha256"] = list(hashes)
        if isinstance(method, AniMethod):
            identity["method"] = method.name  # its weights may have moved to another folder
    return identity


# ----------------------------------------------------------------------------------------------------- tasks


def _tasks(
    inputs: Sequence[str | Path | Atoms], settings: SampleSettings, method: Method
) -> tuple[list[SampleTask], list[Skipped]]:
    """Molecules one by one, then clusters; and what is not used."""
    entries, skipped = read_molecules(inputs)
    hold_out = HoldOut(settings.hold_out)
    used, refused = usable(entries, settings.molecules, hold_out, method)
    skipped += refused
    if not used:
        shown = "; ".join(f"{one.source}: {one.reason}" for one in skipped[:3])
        raise SampleError(f"there is no molecule to use ({shown or 'the input is empty'})")
    singles = [entry for entry in used if len(entry) == 1]
    clusters = [entry for entry in used if len(entry) > 1]
    groups: list[tuple[Molecule, ...]] = []
    if not set(settings.kinds).isdisjoint(MOLECULE_KINDS):
        groups += singles
    if not set(settings.kinds).isdisjoint(CLUSTER_KINDS):
        groups += clusters + _random_clusters([entry[0] for entry in singles], clusters, settings, hold_out)
    if not groups:
        raise SampleError(f"kinds {', '.join(settings.kinds)}: the input has nothing to make such frames of")
    odd = sum(any(one.charge or one.multiplicity > 1 for one in group) for group in groups)
    if odd and isinstance(method, CalculatorMethod):
        _LOG.warning("%d of %d are charged or open-shell, which %s is not told", odd, len(groups), method.name)
    tasks = []
    for number, group in enumerate(groups):
        charge = sum(molecule.charge for molecule in group)
        multiplicity = max(molecule.multiplicity for molecule in group)
        tasks.append(SampleTask(number, group, method_of(method, charge, multiplicity), settings))
    return tasks, skipped


def _random_clusters(
    molecules: Sequence[Molecule], given: Sequence[tuple[Molecule, ...]], settings: SampleSettings, hold_out: HoldOut
) -> list[tuple[Molecule, ...]]:
    """Clusters of closed-shell molecules, none twice; fewer than wanted where there are not so many."""
    candidates = [m for m in molecules if m.multiplicity == 1 and (m.structure is None or not m.structure.pbc.any())]
    wanted = round(settings.clusters.per_molecule * len(candidates))
    seed = hashlib.sha256(f"{settings.seed} clusters".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(seed, dtype="<u4"))
    known = {tuple(molecule.key for molecule in cluster) for cluster in given}
    found: list[tuple[Molecule, ...]] = []
    for _ in range(_ATTEMPTS * wanted):
        if len(found) == wanted:
            break
        size = settings.clusters.sizes[generator.integers(len(settings.clusters.sizes))]
        cluster = in_order(candidates[index] for index in generator.integers(len(candidates), size=size))
        key = tuple(molecule.key for molecule in cluster)
        heavy = sum(molecule.heavy_atoms for molecule in cluster)
        if key in known or heavy > settings.clusters.max_heavy_atoms or hold_out.forbids_cluster(cluster):
            continue
        known.add(key)
        found.append(cluster)
    return found


# --------------------------------------------------------------------------------------------------- results


def _write_results(
    folder: Path, tasks: Sequence[SampleTask], skipped: Sequence[Skipped], settings: SampleSettings, journal: Journal
) -> SampleResult:
    failures = {task.source: reason for task in tasks if (reason := journal.failure(task.key)) is not None}
    good = [task for task in tasks if journal.failure(task.key) is None]
    kept = _selected(good, settings, journal)
    counts = _Counts(settings, len(tasks), failures, skipped)
    write_text(folder / SKIPPED_FILE, _table(skipped))
    if good:
        write_atomically(folder / FRAMES_FILE, lambda path: _write_frames(path, good, kept, settings, journal, counts))
    report = folder / REPORT_FILE
    write_json(report, counts.report())
    if not good:
        raise SampleError(f"no frame could be made; see {report}. The first reason: {next(iter(failures.values()))}")
    number = sum(counts.kept.values())
    return SampleResult(folder / FRAMES_FILE, report, number, dict(counts.kept), len(tasks), failures, skipped)


def _selected(tasks: Sequence[SampleTask], settings: SampleSettings, journal: Journal) -> Mapping[str, set[int]] | None:
    """Indices of the frames of each task that are kept, by its key; None for all."""
    selection = settings.selection
    if selection.distance == 0 and selection.frames is None:
        return None
    from ponita_ff.sample.diversity import descriptors, farthest_first, shared_out  # loads torch

    groups: dict[tuple[int, ...], list[SampleTask]] = {}
    for task in tasks:
        numbers = tuple(sorted(number for molecule in task.molecules for number in molecule.numbers))
        groups.setdefault(numbers, []).append(task)
    orders: list[list[tuple[str, int]]] = []
    for group in groups.values():  # one at a time in memory
        names: list[tuple[str, int]] = []
        structures: list[Atoms] = []
        for task in group:
            made = journal.made(task.key)
            names += [(task.key, index) for index in range(len(made.frames))]
            structures += [_atoms(made, index) for index in range(len(made.frames))]
        selected, _ = farthest_first(descriptors(structures, selection), selection.distance)
        orders.append([names[number] for number in selected])
    kept: dict[str, set[int]] = {task.key: set() for task in tasks}
    for order, share in zip(orders, shared_out([len(order) for order in orders], selection.frames), strict=True):
        for key, index in order[:share]:
            kept[key].add(index)
    return kept


def _atoms(made: Made, index: int) -> Atoms:
    return Atoms(made.numbers, made.frames[index].positions, cell=made.cell if any(made.pbc) else None, pbc=made.pbc)


def _write_frames(
    path: Path,
    tasks: Sequence[SampleTask],
    kept: Mapping[str, set[int]] | None,
    settings: SampleSettings,
    journal: Journal,
    counts: _Counts,
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for task in tasks:
            made = journal.made(task.key)
            counts.add(task, made)
            for index, frame in enumerate(made.frames):
                if kept is not None and index not in kept[task.key]:
                    continue
                atoms = _atoms(made, index)
                atoms.info = _provenance(task, made, frame.info, settings)
                write_extxyz(file, atoms)
                counts.kept[str(frame.info["kind"])] += 1


def _provenance(task: SampleTask, made: Made, info: Mapping[str, Any], settings: SampleSettings) -> dict[str, Any]:
    found: dict[str, Any] = {} if task.smiles is None else {"smiles": task.smiles}
    found |= {
        "source": task.places,
        **info,
        "charge": sum(molecule.charge for molecule in task.molecules),
        "multiplicity": max(molecule.multiplicity for molecule in task.molecules),
        "seed": settings.seed,
        "sampling_method": task.method.name,
        "sampling_program": made.program,
    }
    # ASE writes backslashes as they are, and takes them for escapes when it reads them.
    return {key: value.replace("\\", "\\\\") if isinstance(value, str) else value for key, value in found.items()}


def _table(skipped: Sequence[Skipped]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["source", "molecule", "reason"])
    rows.writerows([one.source, one.name, one.reason] for one in skipped)
    return text.getvalue()


class _Counts:
    """What the report says."""

    def __init__(
        self, settings: SampleSettings, tasks: int, failures: Mapping[str, str], skipped: Sequence[Skipped]
    ) -> None:
        self.settings, self.tasks, self.failures, self.skipped = settings, tasks, failures, skipped
        self.made: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.ended: dict[str, dict[str, str]] = {}

    def add(self, task: SampleTask, made: Made) -> None:
        """Count what a task made."""
        self.made.update(str(frame.info["kind"]) for frame in made.frames)
        self.dropped.update(made.dropped)
        if made.ended:
            self.ended[task.source] = made.ended

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "molecules and clusters": self.tasks,
            "skipped": dict(Counter(one.reason for one in self.skipped)),
            "frames": sum(self.kept.values()),
            "frames by kind": dict(self.kept),
            "frames before selection": dict(self.made),
            "filtered out": dict(self.dropped),
            "ended early": self.ended,
            "failed": dict(self.failures),
        }
