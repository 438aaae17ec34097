"""Results that accumulate, and the page that is written from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def pages(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("pages")


def test_results_accumulate_and_the_page_follows(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page"

    def report(results: dict) -> str:
        return "\n".join(pages.table(["key", "value"], [[key, str(r["value"])] for key, r in results["kind"].items()]))

    pages.add_result(page, report, "kind", "a", {"value": 1})
    pages.add_result(page, report, "kind", "b", {"value": 2})
    results = pages.add_result(page, report, "kind", "a", {"value": 3})
    assert (
        json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
        == results
        == pages.read_results(page.with_suffix(".json"))
    )
    assert page.with_suffix(".md").read_text(encoding="utf-8") == "| key | value |\n| --- | --- |\n| a | 3 |\n| b | 2 |"
    (hardware,) = {result["hardware"] for result in results["kind"].values()}
    assert pages.measured_on(results["kind"].values()) == f"Measured on {hardware}."


def test_a_broken_file_is_named(pages: ModuleType, tmp_path: Path) -> None:
    assert pages.read_results(tmp_path / "none.json") == {}
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        pages.read_results(tmp_path / "broken.json")
