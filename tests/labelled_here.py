"""Labels without processes, each of which imports what this one has imported already; tests/labels checks those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ponita_ff.labels import LabelResult, label_frames


@pytest.fixture
def labels_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LabelResult]]:
    """What labels instead: in force for explorations and for what imports ``label_frames`` from now on."""
    with ThreadPoolExecutor(1) as executor:
        here = partial(label_frames, executor=executor)
        for module in ("ponita_ff.labels", "ponita_ff.explore.run"):
            monkeypatch.setattr(f"{module}.label_frames", here)
        yield here
