"""One contender of the speed benchmark in a process of its own, whose crash or lack of memory does not affect others.

``benchmarks/speed.py`` starts it with a `Job` as JSON. It then reads one command per line and answers each with one
line of JSON: ``hello`` (everything is imported), ``facts`` (versions and hardware), ``prepare`` (make the contender and
run it once, which compiles what has to be compiled), ``turn SECONDS`` (run for about that long; the time of every run).

Workers of other force fields run in environments without this package: this file and what it imports need numpy, SciPy
and ASE only.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

if "OMP_WAIT_POLICY" not in os.environ:  # as the command line does
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from peers import PEERS
from speed_job import Job, Task, evaluation_task
from speed_systems import make_system

#: Runs of at least this many seconds need no warm-up after another process has used the caches.
WARM = 0.1

#: Runs of another force field before it is timed: TorchScript compiles during the first few.
PEER_WARM_UP = 3


def peer_task(job: Job) -> Task:
    """Return the task of one evaluation by another force field."""
    peer = PEERS[job.form]
    facts = {"package": peer.package.installed_version()}
    return evaluation_task(peer.make(), make_system(job.system), peer.stress, facts)


def make_task(job: Job) -> Task:
    """Return the task of a job."""
    if job.form in PEERS:
        return peer_task(job)
    from speed_tasks import TASKS  # needs this package

    return TASKS[job.task](job)


def peak_bytes() -> int:
    """Return the largest resident set of this process so far.

    From /proc if possible: ``ru_maxrss`` of a new process may still be that of its parent.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def limit_memory(gibibytes: float) -> None:
    """Limit the address space, so that large allocations fail instead of exhausting the machine."""
    import resource

    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Warnings(logging.Handler):
    """Collects warnings: without a compiler the package continues with a warning, but a benchmark must not."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def explain(error: BaseException, memory_gib: float | None) -> str:
    """Return an error as one line for the tables."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
        return "out of memory" + (f" at {memory_gib:g} GiB" if memory_gib else "")
    return f"{type(error).__name__}: {text}"[:200]


class Worker:
    """Answers the commands of the parent process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task = Task(lambda: None)
        self._slow = False

    def answer(self, command: str, argument: str) -> dict[str, Any]:
        """Return the answer to one command; errors are reported as ``failure``."""
        try:
            return {"hello": self.hello, "facts": self.facts, "prepare": self.prepare, "turn": self.turn}[command](
                argument
            )
        except Exception as error:
            return {"failure": explain(error, self.job.memory_gib)}

    def hello(self, _: str) -> dict[str, Any]:
        """Answer when everything is imported."""
        return {}

    def facts(self, _: str) -> dict[str, Any]:
        """Return versions, hardware and settings; of another force field, only the version of Python."""
        facts: dict[str, Any] = {
            "python": platform.python_version(),
            "wait_policy": os.environ["OMP_WAIT_POLICY"],
            "spin_count": os.environ.get("GOMP_SPINCOUNT", "default"),
        }
        if self.job.form not in PEERS:
            from speed_tasks import hardware_facts

            facts |= hardware_facts()
        return facts

    def prepare(self, _: str) -> dict[str, Any]:
        """Make the contender and run it for the first time."""
        warnings = _Warnings()
        logging.getLogger("ponita_ff").addHandler(warnings)
        began = time.perf_counter()
        self.task = make_task(self.job)
        made = time.perf_counter()
        self.task.run()
        first = time.perf_counter() - made
        if self.job.form in PEERS:
            for _ in range(PEER_WARM_UP):
                self.task.run()
        # If the first run compiles something, its time says nothing about later ones.
        self._slow = first > WARM and self.job.backend in ("native", "eager")
        if warnings.messages:
            return {"failure": warnings.messages[0][:200]}
        return {"make_s": made - began, "first_s": first, "peak_bytes": peak_bytes(), "facts": self.task.facts}

    def turn(self, seconds: str) -> dict[str, Any]:
        """Return the seconds of every run, and those spent in the network, per evaluation, step or structure."""
        task, times, network = self.task, [], []
        end = time.perf_counter() + float(seconds)
        if not self._slow:
            task.run()  # another process has used the caches
        while not times or time.perf_counter() < end:
            before = task.network_seconds() if task.network_seconds else 0.0
            began = time.perf_counter()
            task.run()
            times.append((time.perf_counter() - began) / task.units)
            if task.network_seconds:
                network.append((task.network_seconds() - before) / task.units)
        self._slow = min(times) * task.units > WARM
        return {"seconds": times, "inside": network, "runs": len(times), "peak_bytes": peak_bytes()}


def serve(job: Job, commands: TextIO, answers: TextIO) -> None:
    """Answer commands until the input ends."""
    if job.form not in PEERS:
        import speed_tasks  # noqa: F401 - before the memory is limited: a failed import has many faces
    if job.memory_gib is not None:
        limit_memory(job.memory_gib)
    worker = Worker(job)
    for line in commands:
        command, _, argument = line.strip().partition(" ")
        answers.write(json.dumps(worker.answer(command, argument)) + "\n")
        answers.flush()


def main() -> None:
    """Serve the job given on the command line; what a contender prints goes to the log, not into the answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(Job(**json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
