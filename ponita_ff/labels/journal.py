"""The journal of a labelling run: every outcome is written at once, so that a stopped run can be resumed.

The journal is a text file with one JSON object per line. The first describes the method; then there is one for each
outcome, in order of completion. A later line of a frame replaces an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from ase import Atoms

from ponita_ff.labels.methods import LabelError, Method
from ponita_ff.labels.worker import Failure, Labels, Outcome

try:
    import fcntl
except ImportError:  # Windows: two runs on one journal are not prevented there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal", "frame_key", "journal_path"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def journal_path(out: Path) -> Path:
    """Path of the journal of a labelled file, which is in the same folder."""
    return out.with_name(f"{out.name}.journal.jsonl")


def frame_key(atoms: Atoms, method: Method) -> str:
    """SHA-256 of everything that the labels of a frame depend on."""
    digest = hashlib.sha256(json.dumps([method.name, method.charge, method.multiplicity]).encode())
    digest.update(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.astype("<i8").tobytes())
    for values in (atoms.positions, atoms.cell.array):
        digest.update((values + 0.0).astype("<f8").tobytes())  # −0 is 0
    return digest.hexdigest()


class Journal:
    """The outcomes of one list of frames by one method.

    Args:
        path: The file, created if missing. An incomplete last line is removed, and its frame is labelled again.
        method: The method of the labels.
        keys: `frame_key` of every frame.
        frames: Name of the list of frames for error messages, e.g. that of its file.

    Raises:
        LabelError: The journal belongs to another method or to other frames, is damaged, or is in use by another run.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, method: Method, keys: Sequence[str], frames: str) -> None:
        self.path = path
        self._keys = keys
        self._frames = frames
        self._offsets: dict[int, int] = {}
        self._failures: dict[int, str] = {}
        self._header = {
            "ponita_ff labels": _FORMAT,
            "method": method.name,
            "charge": method.charge,
            "multiplicity": method.multiplicity,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            self._lock()
            self._read_all()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # of a full disk, for the second time
            if error is None:
                raise
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()  # there was no outcome, e.g. because the method could not be set up

    @property
    def labelled(self) -> list[int]:
        """Numbers of the labelled frames, in input order."""
        return sorted(self._offsets)

    @property
    def failures(self) -> Mapping[int, str]:
        """Reasons of failed frames by number, in input order."""
        return MappingProxyType(dict(sorted(self._failures.items())))

    def missing(self, *, retry_failed: bool = False) -> list[int]:
        """Numbers of the frames without an outcome, and of failed ones if they are to be tried again."""
        done = self._offsets.keys() if retry_failed else self._offsets.keys() | self._failures.keys()
        return [number for number in range(len(self._keys)) if number not in done]

    def add(self, number: int, outcome: Outcome) -> None:
        """Write one outcome to disk.

        Raises:
            OSError: Naming the journal; earlier outcomes are not affected.
        """
        record: dict[str, Any] = {"frame": number, "key": self._keys[number]}
        if isinstance(outcome, Failure):
            record["failed"] = outcome.reason
        else:
            stress = None if outcome.stress is None else outcome.stress.tolist()
            record |= {"energy": outcome.energy, "forces": outcome.forces.tolist(), "stress": stress}
            record["program"] = outcome.program
        offset = self._write(record)
        self._index(number, offset, record)

    def labels(self, number: int) -> Labels:
        """The labels of one frame, with all digits that were added."""
        self._file.seek(self._offsets[number])
        record = json.loads(self._file.readline())
        forces = np.array(record["forces"], dtype=np.float64).reshape(-1, 3)
        stress = None if record["stress"] is None else np.array(record["stress"], dtype=np.float64)
        return Labels(record["energy"], forces, stress, record["program"])

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabelError(f"{self.path}: another run is using this journal; wait until it has ended") from None
        except OSError as error:  # the file system has no locks
            _LOG.warning("%s: cannot be locked (%s); do not start a second run on it", self.path, error.strerror)

    def _write(self, record: Mapping[str, Any]) -> int:
        """Append a line, after the header in an empty file; returns the offset of the line."""
        try:
            if self._file.seek(0, os.SEEK_END) == 0:
                self._file.write(_line(self._header))
            offset = self._file.tell()
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error
        return offset

    def _index(self, number: int, offset: int, record: Mapping[str, Any]) -> None:
        if "failed" in record:
            self._failures[number] = record["failed"]
        else:
            self._failures.pop(number, None)
            self._offsets[number] = offset

    def _read_all(self) -> None:
        for line, (offset, text) in enumerate(self._complete_lines(), start=1):
            record = self._parse(line, text)
            if line == 1:
                self._check_header(record)
            else:
                self._add_record(line, offset, record)

    def _complete_lines(self) -> Iterator[tuple[int, bytes]]:
        """Offset and text of each line; an incomplete line at the end, of a process that was killed, is removed."""
        self._file.seek(0)
        offset = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                if offset == 0 and not _line(self._header).startswith(text):
                    raise LabelError(f"{self.path} is not a journal of labels; choose another --out, or move it away")
                _LOG.warning("%s: the last line is incomplete; its frame is labelled again", self.path)
                self._file.truncate(offset)
                return
            yield offset, text
            offset += len(text)

    def _parse(self, line: int, text: bytes) -> dict[str, Any]:
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise LabelError(
                f"{self.path}, line {line}: damaged, not a JSON object; delete that line to label its frame again"
            )
        return record

    def _check_header(self, found: Mapping[str, Any]) -> None:
        if found.get("ponita_ff labels") != _FORMAT:
            raise LabelError(f"{self.path} is not a journal of labels; choose another --out, or move it away")
        if found != self._header:
            old, new = (
                f"{header.get('method')}, charge {header.get('charge')}, multiplicity {header.get('multiplicity')}"
                for header in (found, self._header)
            )
            raise LabelError(
                f"{self.path} holds labels by another method: {old}, not {new}; choose another --out, or delete "
                "the journal to start again"
            )

    def _add_record(self, line: int, offset: int, record: Mapping[str, Any]) -> None:
        number: Any = record.get("frame")
        if number not in range(len(self._keys)) or record.get("key") != self._keys[number]:
            raise LabelError(
                f"{self.path}, line {line}: its frame {number} is not frame {number} of {self._frames}: the journal "
                "belongs to other frames; choose another --out, or delete the journal to start again"
            )
        self._index(number, offset, record)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
