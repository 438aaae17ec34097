"""How many threads the kernels use. After a fork it is one: OpenMP's threads do not live on in the new process.

GCC's OpenMP, which torch uses as well, waits for ever for its threads in a process that was forked after two or more of
them have computed. Torch does nothing about it (its own ``DataLoader`` sets one thread in every worker), so it is done
here, for torch too. Processes that are started afresh (``multiprocessing``'s ``spawn`` and ``forkserver``) keep theirs.
"""

from __future__ import annotations

import logging
import os

import torch

__all__ = ["number_of_threads"]

logger = logging.getLogger(__name__)


class _State:
    """Of this process.

    Attributes:
        several: Whether two or more threads have computed.
        lost: Whether they were lost in a fork.
        told: Whether the user was told so.
    """

    several = lost = told = False


def number_of_threads() -> int:
    """Threads for what is computed next: torch's number, or one where a fork has lost the threads."""
    if _State.lost:
        _tell_once()
        return 1
    number = torch.get_num_threads()
    if number > 1:
        _State.several = True
    return number


def _tell_once() -> None:
    if not _State.told:
        _State.told = True
        logger.warning(
            "this process was forked from one that had computed with several threads, which do not survive that: it "
            "goes on with one thread. To use several, start processes by multiprocessing's 'spawn' or 'forkserver', "
            "or fork before the first calculation"
        )


def _after_fork() -> None:
    if _State.several:
        _State.lost = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
