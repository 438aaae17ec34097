"""The journal of a sampling run: what each task made is written at once, so that a stopped run can be resumed.

A text file with one JSON object per line. The first has the settings; then there is one for each task, in order of
completion, with the SHA-256 of the rest. A later line of a task replaces an earlier one. A line that is damaged counts
for nothing: its task is done again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ponita_ff.json_lines import ForeignFileError, JsonLines, checksum
from ponita_ff.labels.worker import Failure
from ponita_ff.sample.settings import SampleError
from ponita_ff.sample.worker import Made, Sampled
from ponita_ff.settings import dotted

__all__ = ["Journal"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1

Vector = tuple[float, float, float]


class _FrameRecord(BaseModel):
    """A frame."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    info: dict[str, bool | int | float | str]
    positions: list[Vector]


class _MadeRecord(BaseModel):
    """What a task made."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    task: str
    numbers: list[Annotated[int, Field(ge=1)]]
    cell: tuple[Vector, Vector, Vector]
    pbc: tuple[bool, bool, bool]
    program: str
    frames: list[_FrameRecord]
    dropped: dict[str, int]
    ended: dict[str, str]


class _FailureRecord(BaseModel):
    """A task without frames, and why."""

    model_config = ConfigDict(extra="forbid")

    task: str
    failed: str


class Journal:
    """What the tasks of one run made.

    Args:
        path: The file, created if missing, which no other run may be writing. An incomplete last line is removed.
        settings: All that the frames depend on, JSON-able; a journal with others is refused.

    Raises:
        SampleError: It is no such journal, or of other settings.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._header = {"ponita_ff sample": _FORMAT, "settings": json.loads(json.dumps(settings))}
        self._offsets: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._file = JsonLines(path, self._header)
        try:
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

    def is_done(self, task: str, *, retry_failed: bool = False) -> bool:
        """Whether a task has an outcome; with ``retry_failed``, other than a failure."""
        return task in self._offsets or (not retry_failed and task in self._failures)

    def failure(self, task: str) -> str | None:
        """Why a task has no frames; None if it has some, or was not done."""
        return None if task in self._offsets else self._failures.get(task)

    def add(self, task: str, outcome: Made | Failure) -> None:
        """Write one outcome to disk.

        Raises:
            OSError: Naming the journal; earlier outcomes are not affected.
        """
        if isinstance(outcome, Failure):
            self._file.append({"task": task, "failed": outcome.reason})
            self._failures[task] = outcome.reason
            return
        record = {
            "task": task,
            "numbers": outcome.numbers,
            "cell": outcome.cell,
            "pbc": outcome.pbc,
            "program": outcome.program,
            "frames": [{"info": dict(one.info), "positions": one.positions.tolist()} for one in outcome.frames],
            "dropped": dict(outcome.dropped),
            "ended": outcome.ended,
        }
        self._offsets[task] = self._file.append(record)

    def made(self, task: str) -> Made:
        """What a task made, with all digits that were added.

        Raises:
            SampleError: Its line was damaged meanwhile.
        """
        record = _parsed(self._file.read(self._offsets[task]))
        if not isinstance(record, _MadeRecord):
            raise SampleError(f"{self.path}: a line was damaged meanwhile; the same command makes its frames again")
        frames = [Sampled(np.array(one.positions).reshape(-1, 3), one.info) for one in record.frames]
        cell = [list(vector) for vector in record.cell]
        return Made(
            record.numbers, cell, list(record.pbc), record.program, frames, Counter(record.dropped), record.ended
        )

    def _read_all(self) -> None:
        try:
            for line, (offset, text) in enumerate(self._file.lines(), start=1):
                self._read_line(line, offset, text)
        except ForeignFileError:
            raise self._foreign() from None

    def _read_line(self, line: int, offset: int, text: bytes) -> None:
        if offset < 0:  # incomplete, and removed
            return
        if line == 1:
            self._check_header(text)
            return
        record = _parsed(text)
        if record is None:
            _LOG.warning("%s, line %d: damaged; its frames are made again", self.path, line)
        elif isinstance(record, _FailureRecord):
            self._failures[record.task] = record.failed
        else:
            self._offsets[record.task] = offset

    def _foreign(self) -> SampleError:
        return SampleError(f"{self.path} is not a journal of sampling; choose another --out, or move it away")

    def _check_header(self, text: bytes) -> None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("ponita_ff sample") != _FORMAT:
            raise self._foreign()
        old, new = found.get("settings"), self._header["settings"]
        if old == new:
            return
        if not isinstance(old, dict):
            raise self._foreign()
        before, now = dotted(old), dotted(new)
        names = sorted(name for name in before | now if before.get(name) != now.get(name))
        changed = "; ".join(f"{name}: {before.get(name)!r}, not {now.get(name)!r}" for name in names)
        raise SampleError(
            f"{self.path.parent} was begun with other settings ({changed}); continue with those, or give another --out"
        )


def _parsed(text: bytes) -> _MadeRecord | _FailureRecord | None:
    """The outcome in a line; None for anything else, or a wrong checksum."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("sha256", None) != checksum(content):
            return None
        kind: type[_MadeRecord | _FailureRecord] = _FailureRecord if "failed" in content else _MadeRecord
        return kind.model_validate(content)
    except (ValueError, RecursionError, ValidationError):
        return None
