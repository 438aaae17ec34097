"""Files that seem to belong to somebody else: tests may not change owners."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def pretend_owner(monkeypatch: pytest.MonkeyPatch, path: Path, uid: int, gid: int | None = None) -> None:
    """Make ``os.stat`` report another owner, and group, of one file or folder."""
    real = os.stat

    def stat(where: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        found = real(where, *args, **kwargs)
        if not isinstance(where, int) and os.fspath(where) == os.fspath(path):
            fields = list(found)
            fields[4], fields[5] = uid, found.st_gid if gid is None else gid
            return os.stat_result(fields)
        return found

    monkeypatch.setattr(os, "stat", stat)
