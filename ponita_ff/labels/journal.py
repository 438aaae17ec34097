"""Every outcome on disk as soon as there is one, so that a stopped run goes on where it was.

The journal is a text file with one JSON object a line: first what makes the labels, then one line for each outcome in
the order in which they came. A later line of a frame replaces an earlier one.
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
except ImportError:  # Windows: nothing there keeps two runs from one journal
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal", "frame_key", "journal_path"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def journal_path(out: Path) -> Path:
    """Where the journal of a labelled file is: beside it."""
    return out.with_name(f"{out.name}.journal.jsonl")


def frame_key(atoms: Atoms, method: Method) -> str:
    """SHA-256 of all that the labels of a frame depend on."""
    digest = hashlib.sha256(json.dumps([method.name, method.charge, method.multiplicity]).encode())
    digest.update(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.astype("<i8").tobytes())
    for values in (atoms.positions, atoms.cell.array):
        digest.update((values + 0.0).astype("<f8").tobytes())  # −0 is 0
    return digest.hexdigest()


class Journal:
    """The outcomes of one list of frames by one method.

    Args:
        path: Made where there is none; a last line that was cut off is taken away, and its frame is labelled again.
        method: What makes the labels.
        keys: `frame_key` of every frame.
        frames: What errors call the list of frames, e.g. the name of its file.

    Raises:
        LabelError: The journal is of another method or of other frames, is damaged, or another run is writing it.
        OSError: It cannot be read or written.
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
        except OSError:  # a full disk, once more
            if error is None:
                raise
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()  # nothing came of the run, e.g. since the method could not be set up

    @property
    def labelled(self) -> list[int]:
        """Numbers of the labelled frames, in their order in the input."""
        return sorted(self._offsets)

    @property
    def failures(self) -> Mapping[int, str]:
        """Why a frame has no labels, by its number, in the order of the input."""
        return MappingProxyType(dict(sorted(self._failures.items())))

    def missing(self, *, retry_failed: bool = False) -> list[int]:
        """Numbers of the frames to label."""
        done = self._offsets.keys() if retry_failed else self._offsets.keys() | self._failures.keys()
        return [number for number in range(len(self._keys)) if number not in done]

    def add(self, number: int, outcome: Outcome) -> None:
        """Write one outcome; it is on the disk when this returns.

        Raises:
            OSError: Naming the journal; what it held is unharmed.
        """
        record: dict[str, Any] = {"frame": number, "key": self._keys[number]}
        if isinstance(outcome, Failure):
            record["failed"] = outcome.reason
        else:
            stress = None if outcome.stress is None else outcome.stress.tolist()
            record |= {"energy": outcome.energy, "forces": outcome.forces.tolist(), "stress": stress}
            record["program"] = outcome.program
        offset = self._write(record)
        self._note(number, offset, record)

    def labels(self, number: int) -> Labels:
        """The labels of one frame, exactly as they were added."""
        self._file.seek(self._offsets[number])
        record = json.loads(self._file.readline())
        forces = np.array(record["forces"], dtype=np.float64).reshape(-1, 3)
        stress = None if record["stress"] is None else np.array(record["stress"], dtype=np.float64)
        return Labels(record["energy"], forces, stress, record["program"])

    # ------------------------------------------------------------------------------------------ inside

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabelError(f"{self.path}: another run is writing this journal; wait until it has ended") from None
        except OSError as error:  # a file system without locks
            _LOG.warning("%s: cannot be locked (%s); do not start a second run on it", self.path, error.strerror)

    def _write(self, record: Mapping[str, Any]) -> int:
        """Append a line, and the header before the first; returns where the line begins."""
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

    def _note(self, number: int, offset: int, record: Mapping[str, Any]) -> None:
        if "failed" in record:
            self._failures[number] = record["failed"]
        else:
            self._failures.pop(number, None)
            self._offsets[number] = offset

    def _read_all(self) -> None:
        for line, (offset, text) in enumerate(self._whole_lines(), start=1):
            record = self._parse(line, text)
            if line == 1:
                self._check_header(record)
            else:
                self._take(line, offset, record)

    def _whole_lines(self) -> Iterator[tuple[int, bytes]]:
        """Offset and text of each line; a process that was killed while it wrote leaves half a line at the end."""
        self._file.seek(0)
        offset = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                if offset == 0 and not _line(self._header).startswith(text):
                    raise LabelError(f"{self.path} is no journal of labels; choose another --out, or move it away")
                _LOG.warning("%s: the last line was cut off; its frame is labelled again", self.path)
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
                f"{self.path}, line {line}: damaged, no JSON object; delete that line, and its frame is labelled again"
            )
        return record

    def _check_header(self, found: Mapping[str, Any]) -> None:
        if found.get("ponita_ff labels") != _FORMAT:
            raise LabelError(f"{self.path} is no journal of labels; choose another --out, or move it away")
        if found != self._header:
            theirs, ours = (
                f"{header.get('method')}, charge {header.get('charge')}, multiplicity {header.get('multiplicity')}"
                for header in (found, self._header)
            )
            raise LabelError(
                f"{self.path} holds labels by another method: {theirs}, not {ours}; choose another --out, or delete "
                "the journal to start anew"
            )

    def _take(self, line: int, offset: int, record: Mapping[str, Any]) -> None:
        number: Any = record.get("frame")
        if number not in range(len(self._keys)) or record.get("key") != self._keys[number]:
            raise LabelError(
                f"{self.path}, line {line}: its frame {number} is not frame {number} of {self._frames}: the journal "
                "belongs to other frames; choose another --out, or delete the journal to start anew"
            )
        self._note(number, offset, record)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
