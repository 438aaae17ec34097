"""The progress bar of every long task: shown on a terminal, left out of log files."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(show: bool, **options: Any) -> tqdm[Any]:
    """A bar on standard error.

    Args:
        show: Whether to show it if standard error is a terminal; elsewhere it would fill a file with its updates.
        options: As of :class:`tqdm.tqdm`.
    """
    return tqdm(**options, disable=None if show else True)  # None: tqdm looks for a terminal
