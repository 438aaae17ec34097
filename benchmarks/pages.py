"""Results that gather, run by run, in a JSON file, and the page that is written from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ponita_ff.provenance import describe_hardware

__all__ = ["add_result"]


def add_result(
    page: Path, report: Callable[[dict[str, Any]], str], kind: str, key: str, values: dict[str, Any]
) -> dict[str, Any]:
    """Put values into ``page``'s JSON file, as ``[kind][key]`` and with the hardware, and write the page anew.

    Returns all results.
    """
    path = page.with_suffix(".json")
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results.setdefault(kind, {})[key] = values | {"hardware": describe_hardware(torch.device("cpu"))}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.with_suffix(".md").write_text(report(results), encoding="utf-8")
    print(f"{kind} {key}: {json.dumps(values)}", flush=True)
    return results
