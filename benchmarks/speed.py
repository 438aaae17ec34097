"""Measure speed and memory: the source of every speed figure in the README.

    python benchmarks/speed.py                     # everything; about a quarter of an hour on a quiet machine
    python benchmarks/speed.py --only latency,md   # some sections; results of the others are kept
    python benchmarks/speed.py --peers             # also other force fields that peers.py has installed
    python benchmarks/speed.py --peer-python mace=/path/to/python      # one in an environment of your own
    python benchmarks/speed.py --quick --out DIR   # to test the script; the figures mean nothing

Contenders take turns, round after round, each in a process of its own (``speed_worker.py``): other load on the machine
affects all of them alike, and one that runs out of memory does not affect the others. Other force fields run with the
Python of their own environments (``peers.py``). A figure is the median over all runs with the 10th and 90th percentile;
a ratio of two contenders is taken within each round. A plain matrix product is always measured, too: it shows what the
machine could do at that time. Results go to ``speed.json``, and from there to ``speed.md`` and ``speed.png``. Needs
Linux or macOS (only Linux limits the memory).
"""

from __future__ import annotations

import json
import logging
import os
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Inherited by the workers: on a busy machine, OpenMP's spinning threads slow torch many times over.
if "OMP_WAIT_POLICY" not in os.environ:  # as the command line does
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from pages import read_results, write_results
from peers import PEERS, find_interpreters
from speed_job import Job
from speed_report import write_reports
from tqdm import tqdm

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent

#: Sizes in atoms: full, and of a quick trial.
BOX_SIZES = ((100, 300, 1000, 3000, 10_000), (30,))
MEMORY_SIZES = ((300, 1000, 3000, 10_000), (30,))

#: Seconds of a contender's turn (full, quick); seconds of all its turns, after which it stops if it had MIN_ROUNDS.
TURN = (0.5, 0.05)
BUDGET = 30.0
MIN_ROUNDS = 2

#: Seconds of a first evaluation; slower contenders are not tried on larger boxes.
PATIENCE = 60.0

#: Seconds that one answer of a worker may take.
TIME_LIMIT = 600.0

#: Load average above which figures are not reliable.
BUSY = 0.5

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Attributes:
        rounds: Number of rounds.
        threads: Threads of each contender; None for torch's default.
        quick: Whether to use tiny networks and short runs.
        peers: Python interpreters of other force fields, by environment; empty to measure none.
        memory_gib: Address space for a box, GiB.
    """

    rounds: int
    threads: int | None = None
    quick: bool = False
    peers: Mapping[str, Path] = field(default_factory=dict)
    memory_gib: float = 8.0

    def pick(self, sizes: tuple[Any, Any]) -> Any:
        """Return the value for a full run or that for a quick one."""
        return sizes[self.quick]

    def command(self, sections: Sequence[str]) -> str:
        """Return the command that repeats the measurement."""
        words = ["python", "benchmarks/speed.py", "--only", ",".join(sections), "--rounds", str(self.rounds)]
        words += ["--threads", str(self.threads)] if self.threads else []
        words += [f"--memory-limit={self.memory_gib:g}"] if self.memory_gib != Settings.memory_gib else []
        words += ["--peers"] if self.peers else []
        words += ["--quick"] if self.quick else []
        return shlex.join(words)

    def python(self, job: Job) -> Path:
        """Return the Python interpreter of a job."""
        return self.peers[PEERS[job.form].environment] if job.form in PEERS else Path(sys.executable)


# ---------------------------------------------------------------------------------------------------------- workers


class WorkerError(RuntimeError):
    """A contender gave no result; the message is shown in the tables."""


class Contender:
    """A worker process and its results.

    Args:
        job: What the worker does.
        settings: Threads and interpreters.

    Attributes:
        rounds: Seconds of the runs of every round, in order.
        inside: Seconds of these that were spent in the network, if measured.
        failure: Why there are no results, or None.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job = job
        self.rounds: list[list[float]] = []
        self.inside: list[list[float]] = []
        self.failure: str | None = None
        self.prepared: dict[str, Any] = {}
        self.peak_bytes = 0
        self._spent = 0.0
        environment = dict(os.environ)
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        if job.form in PEERS:
            for name in ("PYTHONPATH", "PYTHONHOME"):  # packages of this environment do not belong in the other
                environment.pop(name, None)
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see __exit__
        self._process = subprocess.Popen(
            [str(settings.python(job)), str(HERE / "speed_worker.py"), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _ask(self, command: str) -> dict[str, Any]:
        """Send a command and return the worker's answer.

        Raises:
            WorkerError: If the worker has failed, has ended, or takes longer than TIME_LIMIT.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._end()) from None
        if not select.select([self._process.stdout], [], [], TIME_LIMIT)[0]:
            self._process.kill()
            raise WorkerError(f"longer than {TIME_LIMIT:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise WorkerError(answer["failure"])
        return answer

    def _end(self) -> str:
        """Describe how the process ended."""
        code = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or [""])[-1]
        limit = f" with {self.job.memory_gib:g} GiB" if self.job.memory_gib else ""
        if "bad_alloc" in last or "allocate memory" in last:
            return f"out of memory{limit.replace('with', 'at')}"
        return f"process ended{limit} with {f'signal {-code}' if code < 0 else f'status {code}'}: {last}"[:200]

    def _try(self, command: str) -> dict[str, Any] | None:
        """Return the answer; None after a failure, which is kept in `failure`."""
        if self.failure is not None:
            return None
        try:
            return self._ask(command)
        except WorkerError as error:
            self.failure = str(error)
            logger.warning("%s: %s", label(self.job), error)
            return None

    def greet(self) -> None:
        """Wait until the worker has imported everything."""
        self._try("hello")

    def facts(self) -> dict[str, Any]:
        """Return versions, hardware and settings of the worker."""
        return self._try("facts") or {}

    def prepare(self) -> None:
        """Make the contender and run it once."""
        self.prepared = self._try("prepare") or {}
        self.peak_bytes = self.prepared.get("peak_bytes", 0)

    def turn(self, seconds: float) -> None:
        """Run for about this many seconds, unless the budget is spent."""
        if self._spent > BUDGET and len(self.rounds) >= MIN_ROUNDS:
            return
        began = time.perf_counter()
        answer = self._try(f"turn {seconds}")
        self._spent += time.perf_counter() - began
        if answer is not None:
            self.rounds.append(answer["seconds"])
            self.inside.append(answer["inside"])

    def row(self, reference: Contender | None) -> Row:
        """Return the results."""
        job = self.job
        row: Row = {"task": job.task, "system": job.system, "form": job.form, "backend": job.backend}
        if self.failure is not None:
            return row | {"failure": self.failure}
        row |= self.prepared["facts"] | {name: self.prepared[name] for name in ("make_s", "first_s")}
        row["peak_bytes"] = self.peak_bytes
        if self.rounds:
            row |= {"seconds": spread(np.concatenate(self.rounds)), "rounds": len(self.rounds)}
            row["runs"] = sum(map(len, self.rounds))
        if any(self.inside):
            row["inside"] = spread(np.concatenate(self.inside))
        if reference is not None and reference is not self and reference.rounds and self.rounds:
            row["ratio"] = {"to": label(reference.job), **paired_ratio(self.rounds, reference.rounds)}
        return row


def label(job: Job) -> str:
    """Return the short name of a contender."""
    return " ".join(word for word in (job.task, job.system, job.form, job.backend) if word)


def spread(values: Any) -> dict[str, float]:
    """Return median, 10th and 90th percentile."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def paired_ratio(rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the spread, over common rounds, of the ratio of the medians."""
    return spread([np.median(own) / np.median(other) for own, other in zip(rounds, reference, strict=False)])


def reference_of(contender: Contender, group: Sequence[Contender]) -> Contender | None:
    """Return the contender to compare with: the first with results of the shipped potential or of the default form."""
    form = "shipped" if contender.job.form == "shipped" else "default"
    return next((other for other in group if other.job.form == form and other.failure is None), None)


def measure(jobs: Sequence[Job], settings: Settings, title: str) -> tuple[list[Row], dict[str, Any]]:
    """Measure jobs and the matrix product in turns; return the rows and the facts of a worker."""
    product = Job("product", system=jobs[0].system, quick=settings.quick)
    with ExitStack() as stack:
        group = [stack.enter_context(Contender(job, settings)) for job in (*jobs, product)]
        for contender in group:
            contender.greet()
        for contender in tqdm(group, desc=f"{title}: preparing", leave=False):
            contender.prepare()
        for _ in tqdm(range(settings.rounds), desc=title, unit="round", leave=False):
            for contender in group:
                contender.turn(settings.pick(TURN))
        return [contender.row(reference_of(contender, group)) for contender in group], group[-1].facts()


# --------------------------------------------------------------------------------------------------------- sections


def peer_jobs(job: Job, settings: Settings) -> list[Job]:
    """Return the same job for every other force field that has an environment."""
    return [replace(job, form=name, backend="") for name, peer in PEERS.items() if peer.environment in settings.peers]


def latency_groups(settings: Settings) -> list[list[Job]]:
    """One evaluation of a molecule."""
    backends = ("native", "eager") if settings.quick else ("native", "compiled", "eager")
    groups = []
    for system in ("ethanol", "aspirin"):
        job = Job("evaluate", system=system, quick=settings.quick)
        ours = [replace(job, form="default", backend=backend) for backend in backends]
        published = replace(job, form="published", backend="eager")
        shipped = [replace(job, form="shipped", backend=backend) for backend in backends if system == "ethanol"]
        groups.append([*shipped, *ours, published, *peer_jobs(job, settings)])
    return [[job for job in groups[0] if job.form != "shipped"]] if settings.quick else groups


def md_groups(settings: Settings) -> list[list[Job]]:
    """Molecular dynamics through ASE: ethanol with the shipped potential, aspirin at the published settings."""
    backends = ("native",) if settings.quick else ("native", "compiled", "eager")
    groups = [
        [Job("md", form, backend, system, settings.quick) for backend in backends]
        for form, system in (("shipped", "ethanol"), ("default", "aspirin"))
    ]
    return groups[: settings.pick((2, 1))]


def training_groups(settings: Settings) -> list[list[Job]]:
    """Training steps at the published settings."""
    contenders = [("default", "native"), ("default", "compiled"), ("default", "eager"), ("published", "eager")]
    groups = [
        [Job("train", form, backend, system, settings.quick) for form, backend in contenders]
        for system in ("ethanol", "aspirin")
    ]
    return [[job for job in groups[0] if job.backend != "compiled"]] if settings.quick else groups


def batch_groups(settings: Settings) -> list[list[Job]]:
    """Replicas of ethanol one by one and all at once; in eager mode, too, where calls cost more than work."""
    groups = [
        [Job(task, form, backend, "ethanol", settings.quick) for task in ("loop", "batch")]
        for form, backend in (("shipped", "auto"), ("default", "auto"), ("shipped", "eager"))
    ]
    return groups[: settings.pick((3, 1))]


def box_jobs(atoms: int, settings: Settings) -> list[Job]:
    """One evaluation of a box, stress included, in a bounded memory."""
    job = Job("evaluate", system=f"water-{atoms}", quick=settings.quick, memory_gib=settings.memory_gib)
    contenders = [("default", "native"), ("default", "eager"), ("published", "eager")][: settings.pick((3, 2))]
    return [*(replace(job, form=form, backend=backend) for form, backend in contenders), *peer_jobs(job, settings)]


class Skips:
    """Skips contenders on larger boxes after they failed or took very long on a smaller one."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, str], str] = {}

    def split(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Row]]:
        """Return the jobs to try, and rows of the others."""
        skipped = [job for job in jobs if (job.form, job.backend) in self._failed]
        rows = [
            {"task": job.task, "system": job.system, "form": job.form, "backend": job.backend}
            | {"failure": self._failed[job.form, job.backend]}
            for job in skipped
        ]
        return [job for job in jobs if job not in skipped], rows

    def note(self, rows: Sequence[Row]) -> None:
        """Remember contenders that failed or took too long."""
        for row in rows:
            slow = f"{row['first_s']:.0f} s" if row.get("first_s", 0.0) > PATIENCE else None
            if reason := row.get("failure", slow):
                self._failed.setdefault((row["form"], row["backend"]), f"not tried: {reason} in a smaller box")


Measured = tuple[list[Row], dict[str, Any]]


def run_groups(make: Callable[[Settings], list[list[Job]]], name: str, settings: Settings) -> Iterator[Measured]:
    """Measure groups of jobs one after the other."""
    for jobs in make(settings):
        yield measure(jobs, settings, f"{name}, {jobs[0].system}")


def run_boxes(settings: Settings) -> Iterator[Measured]:
    """Measure boxes from small to large."""
    skips = Skips()
    for atoms in settings.pick(BOX_SIZES):
        jobs, skipped = skips.split(box_jobs(atoms, settings))
        rows, facts = measure(jobs, settings, f"boxes, {atoms} atoms") if jobs else ([], {})
        skips.note(rows)
        yield [*rows[:-1], *skipped, *rows[-1:]], facts  # the matrix product ends the group


def run_memory(settings: Settings) -> Iterator[Measured]:
    """Peak memory of a process that evaluates one box once, and of one that only imports."""
    skips = Skips()
    yield _once(Job("idle"), settings)
    for atoms in settings.pick(MEMORY_SIZES):
        jobs, skipped = skips.split(box_jobs(atoms, settings))
        for job in tqdm(jobs[: settings.pick((None, 1))], desc=f"memory, {atoms} atoms", leave=False):
            rows, facts = _once(job, settings)
            skips.note(rows)
            yield rows, facts
        yield skipped, {}


def _once(job: Job, settings: Settings) -> Measured:
    with Contender(job, settings) as contender:
        contender.greet()
        contender.prepare()
        return [contender.row(None)], contender.facts()


RUN: dict[str, Callable[[Settings], Iterator[Measured]]] = {
    "latency": lambda settings: run_groups(latency_groups, "latency", settings),
    "boxes": run_boxes,
    "md": lambda settings: run_groups(md_groups, "MD", settings),
    "training": lambda settings: run_groups(training_groups, "training", settings),
    "memory": run_memory,
    "batch": lambda settings: run_groups(batch_groups, "batch", settings),
}


def commit() -> str:
    """Return the measured commit, with a remark if files differ from it."""
    try:
        words = [
            subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
            for command in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results"),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return words[0] + (" with changes" if words[1] else "")


def run_section(name: str, settings: Settings, load: float | None) -> dict[str, Any]:
    """Measure a section; return its results with facts of the machine."""
    began, rows, machine = time.perf_counter(), [], {}
    for measured, facts in RUN[name](settings):
        rows += measured
        machine = machine or facts
    absent = [name for name, peer in PEERS.items() if peer.environment not in settings.peers] if settings.peers else []
    return {
        "command": settings.command([name]),
        "quick": settings.quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine | {"load_average_before": load},
        "memory_limit_gib": settings.memory_gib,
        "minutes": (time.perf_counter() - began) / 60,
        "absent_peers": absent,
        "rows": rows,
    }


# --------------------------------------------------------------------------------------------------------- results


def merge(results: dict[str, Any], name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Replace a section of the results; sections of a quick run are dropped when a full run is added.

    Raises:
        ValueError: If a quick run would replace results of a full one.
    """
    if section["quick"] and any(not old["quick"] for old in results.values()):
        raise ValueError("this folder holds the results of a full run: give a quick one another with --out")
    kept = {other: old for other, old in results.items() if other != name and old["quick"] == section["quick"]}
    merged = kept | {name: section}
    return {other: merged[other] for other in RUN if other in merged}


def load_results(folder: Path) -> dict[str, Any]:
    """Read the sections measured earlier, if any.

    Raises:
        ValueError: If the file is not JSON.
    """
    return read_results(folder / "speed.json")


def save(results: dict[str, Any], folder: Path) -> None:
    """Write the results, the tables and the figure."""
    write_results(folder / "speed.json", results)
    write_reports(results, folder)


def choose_interpreters(peers: bool, peer_python: Sequence[str]) -> dict[str, Path]:
    """Return the interpreters of the other force fields to measure, by environment.

    Args:
        peers: Whether to measure all that are installed.
        peer_python: Texts NAME=PATH.

    Raises:
        click.BadParameter: For a text of another form, an unknown name, or a missing interpreter.
    """
    chosen = {}
    for text in peer_python:
        name, sign, path = text.partition("=")
        if not sign or not path:
            raise click.BadParameter(
                f"expected NAME=PATH, e.g. mace=/path/to/python; got {text!r}", param_hint="--peer-python"
            )
        chosen[name] = Path(path)
    try:
        found = find_interpreters(chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--peer-python") from None
    return found if peers else {name: found[name] for name in chosen}


def _sections(_: Any, __: Any, value: str) -> list[str]:
    chosen = [name.strip() for name in value.split(",")]
    if unknown := [name for name in chosen if name not in RUN]:
        raise click.BadParameter(f"no section {', '.join(map(repr, unknown))}: choose from {', '.join(RUN)}")
    return [name for name in RUN if name in chosen]


@click.command(help=__doc__.split("\n", maxsplit=1)[0])
@click.option("--only", default=",".join(RUN), show_default=True, callback=_sections, help="Sections to measure.")
@click.option("--rounds", type=click.IntRange(min=1), help="Number of turns of each contender (7; quick: 2).")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each contender (torch's default).")
@click.option(
    "--memory-limit", type=click.FloatRange(min=1.0), default=8.0, show_default=True, help="Memory for a box, GiB."
)
@click.option("--peers", is_flag=True, help="Measure other force fields, too: those installed by peers.py.")
@click.option("--peer-python", multiple=True, metavar="NAME=PATH", help="Python interpreter of another force field.")
@click.option("--quick", is_flag=True, help="Tiny networks and short runs, to test the script.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=HERE / "results", help="Folder.")
def main(
    only: list[str],
    rounds: int | None,
    threads: int | None,
    memory_limit: float,
    peers: bool,
    peer_python: tuple[str, ...],
    quick: bool,
    out: Path,
) -> None:
    """Measure sections, and write each as soon as it is done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    interpreters = choose_interpreters(peers, peer_python)
    settings = Settings(rounds or (2 if quick else 7), threads, quick, interpreters, memory_limit)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > BUSY:
        logger.warning("load average %.1f before the start: other work on this machine will disturb the figures", load)
    try:
        results = load_results(out)
        merge(results, only[0], {"quick": quick})  # refuses before anything is measured
        for name in only:
            results = merge(results, name, run_section(name, settings, load))
            save(results, out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    logger.info("wrote speed.json, speed.md and speed.png in %s", out)


if __name__ == "__main__":
    main()
