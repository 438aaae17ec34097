"""The code that builds the site is imported as its own scripts import each other."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A source distribution has no docs/, and nothing of it to test.
collect_ignore_glob = [] if (ROOT / "docs").is_dir() else ["*.py"]


@pytest.fixture(autouse=True)
def site_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """``docs/_code`` on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_code"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where ``md_examples`` is found as in the repository."""
    (tmp_path / "md_examples").symlink_to(ROOT / "md_examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path
