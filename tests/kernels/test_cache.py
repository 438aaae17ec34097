"""Who may own or write what the cache holds."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from owners import pretend_owner

from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.cache import check_private, make_private_folder

if sys.platform == "win32":
    pytest.skip("owners and modes of POSIX", allow_module_level=True)

SOMEBODY = 12345


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("mode", "refused"), [(0o700, False), (0o755, False), (0o644, False), (0o702, True), (0o777, True), (0o1777, True)]
)
def test_writable_by_all(kind: str, mode: int, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else path.touch()
    path.chmod(mode)
    if not refused:
        check_private(path)
        return
    with pytest.raises(KernelError, match=rf"others can write to {path} \(mode {mode:04o}\).*PONITA_FF_CACHE"):
        check_private(path)


@pytest.mark.parametrize(("owner", "refused"), [("own", False), ("root", False), ("somebody", True)])
def test_owners(owner: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_owner(monkeypatch, tmp_path, {"own": os.getuid(), "root": 0, "somebody": SOMEBODY}[owner])
    if not refused:
        check_private(tmp_path)
        return
    with pytest.raises(KernelError, match=rf"{tmp_path} belongs to another user \(uid {SOMEBODY}\).*PONITA_FF_CACHE"):
        check_private(tmp_path)


@pytest.mark.parametrize(
    ("group", "members", "refused"),
    [("alice", [], False), ("alice", ["alice"], False), ("alice", ["alice", "bob"], True), ("lab", [], True)],
)
def test_a_group_of_ones_own_may_write(
    group: str, members: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With umask 002 folders are writable by the group, which on many systems has no other member."""
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=group, gr_mem=members))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="alice", pw_gid=7))
    tmp_path.chmod(0o770)
    pretend_owner(monkeypatch, tmp_path, os.getuid(), gid=7)
    if not refused:
        check_private(tmp_path)
        return
    with pytest.raises(KernelError, match="others can write"):
        check_private(tmp_path)


def test_a_group_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(grp, "getgrgid", unknown)
    tmp_path.chmod(0o770)
    with pytest.raises(KernelError, match="others can write"):
        check_private(tmp_path)


def test_a_new_folder_is_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    before = os.umask(0)
    try:
        make_private_folder(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(KernelError, match="others can write"):
        make_private_folder(folder)
