"""Files of JSON lines that are appended to, one outcome at a time, so that a stopped run can be resumed.

The first line is a header; every other one ends with the SHA-256 of its content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["ForeignFileError", "JsonLines", "checksum"]


class ForeignFileError(ValueError):
    """A file whose first, incomplete line is no beginning of the header."""


class JsonLines:
    """An open file of JSON lines, which no other run may be writing.

    Args:
        path: The file, created if missing, as is its folder.
        header: The first line, JSON-able; written with the first record.

    Raises:
        OSError: If the file cannot be opened.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self._header = path, header
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")

    def close(self) -> None:
        """Close the file, and delete it if nothing was written, e.g. because the method could not be set up."""
        self._file.close()
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()

    def append(self, record: Mapping[str, Any]) -> int:
        """Write a line to disk, after the header in an empty file; returns the offset of the line.

        Raises:
            OSError: Naming the file; earlier lines are not affected.
        """
        try:
            if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
                raise OSError(errno.ENOENT, "it was deleted or replaced meanwhile")
            if self._file.seek(0, os.SEEK_END) == 0:
                self._file.write(_line(self._header))
            offset = self._file.tell()
            self._file.write(_line({**record, "sha256": checksum(record)}))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error
        return offset

    def read(self, offset: int) -> bytes:
        """The line that begins there."""
        self._file.seek(offset)
        return self._file.readline()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Offset and text of each line.

        An incomplete line at the end, of a process that was killed, is removed and comes last, with offset −1.

        Raises:
            ForeignFileError: If the only line is incomplete and not the header's beginning.
        """
        self._file.seek(0)
        offset = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                if offset == 0 and not _line(self._header).startswith(text):
                    raise ForeignFileError(f"{self.path} does not begin with the header")
                self._file.truncate(offset)
                yield -1, text
                return
            yield offset, text
            offset += len(text)


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a line's content; numbers are written in the shortest form that reads back equal."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
