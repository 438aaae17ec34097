"""Results of the checks: measurements with limits, arrays for the plots, and the report of a whole audit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["AuditReport", "CheckResult", "CheckSkipped", "LimitType", "Measurement", "Verdict"]

Verdict = Literal["pass", "fail", "inconclusive", "info"]
LimitType = Literal["maximum", "minimum"]

#: An estimate within this many standard errors of its limit is inconclusive.
_STANDARD_ERRORS = 2.0


class CheckSkipped(Exception):
    """Raised by a check that does not apply. The message is shown to the user as the reason."""


@dataclass(frozen=True)
class Measurement:
    """One number measured by a check.

    Attributes:
        name: Name of the quantity, the same for every calculator.
        value: The number; None if it could not be measured, in which case ``note`` gives the reason.
        unit: Unit of ``value``, empty for a dimensionless number.
        limit: Limit for ``value``, in ``unit``; None for a number that is only reported.
        limit_type: ``"maximum"``: the absolute value may not exceed ``limit``. ``"minimum"``: the value may not be
            below ``limit``.
        standard_error: Standard error of ``value``, in ``unit``, if it is a statistical estimate.
        note: Remark for the reader.
    """

    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    limit_type: LimitType = "maximum"
    standard_error: float | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Comparison of the value with the limit.

        ``"inconclusive"`` if there is no value, or if an estimate lies within two standard errors of its limit;
        ``"info"`` if there is no limit. NaN fails.
        """
        if self.value is None:
            return "inconclusive"
        if self.limit is None:
            return "info"
        margin = self.limit - abs(self.value) if self.limit_type == "maximum" else self.value - self.limit
        if self.standard_error is not None and abs(margin) < _STANDARD_ERRORS * self.standard_error:
            return "inconclusive"
        return "pass" if margin >= 0 else "fail"

    @property
    def is_not_judged(self) -> bool:
        """Whether there is a limit, but neither a pass nor a failure."""
        return self.limit is not None and self.verdict == "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict, for JSON."""
        return {**self.__dict__, "verdict": self.verdict}


@dataclass
class CheckResult:
    """Result of one check for one calculator.

    Attributes:
        measurements: The numbers.
        arrays: Data of the plots; shapes and units are given in the docstring of the check.
        notes: Sentences for the page.
        skip_reason: Why the check was skipped; None if it was run.
        error: Exception raised by the calculator, as text; None if there was none. An error counts as a failure.
    """

    measurements: list[Measurement] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skip_reason: str | None = None
    error: str | None = None

    @property
    def failures(self) -> list[str]:
        """Names of the failed measurements, and ``"raised an error"`` if the calculator did."""
        failed = [measurement.name for measurement in self.measurements if measurement.verdict == "fail"]
        return failed if self.error is None else [*failed, "raised an error"]

    @property
    def not_judged(self) -> list[str]:
        """Measurements with a limit that have neither passed nor failed, and why."""
        return [f"{m.name}: {m.note}" for m in self.measurements if m.is_not_judged]

    @property
    def inconclusive(self) -> list[str]:
        """What has neither passed nor failed, and why: a skipped check, or single measurements."""
        if self.skip_reason is not None:
            return [self.skip_reason]
        return [f"{m.name}: {m.note}" for m in self.measurements if m.verdict == "inconclusive"]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return {**self.__dict__, "measurements": [measurement.as_dict() for measurement in self.measurements]}


@dataclass
class AuditReport:
    """Results of all checks for all calculators.

    Attributes:
        results: By calculator, then by check, in the order of the page.
        structure: Description of the audited structure.
        settings: All settings, as JSON values.
        versions: Versions of the packages used, by name.
    """

    results: dict[str, dict[str, CheckResult]]
    structure: str
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def failures(self) -> list[str]:
        """``"calculator: check: measurement"`` for every failure."""
        return self._collect("failures")

    @property
    def inconclusive(self) -> list[str]:
        """``"calculator: check: reason"`` for everything that has neither passed nor failed."""
        return self._collect("inconclusive")

    @property
    def not_judged(self) -> list[str]:
        """``"calculator: check: reason"`` for every measurement that should have passed or failed and did not."""
        return self._collect("not_judged")

    def _collect(self, attribute: Literal["failures", "inconclusive", "not_judged"]) -> list[str]:
        return [
            f"{name}: {check}: {text}"
            for name, checks in self.results.items()
            for check, result in checks.items()
            for text in getattr(result, attribute)
        ]

    @property
    def passed(self) -> bool:
        """Whether no limit was exceeded. What was not judged does not count; see `not_judged` and `inconclusive`."""
        return not self.failures

    def for_check(self, check: str) -> dict[str, CheckResult]:
        """Return the results of one check by calculator."""
        return {name: checks[check] for name, checks in self.results.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can represent; numbers that are not finite become None."""
        results = {
            name: {check: result.as_dict() for check, result in checks.items()} for name, checks in self.results.items()
        }
        summary: dict[str, Any] = {"passed": self.passed, "failures": self.failures}
        summary |= {"not_judged": self.not_judged, "inconclusive": self.inconclusive}
        description = {"structure": self.structure, "versions": self.versions, "settings": self.settings}
        return dict(_to_json({**summary, **description, "calculators": results}))


def _to_json(value: Any) -> Any:
    """Convert arrays to lists, and numbers that are not finite to None, since JSON has no NaN."""
    if isinstance(value, np.ndarray | np.generic):
        return _to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
