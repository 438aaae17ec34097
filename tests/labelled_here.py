"""Labels without processes, each of which imports what this one has imported already; tests/labels checks those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from matplotlib.figure import Figure

from ponita_ff.explore import ExploreSettings, explore
from ponita_ff.explore import run as explore_run
from ponita_ff.labels import LabelResult, label_frames


@pytest.fixture
def labels_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LabelResult]]:
    """What labels instead: in force for explorations and for what imports ``label_frames`` from now on."""
    with ThreadPoolExecutor(1) as executor:
        here = partial(label_frames, executor=executor)
        for module in ("ponita_ff.labels", "ponita_ff.explore.run"):
            monkeypatch.setattr(f"{module}.label_frames", here)
        yield here


def explore_here(structure: Atoms, base: Path, values: dict[str, Any], out: Path) -> None:
    """An exploration for a process of its own: no further processes that label, no pictures."""
    explore_run.label_frames = partial(label_frames, executor=ThreadPoolExecutor(1))
    Figure.savefig = lambda self, path, **options: Path(path).write_bytes(b"")
    explore([structure], base, ExploreSettings.from_mapping(values), out, progress=False)
