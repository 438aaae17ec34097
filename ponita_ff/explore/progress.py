"""Where an exploration is: round, member, and an estimate of the time that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ponita_ff.explore.settings import ExploreSettings

__all__ = ["Plan"]

logger = logging.getLogger(__name__)

#: Steps of a fine-tuning grow with the number of frames to this power (training/finetune.py).
_POWER = 0.75


class Plan:
    """Logs a line before every member is trained.

    The time left is that of all rounds until the budget is spent, if no committee agrees before: work is counted in
    fine-tunings weighted by their length, and the time per unit of work is that of this call so far, with labels and
    dynamics.

    Args:
        settings: Of the exploration.
        clock: Gives the time, s.

    Attributes:
        share: Of the fine-tuning's steps, for the committee that is trained now.
    """

    def __init__(self, settings: ExploreSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.share = settings, 1.0
        self._clock, self._start, self._done = clock, clock(), 0.0

    def begin(self, name: str, labels: int, share: float, last: bool) -> None:
        """A committee is trained next.

        Args:
            name: Of its round.
            labels: To train on.
            share: Of the fine-tuning's steps.
            last: Whether no other follows.
        """
        self._name, self._labels, self.share, self._last = name, labels, share, last

    @contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Around the training of one member."""
        number = self.settings.members
        text = f"{self._name}: member {index + 1} of {number}, {self._labels} labels of at most {self.settings.budget}"
        if self._done > 0:
            left = (number - index) * self._work(self._labels, self.share) + self._work_of_later_rounds()
            seconds = left * (self._clock() - self._start) / self._done
            text += f"; about {max(1, round(seconds / 60))} min left at most"
        logger.info(text)
        yield
        self._done += self._work(self._labels, self.share)

    def _work(self, labels: int, share: float) -> float:
        fixed = any(name in self.settings.training for name in ("optimiser.steps", "optimiser.time"))
        return share * (1.0 if fixed else float(labels) ** _POWER)

    def _work_of_later_rounds(self) -> float:
        settings, labels, work, last = self.settings, self._labels, 0.0, self._last
        while not last:
            labels = min(settings.budget, labels + settings.labels_per_round)
            last = labels >= settings.budget
            work += settings.members * self._work(labels, 1.0 if last else settings.selection_share)
        return work
