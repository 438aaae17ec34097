"""The HTML page: a table of all measurements, then a section with a plot for each check, in one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template

from ponita_ff.audit.plots import draw, png
from ponita_ff.audit.result import AuditReport, CheckResult, Measurement
from ponita_ff.audit.run import CHECKS
from ponita_ff.files import write_json, write_text
from ponita_ff.outputs import claim_folder
from ponita_ff.page.template import load

__all__ = ["FILES", "format_number", "render", "write_report"]

#: In the folder of an audit: the page and its numbers.
FILES = ("audit.html", "audit.json")

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_LIMIT_SIGNS = {"maximum": "≤", "minimum": "≥"}


def format_number(value: float) -> str:
    """Format a number with three significant digits, very small and large ones with a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        # There is no exponent for infinity and NaN.
        text = f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if exponent else mantissa
    return text.replace("-", "−")


@cache
def _template() -> Template:
    """Return the template of the page, which lies beside this module."""
    return load("ponita_ff.audit", "page.html.jinja", {"number": format_number})


def _limit(measurements: Sequence[Measurement]) -> str:
    """Return the limits of one measurement; they differ between calculators where one is raised by noise."""
    limits = {
        f"{_LIMIT_SIGNS[measurement.limit_type]} {format_number(measurement.limit)}"
        for measurement in measurements
        if measurement.limit is not None
    }
    return " / ".join(sorted(limits)) or "–"


def _rows(results: Mapping[str, CheckResult]) -> list[dict[str, Any]]:
    """Return one table row per measurement, with a cell for each calculator; None where one has no such measurement."""
    rows = []
    for name in dict.fromkeys(measurement.name for result in results.values() for measurement in result.measurements):
        cells = [next((m for m in result.measurements if m.name == name), None) for result in results.values()]
        known = [measurement for measurement in cells if measurement is not None]
        rows.append({"name": name, "cells": cells, "unit": known[0].unit, "limit": _limit(known)})
    return rows


def _notes(results: Mapping[str, CheckResult]) -> dict[str, str]:
    """Return the remarks on each calculator, where there are any."""
    notes = {}
    for name, result in results.items():
        sentences = list(result.notes)
        if result.skip_reason is not None:
            sentences.append(f"Skipped: {result.skip_reason}.")
        if result.error is not None:
            sentences.append(f"The calculator raised {result.error}")
        if sentences:
            notes[name] = " ".join(sentences)
    return notes


def _section(key: str, results: Mapping[str, CheckResult]) -> dict[str, Any]:
    """Return what the template shows of one check."""
    figure = draw(key, results)
    return {
        "key": key,
        "title": CHECKS[key].title,
        "description": CHECKS[key].description,
        "results": results,
        "rows": _rows(results),
        "image": None if figure is None else png(figure),
        "notes": _notes(results),
    }


def _summary(name: str, checks: Mapping[str, CheckResult]) -> dict[str, Any]:
    """Return the numbers of passed, failed and other limits of one calculator."""
    measurements = [measurement for result in checks.values() for measurement in result.measurements]
    failed = sum(len(result.failures) for result in checks.values())
    not_judged = [measurement.name for measurement in measurements if measurement.is_not_judged]
    return {
        "name": name,
        "verdict": "fail" if failed else "not judged" if not_judged else "pass",
        "passed": sum(measurement.verdict == "pass" for measurement in measurements),
        "failed": failed,
        "not_judged": not_judged,
        "skipped": sum(result.skip_reason is not None for result in checks.values()),
    }


def render(report: AuditReport) -> str:
    """Return the whole page as HTML; plots are embedded."""
    return _template().render(
        title=f"Audit of {', '.join(report.results)}",
        report=report,
        summary=[_summary(name, checks) for name, checks in report.results.items()],
        sections=[_section(key, report.for_check(key)) for key in CHECKS],
        settings=yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True, default_flow_style=None),
        versions=", ".join(f"{name} {number}" for name, number in report.versions.items()),
    )


def write_report(report: AuditReport, folder: Path) -> tuple[Path, Path]:
    """Write ``audit.html`` and ``audit.json`` into a folder.

    Args:
        report: The report.
        folder: Created if missing.

    Returns:
        The paths of the two files.

    Raises:
        OSError: Naming the file that cannot be written.
    """
    page, numbers = (folder / name for name in FILES)
    with claim_folder(folder, FILES):
        write_text(page, render(report))
        write_json(numbers, report.as_dict())
    return page, numbers
