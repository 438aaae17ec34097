"""The journal of a labelling run: every outcome is written at once, so that a stopped run can be resumed.

The journal is a text file with one JSON object per line. The first describes the method; then there is one for each
outcome, in order of completion. A later line of a frame replaces an earlier one. Each line of an outcome ends with the
SHA-256 of the rest, which journals of earlier versions lack. A line that is damaged counts for nothing: its frame is
labelled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Annotated, Any, Self

import numpy as np
from ase import Atoms
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ponita_ff.json_lines import ForeignFileError, JsonLines, checksum
from ponita_ff.labels.methods import LabelError, Method
from ponita_ff.labels.results import Labels
from ponita_ff.labels.worker import Failure, Outcome
from ponita_ff.locks import Lock
from ponita_ff.settings import wrong_fields

__all__ = ["Journal", "frame_key", "journal_path"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1

Vector = tuple[float, float, float]


class _Record(BaseModel):
    """A line of the journal: the frame's number, and its `frame_key`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    frame: Annotated[int, Field(ge=0)]
    key: str
    sha256: str | None = None


class _LabelRecord(_Record):
    """Labels: eV, eV/Å, eV/Å³; the spreads only of an ensemble."""

    energy: float
    forces: list[Vector]
    stress: tuple[Vector, Vector, Vector] | None
    program: str
    energy_spread: float | None = None
    forces_spread: list[float] | None = None


class _FailureRecord(_Record):
    """A failure and its reason."""

    failed: str


class _DamagedLine(ValueError):
    """A line that is no outcome, and why."""


def journal_path(out: Path) -> Path:
    """Path of the journal of a labelled file, which is in the same folder."""
    return out.with_name(f"{out.name}.journal.jsonl")


def frame_key(atoms: Atoms, method: Method) -> str:
    """SHA-256 of everything that the labels of a frame depend on."""
    identity = [method.name, method.charge, method.multiplicity, *method.weights_sha256()]
    digest = hashlib.sha256(json.dumps(identity).encode())
    digest.update(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.astype("<i8").tobytes())
    for values in (atoms.positions, atoms.cell.array):
        digest.update((values + 0.0).astype("<f8").tobytes())  # −0 is 0
    return digest.hexdigest()


class Journal:
    """The outcomes of one list of frames by one method.

    Args:
        path: The file, created if missing. An incomplete last line is removed, and its frame is labelled again.
        method: The method of the labels.
        structures: The frames.
        frames: Name of the list of frames for error messages, e.g. that of its file.

    Raises:
        LabelError: The journal belongs to another method or to other frames, or its first line is damaged.
        LockedError: The journal is in use by another run.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, method: Method, structures: Sequence[Atoms], frames: str) -> None:
        self.path = path
        self._keys = [frame_key(atoms, method) for atoms in structures]
        self._sizes = [len(atoms) for atoms in structures]
        self._frames = frames
        self._offsets: dict[int, int] = {}
        self._failures: dict[int, str] = {}
        self._header: dict[str, Any] = {
            "ponita_ff labels": _FORMAT,
            "method": method.name,
            "charge": method.charge,
            "multiplicity": method.multiplicity,
        }
        if hashes := method.weights_sha256():
            self._header["weights_sha256"] = list(hashes)
        path.parent.mkdir(parents=True, exist_ok=True)  # for the lock
        self._lock = Lock(path.with_name(f".{path.name}.lock"), f"the journal {path}")
        self._lock.__enter__()
        try:
            self._file = JsonLines(path, self._header)
            try:
                self._read_all()
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # of a full disk, for the second time
            if error is None:
                raise
        finally:
            self._lock.__exit__(kind, error, None)

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
            if outcome.energy_spread is not None and outcome.forces_spread is not None:
                record |= {"energy_spread": outcome.energy_spread, "forces_spread": outcome.forces_spread.tolist()}
        offset = self._file.append(record)
        self._index(number, offset, outcome.reason if isinstance(outcome, Failure) else None)

    def labels(self, number: int) -> Labels:
        """The labels of one frame, with all digits that were added."""
        try:
            record = _parse(self._file.read(self._offsets[number]))
        except _DamagedLine as error:
            raise LabelError(f"{self.path}: the line of frame {number} was damaged meanwhile ({error})") from None
        assert isinstance(record, _LabelRecord)
        forces = np.array(record.forces, dtype=np.float64).reshape(-1, 3)
        stress = None if record.stress is None else np.array(record.stress, dtype=np.float64)
        spread = None if record.forces_spread is None else np.array(record.forces_spread, dtype=np.float64)
        return Labels(record.energy, forces, stress, record.program, record.energy_spread, spread)

    def _index(self, number: int, offset: int, failed: str | None) -> None:
        if failed is not None:
            self._failures[number] = failed
        else:
            self._failures.pop(number, None)
            self._offsets[number] = offset

    def _read_all(self) -> None:
        try:
            for line, (offset, text) in enumerate(self._file.lines(), start=1):
                self._read_line(line, offset, text)
        except ForeignFileError:
            raise self._foreign() from None

    def _read_line(self, line: int, offset: int, text: bytes) -> None:
        if offset < 0:
            _LOG.warning("%s: the last line is incomplete; its frame is labelled again", self.path)
        elif line == 1:
            self._check_header(text)
        else:
            try:
                self._add_record(line, offset, _parse(text))
            except _DamagedLine as error:
                _LOG.warning("%s, line %d: %s; its frame is labelled again", self.path, line, error)

    def _foreign(self) -> LabelError:
        return LabelError(f"{self.path} is not a journal of labels; choose another --out, or move it away")

    def _check_header(self, text: bytes) -> None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("ponita_ff labels") != _FORMAT:
            raise self._foreign()
        if found != self._header:
            raise LabelError(
                f"{self.path} holds labels by another method: {_described(found)}, not {_described(self._header)}; "
                "choose another --out, or delete the journal to start again"
            )

    def _add_record(self, line: int, offset: int, record: _LabelRecord | _FailureRecord) -> None:
        number = record.frame
        if number >= len(self._keys) or record.key != self._keys[number]:
            raise LabelError(
                f"{self.path}, line {line}: its frame {number} is not frame {number} of {self._frames}: the journal "
                "belongs to other frames; choose another --out, or delete the journal to start again"
            )
        if isinstance(record, _FailureRecord):
            self._index(number, offset, record.failed)
            return
        if len(record.forces) != self._sizes[number]:
            raise _DamagedLine(f"forces of {len(record.forces)} atoms, but frame {number} has {self._sizes[number]}")
        if record.forces_spread is not None and len(record.forces_spread) != self._sizes[number]:
            raise _DamagedLine(
                f"spreads of {len(record.forces_spread)} atoms; frame {number} has {self._sizes[number]}"
            )
        self._index(number, offset, None)


def _described(header: Mapping[str, Any]) -> str:
    """The method of a journal, for messages."""
    text = f"{header.get('method')}, charge {header.get('charge')}, multiplicity {header.get('multiplicity')}"
    hashes = header.get("weights_sha256")
    return text if not hashes else f"{text}, weights {', '.join(str(digest)[:12] for digest in hashes)}"


def _parse(text: bytes) -> _LabelRecord | _FailureRecord:
    """The outcome in a line.

    Raises:
        _DamagedLine: For anything else, or a wrong checksum.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _DamagedLine("damaged, not a JSON object")
    found = content.pop("sha256", None)
    if found is not None and found != checksum(content):
        raise _DamagedLine("damaged, its SHA-256 does not match")
    # JSON again, since tuples are lists there; which of the two it is, its fields say.
    kind: type[_LabelRecord | _FailureRecord] = _FailureRecord if "failed" in content else _LabelRecord
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(line.strip() for line in wrong_fields(error, values=False).splitlines())
        raise _DamagedLine(f"not an outcome ({wrong})") from None
