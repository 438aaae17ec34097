"""``report.html`` of a training run: errors, data and pictures in one file, made from the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from ponita_ff.files import read_text, write_text
from ponita_ff.page.template import data_url, load

__all__ = ["PICTURES", "REPORT_PAGE", "render", "write_report_page"]

REPORT_PAGE = "report.html"

#: Pictures of the page, by file, in its order, with what they show.
PICTURES = {
    "learning_curve.png": "Validation errors of the averaged weights by training step",
    "parity.png": "Predicted against labelled energies and force components",
}


def _milli(value: float | None) -> str:
    """A number of eV in meV; a dash for none."""
    return "–" if value is None else f"{1e3 * value:.2f}"


def _duration(seconds: float) -> str:
    """A time in the largest unit that makes it at least one."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


@cache
def _template() -> Template:
    return load("ponita_ff.training", "report.html.jinja", {"milli": _milli, "duration": _duration})


def render(metadata: Mapping[str, Any], settings: str, pictures: Sequence[tuple[str, bytes]]) -> str:
    """The page as HTML.

    Args:
        metadata: Of the trained potential, as in ``report.json``.
        settings: Text of ``config.yaml``.
        pictures: PNG images, each with what it shows.
    """
    errors, changes = metadata["errors"], metadata.get("finetuning", [])
    return _template().render(
        title=f"Training of {metadata.get('name') or 'a potential'}",
        data=metadata["data"],
        errors=errors,
        elements=sorted({symbol for values in errors.values() for symbol in values["forces_mae_by_element"]}),
        changes=changes,
        taught=any(change["forces_taught"] is not None for change in changes),
        training=metadata["training"],
        reference_energies=metadata.get("reference_energies_from"),
        started_from=metadata.get("started_from"),
        settings=settings,
        pictures=[(text, data_url(content)) for text, content in pictures],
    )


def write_report_page(folder: Path) -> None:
    """Write ``report.html`` from ``report.json``, ``config.yaml`` and the pictures of a finished run.

    Args:
        folder: Of the run, or of a stage of it.

    Raises:
        OSError: Naming the file that cannot be read or written.
    """
    metadata = json.loads(read_text(folder / "report.json"))
    pictures = [(text, (folder / name).read_bytes()) for name, text in PICTURES.items()]
    write_text(folder / REPORT_PAGE, render(metadata, read_text(folder / "config.yaml"), pictures))
