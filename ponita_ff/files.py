"""Atomic writes: a file is written completely or not at all. Reads: only regular files, and text of limited size."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["exists", "is_file", "read_text", "why_not_a_file", "write_atomically", "write_json", "write_text"]

_MAX_TEXT = 10_000_000  # bytes


def why_not_a_file(path: Path) -> str | None:
    """Why a path cannot be read as a regular file; None if it can.

    Devices and pipes are refused: ``/dev/zero`` never ends.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except (OSError, ValueError) as error:  # a name that is too long, no permission; a zero byte in the name
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else "not a file"


def is_file(path: Path) -> bool:
    """Whether there is such a regular file; False also for what no file can be called."""
    return why_not_a_file(path) is None


def exists(path: Path) -> bool:
    """Whether there is anything of that name; False for a name that no file can have, where `Path.exists` raises."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def read_text(path: Path, limit: int = _MAX_TEXT) -> str:
    """The contents of a text file (UTF-8), or of a pipe, of at most ``limit`` bytes.

    Raises:
        OSError: It cannot be read, or is larger.
        UnicodeDecodeError: It is not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes, the most that is read of such a file", str(path))
    return content.decode("utf-8")


def write_atomically(path: Path, write: Callable[[Path], object], make_folder: bool = True) -> None:
    """Write a temporary file in the folder of ``path``, then rename it; an old file is replaced only by a complete one.

    Args:
        path: The file.
        write: Called with the path of the temporary file, which it writes.
        make_folder: Whether to create missing folders. Without it, a folder that was deleted during a run is an error.

    Raises:
        OSError: Naming the file and the reason (full disk, no permission); nothing at ``path`` has changed.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() or make_folder else f"the folder {path.parent} is gone"
        raise OSError(error.errno, f"cannot write {path}: {reason}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: a full disk in torch and safetensors
        code = getattr(error, "errno", None) or errno.EIO
        raise OSError(code, f"cannot write {path}: {error}; the file that was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) completely or not at all.

    Raises:
        OSError: As :func:`write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write an indented JSON file completely or not at all.

    Raises:
        OSError: As :func:`write_atomically`.
        TypeError, ValueError: For content that JSON cannot hold; nothing at ``path`` has changed.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")
