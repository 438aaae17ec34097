"""The look at pages in a real browser finds what is wrong with them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from ponita_ff.page.template import SCRIPT

GOOD = """<!doctype html><title>good</title><script src="sort.js"></script>
<table class="sortable"><thead><tr><th>a</th><th>b</th><th>c</th><th>d</th><th>e</th></tr></thead><tbody>
<tr><td>x</td><td></td><td></td><td></td><td>10</td></tr><tr><td>y</td><td></td><td></td><td></td><td>9</td></tr>
</tbody></table>"""
BAD = """<!doctype html><title>bad</title><div style="width: 3000px">wide</div><img src="https://far.away/x.png">
<img src="missing.png"><script>console.error("it failed"); throw new Error("thrown")</script>"""


def test_errors_requests_and_widths_are_found(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra docs)")
    look = importlib.import_module("look")
    if look.chromium() is None:
        pytest.skip("no Chromium is installed")
    root = Path(__file__).parents[2]
    (tmp_path / SCRIPT).write_bytes((root / "ponita_ff" / "page" / SCRIPT).read_bytes())
    for name, text in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    good = CliRunner().invoke(look.main, [str(tmp_path), "--only", "good.html"])
    assert good.exit_code == 0, good.output
    bad = CliRunner().invoke(look.main, [str(tmp_path), "--only", "bad.html"])
    assert bad.exit_code == 1
    for found in (
        "asks another host: https://far.away",
        "404:",
        "it failed",
        "script: thrown",
        "wider than the screen",
    ):
        assert found in bad.output, bad.output


def test_without_a_browser_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra docs)")
    look = importlib.import_module("look")
    monkeypatch.setattr(look, "chromium", lambda: None)
    answer = CliRunner().invoke(look.main, [str(tmp_path)])
    assert answer.exit_code == 2 and "there is no Chromium: install it" in answer.output
