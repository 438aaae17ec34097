"""The report: numbers of every round, and a picture of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ponita_ff.explore.report import Round, write_report

FIRST = Round(
    number=1,
    labels=10,
    validation_force_mae=0.05,
    uncertainty_median=0.1,
    uncertainty_95=0.4,
    stopped=1,
    trajectories=4,
    selected=10,
    selected_force_mae=0.12,
    calibration=2.5,
)
LAST = replace(FIRST, number=2, labels=20, stopped=0, selected=0, selected_force_mae=None, calibration=None)


def test_numbers_of_every_round(tmp_path: Path) -> None:
    write_report([FIRST, LAST], 0.1, "the budget is spent", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["outcome"], report["threshold"]) == ("the budget is spent", 0.1)
    assert [Round(**each) for each in report["rounds"]] == [FIRST, LAST]


def test_the_picture_changes_with_the_rounds(tmp_path: Path) -> None:
    pictures = []
    for rounds in ([FIRST], [FIRST, LAST]):
        write_report(rounds, 0.1, "in progress", tmp_path)
        pictures.append((tmp_path / "report.png").read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.png"]


def test_a_first_round_without_selected_frames_can_be_drawn(tmp_path: Path) -> None:
    write_report([LAST], 0.1, "ended", tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 10_000
