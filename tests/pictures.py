"""Pictures left out where dynamics or a relaxation is only a part of what is tested: they take longer than it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn_pictures() -> None:
    """For tests that look at pictures."""


@pytest.fixture(autouse=True)
def pictures_left_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, their files are empty, except where a test asks for ``drawn_pictures``.

    Import both where they are to be in force.
    """
    savefig = Figure.savefig

    def left_out(figure: Figure, path: Any, **options: Any) -> None:
        if isinstance(path, str | Path):
            Path(path).write_bytes(b"")
        else:  # into memory, for a page
            savefig(figure, path, **options)

    if "drawn_pictures" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", left_out)
