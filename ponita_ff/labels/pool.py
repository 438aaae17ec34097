"""Workers that run tasks: processes started by this package, or an executor of the caller.

A worker process may die during a task: it can be killed for its memory use, or crash in a program's compiled code. Then
`ProcessPoolExecutor` fails every pending task and accepts no more, and `ProcessPool` starts a new one.
`outcomes` runs the tasks that were lost again, one at a time.

Why not loky (3.7): its executor, too, fails every pending task when one process dies, so that the isolated retries of
`outcomes` would remain. It would replace only the restart and the number of threads (``env=``), about 30 lines. Its
workers outlive a parent that was killed by SIGKILL (tried: they were still there after their task had ended); those
here end with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ponita_ff.labels.methods import LabelError, Method
from ponita_ff.labels.worker import Failure, Work, check_setup, run
from ponita_ff.signals import stop_between_steps

__all__ = ["ExternalExecutor", "ProcessPool", "WorkerPool", "outcomes"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")
AnyWork = TypeVar("AnyWork", bound=Work[Any])

#: For an executor of the caller, whose number of workers is not known.
MAX_PENDING = 256

#: Isolated retries of a task after a process died during it.
RETRIES = 2

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerPool(Protocol):
    """Workers that run tasks.

    Attributes:
        max_pending: Largest number of submitted tasks that are not done, so that a long list does not fill the memory.
    """

    max_pending: int

    def submit(self, task: Work[Result]) -> Future[Result | Failure] | None:
        """Submit a task; None if a process has died since the last one, so that it must be submitted again."""
        ...

    def recover(self, error: Exception) -> bool:
        """Whether the error of a task means that a worker process died; if so, prepare for the next task."""
        ...

    def cancel(self) -> None:
        """End at once, without waiting for pending tasks."""
        ...


def _is_killed_worker(error: Exception) -> bool:
    """Whether it is Dask's error, by name, since Dask is not a dependency."""
    return any(kind.__name__ == "KilledWorker" for kind in type(error).__mro__)


def _submit(executor: Executor, function: Callable[[Argument], Result], argument: Argument) -> Future[Result]:
    try:
        return executor.submit(function, argument)
    except RuntimeError as error:  # shut down, or broken
        raise LabelError(f"the executor accepts no tasks ({type(error).__name__}: {error})") from error


def _check_workers(executor: Executor, method: Method) -> None:
    """Set up the program in one worker, so that an error of the set-up is not reported as one of the first task.

    Raises:
        LabelError: The set-up failed.
    """
    future = _submit(executor, check_setup, method)
    try:
        result = future.result()
    except Exception as error:
        if isinstance(error, BrokenExecutor) or _is_killed_worker(error):
            raise LabelError(
                "a worker process died before its first task; its own messages are above (in a script, this function "
                'must be called under if __name__ == "__main__":)'
            ) from error
        raise LabelError(
            f"{method.name} cannot be sent to a worker process ({type(error).__name__}: {error}); the factory of "
            "the calculator must be a class or function of a module that can be imported there, or a partial of one"
        ) from error
    if isinstance(result, Failure):
        raise LabelError(f"cannot set up {method.name} in a worker process: {result.reason}")


class ProcessPool:
    """Worker processes, started when the first task is submitted and again after one of them has died.

    Args:
        method: The method of all tasks.
        processes: Number of processes.
        threads: Threads of each process, for programs that use OpenMP, OpenBLAS or MKL.
    """

    def __init__(self, method: Method, processes: int, threads: int) -> None:
        self.max_pending = 2 * processes
        self._method = method
        self._processes = processes
        self._threads = threads
        self._executor: ProcessPoolExecutor | None = None
        self._context = _WorkerContext(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.cancel()
        elif self._executor is not None:
            self._executor.shutdown()

    def submit(self, task: Work[Result]) -> Future[Result | Failure] | None:
        executor = self._running_executor()
        try:
            return executor.submit(run, task)
        except BrokenExecutor:
            self._discard_executor()
            return None

    def recover(self, error: Exception) -> bool:
        if not isinstance(error, BrokenExecutor):
            return False
        self._discard_executor()
        return True

    def _discard_executor(self) -> None:
        """Shut down an executor that is broken, since one of its processes died; `submit` starts a new one."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def cancel(self) -> None:
        self._context.kill_all()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _running_executor(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._context = _WorkerContext(self._threads)
            self._executor = ProcessPoolExecutor(self._processes, self._context, _initialise_worker)
            _check_workers(self._executor, self._method)
        return self._executor


class ExternalExecutor:
    """An executor of the caller, which is neither shut down nor replaced.

    Args:
        executor: Anything with ``submit``, e.g. Dask's ``Client.get_executor()``.
        method: The method of all tasks.
    """

    max_pending = MAX_PENDING

    def __init__(self, executor: Executor, method: Method) -> None:
        self._executor = executor
        self._method = method
        self._checked = False
        self._futures: set[Future[Any]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.cancel()

    def submit(self, task: Work[Result]) -> Future[Result | Failure]:
        if not self._checked:
            _check_workers(self._executor, self._method)
            self._checked = True
        future = _submit(self._executor, run, task)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def recover(self, error: Exception) -> bool:
        return _is_killed_worker(error)  # Dask itself starts new workers; other executors cannot be repaired here

    def cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()


class _WorkerContext(SpawnContext):
    """Spawned processes with a given number of threads; forks are not safe beside threads of numerical libraries."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._started: list[_WorkerProcess] = []

    def Process(self, *args: Any, **keywords: Any) -> _WorkerProcess:  # type: ignore[override]
        process = _WorkerProcess(*args, **keywords)
        process.threads = self._threads
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        """Kill the processes still running: their tasks may take hours, and partial results would be lost anyway."""
        for process in self._started:
            if process.is_alive():
                process.kill()


class _WorkerProcess(SpawnProcess):
    threads = 1

    def start(self) -> None:
        # Libraries read their number of threads when they are loaded. A spawned process imports the caller's script
        # before any code of this package, so that the number must be in its environment from the start.
        variables = {name: str(self.threads) for name in _THREAD_VARIABLES}
        # A start that a stop signal breaks off would leave a process that nobody knows of.
        with stop_between_steps() as request, _environment(variables), _sigint_blocked():
            super().start()
        if request.number is not None:
            raise request.error()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block Ctrl-C, which reaches every process of a terminal, until a new process has a handler for it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialise_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    # Unlike an ignored signal, a handler is not inherited: programs that this process starts do end on Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def outcomes(tasks: Iterator[AnyWork], pool: WorkerPool) -> Iterator[tuple[AnyWork, Any]]:
    """Every task with what its `Work.run` returned, in order of completion.

    When a process dies, it is not known which of the pending tasks caused it. They are retried at the end, one at a
    time: if a process dies again, its task is the cause. A task of several parts is then divided, and each part has an
    outcome of its own; the outcome of the part that is the cause is a `Failure`.

    Raises:
        LabelError: The executor returned no result, or accepts no tasks.
    """
    interrupted = []
    for task, outcome in _run_in_parallel(tasks, pool):
        if outcome is None:
            interrupted.append(task)
        else:
            yield task, outcome
    for task in interrupted:
        yield from _retry_isolated(task, pool, RETRIES)


def _run_in_parallel(tasks: Iterator[AnyWork], pool: WorkerPool) -> Iterator[tuple[AnyWork, Any]]:
    """Tasks with their outcomes, with up to ``pool.max_pending`` at a time; None if a process died."""
    pending: dict[Future[Any], AnyWork] = {}
    task = next(tasks, None)
    while task is not None or pending:
        while task is not None and len(pending) < pool.max_pending:
            future = pool.submit(task)
            if future is None:
                break
            pending[future] = task
            task = next(tasks, None)
        wait(pending, return_when=FIRST_COMPLETED)
        # All tasks that failed together must be handled before any is submitted to new processes.
        while done := [future for future in pending if future.done()]:
            for future in done:
                finished = pending.pop(future)
                yield finished, _outcome(finished, future, pool)


def _retry_isolated(task: AnyWork, pool: WorkerPool, retries: int) -> Iterator[tuple[AnyWork, Any]]:
    if retries == 0:
        reason = f"its worker process died {RETRIES + 1} times (perhaps it needs more memory)"
        yield task, Failure(f"{task.source}: {reason}")
        return
    task = task.retry()
    while (future := pool.submit(task)) is None:
        pass
    outcome = _outcome(task, future, pool)
    if outcome is not None:
        yield task, outcome
        return
    for part in task.parts():
        yield from _retry_isolated(part, pool, retries - 1)


def _outcome(task: Work[Any], future: Future[Any], pool: WorkerPool) -> Any:
    """The result of a future, when it is done; None if the worker process died."""
    try:
        return future.result()
    except Exception as error:
        if pool.recover(error):
            return None
        # Not an error of the program, which `Work.run` catches: a lost connection or an executor that was shut down.
        raise LabelError(
            f"{task.source}: the executor returned no result ({type(error).__name__}: {error}); the results so far are "
            "kept, and the same call with a new executor continues"
        ) from error
