"""What a check finds: numbers against limits, arrays for the plots, or why it could not be done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["Measure", "NotDone", "Outcome", "Report", "Verdict"]

Verdict = Literal["pass", "fail", "not done", "info"]


class NotDone(Exception):
    """A check that cannot be done; the text says why, for the user."""


@dataclass(frozen=True)
class Measure:
    """One number of a check.

    Attributes:
        name: What was measured; the same for every calculator.
        value: The number, or None where it could not be had (``note`` says why).
        unit: Its unit, empty for a bare number.
        limit: What it is held against; None for a number that is only reported.
        sense: ``"at most"``: the size of ``value`` may be up to ``limit``; ``"at least"``: ``value`` must reach it.
        error: Standard error of ``value`` where it is an estimate.
        note: Anything that the reader must know.
    """

    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    error: float | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """``"not done"`` also for an estimate whose limit lies within two standard errors: it cannot tell."""
        if self.value is None:
            return "not done"
        if self.limit is None:
            return "info"
        margin = self.limit - abs(self.value) if self.sense == "at most" else self.value - self.limit
        if self.error is not None and abs(margin) < 2.0 * self.error:
            return "not done"
        return "pass" if margin >= 0 else "fail"  # NaN fails

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "verdict": self.verdict}


@dataclass
class Outcome:
    """All that one check found for one calculator.

    Attributes:
        measures: The numbers.
        arrays: What the plots draw; shapes and units are in the check's docstring.
        notes: Sentences for the page.
        not_done: Why nothing was measured, or None.
        error: What the calculator raised, or None; counts as failed.
    """

    measures: list[Measure] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    not_done: str | None = None
    error: str | None = None

    @property
    def failures(self) -> list[str]:
        """Names of what failed."""
        failed = [measure.name for measure in self.measures if measure.verdict == "fail"]
        return failed if self.error is None else [*failed, "raised an error"]

    @property
    def undone(self) -> list[str]:
        """What could not be judged, and why."""
        if self.not_done is not None:
            return [self.not_done]
        return [f"{m.name}: {m.note}" for m in self.measures if m.verdict == "not done"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "measures": [measure.as_dict() for measure in self.measures]}


@dataclass
class Report:
    """All outcomes.

    Attributes:
        outcomes: By calculator, then by check, in the order of the page.
        structure: What was audited, in words.
        settings: All settings, as JSON has them.
        versions: Of the packages that computed.
    """

    outcomes: dict[str, dict[str, Outcome]]
    structure: str
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def failures(self) -> list[str]:
        """``"calculator: check: measure"`` of everything that failed."""
        return self._collect("failures")

    @property
    def undone(self) -> list[str]:
        """``"calculator: check: why"`` of everything that could not be judged."""
        return self._collect("undone")

    def _collect(self, what: str) -> list[str]:
        return [
            f"{name}: {check}: {text}"
            for name, checks in self.outcomes.items()
            for check, outcome in checks.items()
            for text in getattr(outcome, what)
        ]

    @property
    def passed(self) -> bool:
        """Whether no limit was broken; what could not be judged is in `undone`."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Everything, of types that JSON knows."""
        outcomes = {
            name: {check: outcome.as_dict() for check, outcome in checks.items()}
            for name, checks in self.outcomes.items()
        }
        head = {"passed": self.passed, "failures": self.failures, "not_done": self.undone}
        described = {"structure": self.structure, "versions": self.versions, "settings": self.settings}
        return dict(_plain({**head, **described, "calculators": outcomes}))


def _plain(value: Any) -> Any:
    """Arrays as lists, and null for what is not finite: JSON has no NaN."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
