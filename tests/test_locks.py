"""Locks: one owner at a time, dead ones do not block, the file says who it is."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ponita_ff import locks
from ponita_ff.locks import Lock, LockedError

HERE = {"host": socket.gethostname(), "pid": os.getpid(), "started": locks._start_time(os.getpid())}

HOLD = """
import sys, time
from pathlib import Path
from ponita_ff.locks import Lock
with Lock(Path(sys.argv[1]), "it"):
    print("locked", flush=True)
    time.sleep(60)
"""


def no_system_locks(patch: pytest.MonkeyPatch) -> None:
    """As on a network file system that has none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    patch.setattr("fcntl.flock", refuse)


def leave(path: Path, owner: dict[str, Any]) -> None:
    """A lock's file as a process leaves it that was killed."""
    path.write_text(json.dumps({"owner": owner, "files": ["a"]}), encoding="utf-8")


@pytest.mark.parametrize("system", [True, False])
def test_one_owner_at_a_time(system: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not system:
        no_system_locks(monkeypatch)
    path = tmp_path / "lock"
    with Lock(path, "the folder run"):
        assert json.loads(path.read_bytes())["owner"] == HERE
        process = rf"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(LockedError, match=f"another run is using the folder run: {process}"),
            Lock(path, "the folder run"),
        ):
            pass
    assert not path.exists()
    with Lock(path, "the folder run"):
        pass


def test_a_killed_owner_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on "), Lock(path, "it"):
            pass
        process.kill()
    assert json.loads(path.read_bytes())["owner"]["pid"] == process.pid
    with Lock(path, "it"):
        assert json.loads(path.read_bytes())["owner"] == HERE


def test_without_locks_of_the_system_the_owner_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_system_locks(monkeypatch)
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead = [{**HERE, "pid": ended.pid}, {**HERE, "started": "before the last boot"}, {"host": HERE["host"]}, "nobody"]
    for owner in dead:
        leave(path, owner)  # type: ignore[arg-type]
        with Lock(path, "it", keep=True) as lock:
            assert lock.content == {"files": ["a"]}
    leave(path, HERE)
    with pytest.raises(LockedError, match=r"ended, or stop it$"), Lock(path, "it"):
        pass
    leave(path, {**HERE, "host": "elsewhere"})
    with pytest.raises(LockedError, match=f"on elsewhere.*if it is dead, delete {path}$"), Lock(path, "it"):
        pass


def test_an_owner_on_another_machine_that_was_killed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave(tmp_path / "lock", {**HERE, "host": "elsewhere"})
    with Lock(tmp_path / "lock", "the folder run"):
        pass
    assert f"the folder run was last used by process {os.getpid()} on elsewhere" in caplog.text


def test_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path, "it", keep=True) as lock:
        lock.update({"files": ["a", "b" * 1000]})
        lock.update({"files": ["a"]})
    assert json.loads(path.read_bytes()) == {"files": ["a"]}
    path.write_text("not a record", encoding="utf-8")
    with Lock(path, "it", keep=True) as lock:
        assert lock.content == {}


@pytest.mark.parametrize("replace", [True, False])
def test_a_deleted_or_replaced_file_is_noticed(replace: bool, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path, "the folder run", keep=True) as lock:
        lock.check()
        path.unlink()
        if replace:
            path.write_text("{}", encoding="utf-8")
        with pytest.raises(FileNotFoundError, match="the folder run was deleted, moved or begun anew"):
            lock.check()
    assert path.exists() == replace  # that of another run is left alone


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"cannot write .*nowhere/lock: No such file"),
        Lock(tmp_path / "nowhere/lock", "it"),
    ):
        pass
