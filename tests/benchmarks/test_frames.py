"""The measurement of what frame averaging does where frames degenerate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner


@pytest.fixture(scope="module")
def frames(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("frames")


def test_frames_jump_and_a_smooth_form_does_not(frames: ModuleType, tmp_path: Path) -> None:
    done = CliRunner().invoke(frames.main, ["--picoseconds", "0.005", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    averaged, smooth = json.loads((tmp_path / "frames.json").read_text(encoding="utf-8"))["forms"].values()
    assert averaged["jump_mev"] > 1.0 > 1e-2 > smooth["jump_mev"]
    forces = list(averaged["largest_forces"].values())
    assert forces[-1] > 50 * forces[1]
    assert forces[-1] / forces[-2] == pytest.approx(10.0, rel=0.2)  # as one over the distance
    assert max(smooth["largest_forces"].values()) < 2.0
    assert averaged["far_parts_mev"] > 1.0 > 1e-6 > smooth["far_parts_mev"]
    page = (tmp_path / "frames.md").read_text(encoding="utf-8")
    assert f"| frame averaging | {averaged['jump_mev']:.2g} |" in page


def test_the_top_has_equal_moments_between_two_orders(frames: ModuleType) -> None:
    differences = []
    for stretch in (-0.01, 0.0, 0.01):
        positions = frames.top(stretch, 0.0).positions
        moments = positions.T @ positions - len(positions) * positions.mean(0)[:, None] * positions.mean(0)
        differences.append(moments[0, 0] - moments[1, 1])
    assert differences[0] < -1e-4 < 1e-4 < differences[2]
    assert abs(differences[1]) < 2e-6
