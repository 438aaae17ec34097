"""Results that accumulate in a JSON file, and the Markdown page that is written from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ponita_ff.files import write_text

__all__ = ["add_result", "measured_on", "read_results", "table", "write_results"]

Results = dict[str, Any]


def read_results(path: Path) -> Results:
    """Read a JSON file of results; empty if there is none.

    Raises:
        ValueError: If the file is not JSON.
    """
    if not path.exists():
        return {}
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it to start again") from None
    return results


def write_results(path: Path, results: Results) -> None:
    """Write a JSON file of results."""
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def add_result(page: Path, report: Callable[[Results], str], kind: str, key: str, values: dict[str, Any]) -> Results:
    """Add one result to a JSON file, with a description of the hardware, and write the page anew.

    Args:
        page: Path of both files without ``.json`` and ``.md``.
        report: Returns the page for all results.
        kind: Group of results.
        key: Name of the result in its group; an earlier one is replaced.
        values: The result.

    Returns:
        All results.
    """
    import torch

    from ponita_ff.provenance import describe_hardware

    path = page.with_suffix(".json")
    results = read_results(path)
    results.setdefault(kind, {})[key] = values | {"hardware": describe_hardware(torch.device("cpu"))}
    write_results(path, results)
    write_text(page.with_suffix(".md"), report(results))
    print(f"{kind} {key}: {json.dumps(values)}", flush=True)
    return results


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def measured_on(results: Iterable[dict[str, Any]]) -> str:
    """Return a sentence with the hardware of all results."""
    return f"Measured on {'; '.join(sorted({result['hardware'] for result in results}))}."
