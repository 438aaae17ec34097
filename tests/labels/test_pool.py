"""Worker processes: set up once, replaced after a death, ended on cancel; and executors of the caller."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from ase.calculators.emt import EMT
from label_calculators import Spring, Unmakeable, calls, expected_energy, make_frames, processes

from ponita_ff.labels import LabelError, Method, find_method
from ponita_ff.labels.pool import ExternalExecutor, ProcessPool
from ponita_ff.labels.results import Labels
from ponita_ff.labels.worker import FrameToLabel, Task


def spring(traces: Path, **how: Any) -> Method:
    return find_method(partial(Spring, str(traces), **how), name="spring")


def make_tasks(method: Method, count: int) -> list[Task]:
    frames = (FrameToLabel(number, f"frame {number}", atoms) for number, atoms in enumerate(make_frames(count)))
    return [Task((frame,), method) for frame in frames]


def energy(future: Future[Any] | None) -> float:
    assert future is not None
    (outcome,) = future.result(timeout=60)
    assert isinstance(outcome, Labels), outcome
    return outcome.energy


def test_a_pool_is_replaced_after_a_process_has_died(traces: Path) -> None:
    method = spring(traces, die_once=[1])
    tasks = make_tasks(method, 3)
    interrupts = signal.getsignal(signal.SIGINT)
    with ProcessPool(method, 1, 1) as pool:
        assert energy(pool.submit(tasks[0])) == pytest.approx(expected_energy(0), abs=1e-12)
        future = pool.submit(tasks[1])
        assert future is not None
        with pytest.raises(BrokenExecutor) as error:
            future.result(timeout=60)
        assert pool.recover(error.value)
        assert not pool.recover(ValueError("an error of another kind"))
        assert energy(pool.submit(tasks[1].retry())) == pytest.approx(expected_energy(1), abs=1e-12)
        assert energy(pool.submit(tasks[2])) == pytest.approx(expected_energy(2), abs=1e-12)
    assert calls(traces) == {0: 1, 1: 2, 2: 1}
    assert len(processes(traces) - {os.getpid()}) == 2
    assert signal.getsignal(signal.SIGINT) == interrupts


def test_a_stop_signal_while_a_process_starts_leaves_no_process(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when the process exists and nobody knows of it yet."""
    method, started = spring(traces), []
    launch = SpawnProcess._Popen

    def launch_and_stop(process: SpawnProcess) -> Any:
        started.append(launch(process))
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(launch_and_stop))
    with pytest.raises(KeyboardInterrupt), ProcessPool(method, 1, 1) as pool:
        pool.submit(make_tasks(method, 1)[0])
    assert len(started) == 1
    assert started[0].wait(timeout=10) == -signal.SIGKILL


def test_a_death_between_two_tasks_asks_for_the_second_again(traces: Path) -> None:
    method = spring(traces)
    tasks = make_tasks(method, 2)
    with ProcessPool(method, 1, 1) as pool:
        energy(pool.submit(tasks[0]))
        (process,) = processes(traces)
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (future := pool.submit(tasks[1])) is not None:
            # The death has not been noticed yet: this task is lost with the process, or was done before it.
            assert isinstance(future.exception(timeout=60), BrokenExecutor | None)
            assert time.monotonic() < deadline
        assert energy(pool.submit(tasks[1])) == pytest.approx(expected_energy(1), abs=1e-12)


def test_cancel_does_not_wait_for_a_calculation(traces: Path) -> None:
    method = spring(traces, seconds=120.0)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ProcessPool(method, 1, 1) as pool:
        pool.submit(make_tasks(method, 1)[0])
        while not calls(traces):
            assert time.monotonic() - begin < 60
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 60
    (process,) = processes(traces)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_executor_of_the_caller_is_set_up_once_and_left_running(traces: Path) -> None:
    method = spring(traces, seconds=0.2)
    tasks = make_tasks(method, 3)
    with ThreadPoolExecutor(1) as executor:
        with ExternalExecutor(executor, method) as pool:
            assert energy(pool.submit(tasks[0])) == pytest.approx(expected_energy(0), abs=1e-12)
        assert executor.submit(abs, -3).result() == 3
        with pytest.raises(KeyError), ExternalExecutor(executor, method) as pool:
            first, second = pool.submit(tasks[1]), pool.submit(tasks[2])
            while not first.running():
                time.sleep(0.001)
            raise KeyError
        assert second.cancelled() and not first.cancelled()
        assert not pool.recover(BrokenExecutor())  # it cannot be replaced here
    with pytest.raises(LabelError, match="the executor accepts no tasks"):
        ExternalExecutor(executor, method).submit(tasks[0])


def test_dask_s_error_is_known_by_its_name() -> None:
    class KilledWorker(Exception):
        """As ``distributed.scheduler.KilledWorker``."""

    with ThreadPoolExecutor(1) as executor:
        assert ExternalExecutor(executor, find_method(EMT)).recover(KilledWorker())


def test_a_program_that_cannot_be_set_up() -> None:
    method = find_method(Unmakeable)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(LabelError, match=r"cannot set up label_calculators:Unmakeable .*: .*the licence has expired"),
    ):
        ExternalExecutor(executor, method).submit(make_tasks(method, 1)[0])
