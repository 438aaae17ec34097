"""A folder in which the calculators leave traces, and frames to label."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase import Atoms
from label_calculators import make_frames


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Where `Spring` leaves a file for every calculation."""
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture
def frames() -> list[Atoms]:
    """Eight molecules of hydrogen."""
    return make_frames(8)
