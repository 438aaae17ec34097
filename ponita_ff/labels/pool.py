"""Where frames are labelled: processes of our own, or an executor that somebody lends.

Both take tasks and give futures. A process may die of a task (killed for its memory, or crashed inside a program's
compiled code), and then all the pool is lost: `Pool` makes a new one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ponita_ff.labels.methods import LabelError, Method
from ponita_ff.labels.worker import Failure, Outcome, Task, introduce, label

__all__ = ["Crew", "Lent", "Pool"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")

#: For a lent executor, of which nobody knows how many frames it labels at a time.
IN_FLIGHT = 256

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Crew(Protocol):
    """What labels frames."""

    #: At most so many tasks are under way, so that a long list does not fill the memory.
    in_flight: int

    def submit(self, task: Task) -> Future[Outcome] | None:
        """Send a task; None if the processes have died since the last one, so that it must be sent again."""
        ...

    def died(self, error: Exception) -> bool:
        """Whether a task under way ended so because a process died; then all is made ready for the next one."""
        ...

    def stop(self) -> None:
        """End at once, without waiting for what is under way."""
        ...


def _is_killed_worker(error: Exception) -> bool:
    """Of Dask, which is no dependency: so by its name."""
    return any(kind.__name__ == "KilledWorker" for kind in type(error).__mro__)


def _submit(executor: Executor, function: Callable[[Argument], Result], argument: Argument) -> Future[Result]:
    try:
        return executor.submit(function, argument)
    except RuntimeError as error:  # shut down, or broken
        raise LabelError(f"the executor takes no frames ({type(error).__name__}: {error})") from error


def _first(executor: Executor, method: Method) -> None:
    """Wait until the program has been loaded and set up in one process, so that no frame is blamed for that."""
    future = _submit(executor, introduce, method)
    try:
        answer = future.result()
    except Exception as error:
        if isinstance(error, BrokenExecutor) or _is_killed_worker(error):
            raise LabelError(
                "a worker process died before its first frame; what it wrote above says why (in a script, label_frames "
                'must be called under if __name__ == "__main__":)'
            ) from error
        raise LabelError(
            f"{method.name} cannot be sent to a worker process ({type(error).__name__}: {error}); what makes the "
            "calculator must be a class or function of a module that can be imported there, or a partial of one"
        ) from error
    if isinstance(answer, Failure):
        raise LabelError(f"cannot set up {method.name} in a worker process: {answer.reason}")


class Pool:
    """Processes of our own, started when the first task comes.

    Args:
        method: What all tasks use.
        processes: How many.
        threads: Of each process, for programs that know OpenMP, OpenBLAS or MKL.
    """

    def __init__(self, method: Method, processes: int, threads: int) -> None:
        self.in_flight = 2 * processes
        self._method = method
        self._processes = processes
        self._threads = threads
        self._executor: ProcessPoolExecutor | None = None
        self._context = _Context(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.stop()
        elif self._executor is not None:
            self._executor.shutdown()

    def submit(self, task: Task) -> Future[Outcome] | None:
        executor = self._running()
        try:
            return executor.submit(label, task)
        except BrokenExecutor:
            self._bury()
            return None

    def died(self, error: Exception) -> bool:
        if not isinstance(error, BrokenExecutor):
            return False
        self._bury()
        return True

    def _bury(self) -> None:
        """With one process all of the pool is lost, and every task that was under way there."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def stop(self) -> None:
        self._context.kill_all()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._context = _Context(self._threads)
            self._executor = ProcessPoolExecutor(self._processes, self._context, _start)
            _first(self._executor, self._method)
        return self._executor


class Lent:
    """Somebody's executor: left as it is at the end, never made again.

    Args:
        executor: Anything with ``submit``, e.g. Dask's ``Client.get_executor()``.
        method: What all tasks use.
    """

    in_flight = IN_FLIGHT

    def __init__(self, executor: Executor, method: Method) -> None:
        self._executor = executor
        self._method = method
        self._met = False
        self._futures: set[Future[Outcome]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.stop()

    def submit(self, task: Task) -> Future[Outcome]:
        if not self._met:
            _first(self._executor, self._method)
            self._met = True
        future = _submit(self._executor, label, task)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def died(self, error: Exception) -> bool:
        return _is_killed_worker(error)  # Dask makes new workers by itself; what else breaks stays broken

    def stop(self) -> None:
        for future in list(self._futures):
            future.cancel()


class _Context(SpawnContext):
    """New processes rather than forks, which do not go together with the threads of numerical libraries."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._started: list[_Process] = []

    def Process(self, *args: Any, **keywords: Any) -> _Process:  # type: ignore[override]
        process = _Process(*args, **keywords)
        process.threads = self._threads
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        """Kill what is still running: a frame may take hours, and nothing of it would be kept."""
        for process in self._started:
            if process.is_alive():
                process.kill()


class _Process(SpawnProcess):
    threads = 1

    def start(self) -> None:
        # Libraries read their number of threads when they are loaded, which may be before any code of ours runs there:
        # Python imports the caller's script first. So it must be in the environment that the process begins with.
        with _environment({name: str(self.threads) for name in _THREAD_VARIABLES}), _interrupts_blocked():
            super().start()


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
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; a process that begins here must not end in a traceback for it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """The first thing that a worker process does."""
    # A handler that does nothing, unlike an ignored signal, is not handed on: programs started here do end on Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Nobody else would end this process when its parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
