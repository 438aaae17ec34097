"""Commands in processes of their own, which have imported torch already: copies of the test's process.

A process that is stopped or killed is as real as one that a shell starts, and comes some seconds sooner.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ponita_ff.cli import main

__all__ = ["command", "started"]


def command(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """``ponita-ff`` with these arguments; it ends the process."""
    os.environ.update(environment or {})
    main.main(arguments, prog_name="ponita-ff")


@contextmanager
def started(function: Callable[..., Any], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that calls a function of a module in ``tests/``; killed at the end if it still runs.

    A copy computes in one thread (see ``ponita_ff/kernels/threads.py``). Where the tests have several, and where forks
    are not safe, it is a new interpreter.
    """
    fork = sys.platform == "linux" and torch.get_num_threads() == 1
    process = get_context("fork" if fork else "spawn").Process(target=function, args=arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Python warns of every fork with threads
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
