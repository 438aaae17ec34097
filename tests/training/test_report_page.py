"""The page of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ponita_ff.training.report_page import PICTURES, render, write_report_page

ERRORS = {
    "frames": 7,
    "energy_mae": 0.01234,
    "energy_rmse": 0.02,
    "energy_mae_per_atom": 0.001,
    "forces_mae": 0.0567,
    "forces_rmse": 0.08,
    "forces_mae_by_element": {"H": 0.004, "C": 0.009},
    "stress_mae": None,
    "by_formula": {"CH4": {"frames": 3, "energy_mae": 0.001, "forces_mae": 0.0033}},
}
METADATA = {
    "name": "<mine>",
    "data": {"file": "frames.xyz", "train": 12, "files_sha256": ["abc", "def"], "test_file": None},
    "errors": {"validation": ERRORS, "test": {**ERRORS, "forces_mae_by_element": {"O": 0.011}, "by_formula": {}}},
    "training": {"steps": 150, "seconds": 90.0, "hardware": "a machine"},
}
CHANGE = {"name": "new: test", "frames": 5, "energy_before": 1.0, "energy_after": 0.5, "forces_before": 0.321}
CHANGE |= {"forces_after": 0.123, "energy_taught": None, "forces_taught": None}


def test_all_numbers_are_on_the_page_and_nothing_is_asked_of_another_host() -> None:
    page = render(METADATA, "model: {<b>}", [("curve", b"\x89PNG")])
    for text in (
        "Training of &lt;mine&gt;",
        "1.5 minutes",
        "12.34",
        "56.70",
        "11.00",
        "CH4",
        "3.30",
        "abc, def",
        "{&lt;b&gt;}",
    ):
        assert text in page, text
    for symbol in ("C", "H", "O"):
        assert f"force MAE, {symbol}" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page and "<mine>" not in page and "test file" not in page
    assert "Before and after" not in page


@pytest.mark.parametrize("taught", [None, 0.222])
def test_fine_tuning_shows_before_and_after_and_the_teacher_where_there_was_one(taught: float | None) -> None:
    change = {**CHANGE, "energy_taught": taught, "forces_taught": taught}
    page = render({**METADATA, "finetuning": [change]}, "", [])
    assert "321.00" in page and "123.00" in page
    assert ("after the teacher" in page) == ("222.00" in page) == (taught is not None)


def test_it_is_made_from_the_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(METADATA), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("seed: 3", encoding="utf-8")
    for name in PICTURES:
        (tmp_path / name).write_bytes(b"\x89PNG")
    write_report_page(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "seed: 3" in page
    for text in PICTURES.values():
        assert text in page
