"""Locks between processes, so that no two write the same files. The lock's file names its owner."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

try:
    import fcntl
except ImportError:  # Windows: the owner's process number decides
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock", "LockedError"]

logger = logging.getLogger(__name__)


class LockedError(ValueError):
    """Another process is using the files; the message names it."""


class Lock:
    """A lock by the operating system, which ends with the process, on a file that holds the owner's host and process.

    Lock files of dead processes do not block. Where the file system has no locks (some network file systems), an owner
    on this machine blocks while its process lives; one on another machine until its file is deleted, since nobody
    here can tell whether it lives.

    Args:
        path: The lock's file, created if missing.
        what: What is locked, for messages, e.g. ``"the folder run"``.
        keep: Whether the file stays after the lock, with ``content``; else it is deleted.

    Attributes:
        content: Facts kept in the file beside the owner; see `update`.

    Raises:
        LockedError: On entering, if another process holds it.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: Path, what: str, keep: bool = False) -> None:
        self.path, self.what, self.keep = path, what, keep
        self.content: dict[str, Any] = {}
        self._handle = -1

    def __enter__(self) -> Self:
        while True:
            self._handle = self._open()
            try:
                by_system = self._lock()
                if self.is_current():
                    record = _read(self.path)
                    self._check_owner(record.get("owner"), by_system)
                    break
            except BaseException:
                os.close(self._handle)
                raise
            os.close(self._handle)  # its owner deleted the file when it ended: again, with a new file
        self.content = {name: value for name, value in record.items() if name != "owner"}
        self.update({})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # A folder that was deleted or replaced meanwhile has no file of ours.
        with contextlib.suppress(OSError):
            if self.is_current() and self.keep:
                self._write(self.content)
            elif self.is_current():
                self.path.unlink()
        os.close(self._handle)

    def update(self, facts: Mapping[str, Any]) -> None:
        """Add facts to the file."""
        self.content |= facts
        self._write({**self.content, "owner": _this_process()})

    def is_current(self) -> bool:
        """Whether the lock's file is still the one that is locked: nobody has deleted or replaced it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._handle))
        except OSError:
            return False

    def check(self) -> None:
        """Refuse to go on where the files were deleted or replaced meanwhile.

        Raises:
            FileNotFoundError: Naming what was locked.
        """
        if not self.is_current():
            raise FileNotFoundError(
                errno.ENOENT, f"{self.what} was deleted, moved or begun anew by another run: this one ends"
            )

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from None

    def _lock(self) -> bool:
        """Lock by the operating system; False where it has no locks for this file."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise self._in_use(_read(self.path).get("owner")) from None
            logger.debug("%s: no locks here (%s)", self.path, error.strerror)
            return False
        return True

    def _check_owner(self, owner: Any, by_system: bool) -> None:
        """Look at an owner that has not taken its name away: it lives, or was killed."""
        if not isinstance(owner, dict):
            return
        here = owner.get("host") == socket.gethostname()
        if by_system and not here:  # some file systems lock for one machine only
            logger.warning(
                "%s was last used by process %s on %s, which did not end properly; if it still runs, stop this one",
                self.what,
                owner.get("pid"),
                owner.get("host"),
            )
        if not by_system and (not here or _is_alive(owner)):
            raise self._in_use(owner)

    def _in_use(self, owner: Any) -> LockedError:
        if not isinstance(owner, dict):
            return LockedError(f"another run is using {self.what}: wait until it has ended")
        text = f"another run is using {self.what}: process {owner.get('pid')} on {owner.get('host')}; wait until it has"
        if owner.get("host") == socket.gethostname():
            return LockedError(f"{text} ended, or stop it")
        return LockedError(f"{text} ended, or stop it; if it is dead, delete {self.path}")

    def _write(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record).encode() + b"\n"
        try:
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, text)
            os.ftruncate(self._handle, len(text))
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from None


def _read(path: Path) -> dict[str, Any]:
    """What a lock's file holds; empty for a new or damaged one."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def _start_time(pid: int) -> str | None:
    """When a process was started, in the system's own clock; a later process of the same number differs in it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(owner: Mapping[str, Any]) -> bool:
    pid = owner.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return owner.get("started") == _start_time(pid)
