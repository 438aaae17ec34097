"""Splits of a dataset into training, validation and test frames, which are recorded and checked when they are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ponita_ff.data.frames import DataError, Frame, Subset, files_sha256
from ponita_ff.files import read_text, write_text

__all__ = [
    "Split",
    "joined_split",
    "random_split",
    "read_index_file",
    "rmd17_archive_split",
    "rmd17_split",
]

_FORMAT = "ponita_ff split"
_VERSION = 1

_MAX_TEXT = 200_000_000  # bytes; ten million indices have 90 MB

_RMD17_FILE = 1000
_RMD17_TRAIN = 950


@dataclass(frozen=True)
class Split:
    """Frames of one dataset for training, validation and test, by index.

    Attributes:
        train, validation, test: Indices from 0; ``test`` may be empty (e.g. if the test set is another file).
        n_frames: Number of frames of the dataset.
        seed: Seed that the indices were drawn with; None if they were given.
        source_sha256: SHA-256 of the file with the frames; None if there is none.

    Raises:
        DataError: Empty training or validation set; an index twice, in two sets, or out of range.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    n_frames: int
    seed: int | None = None
    source_sha256: str | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        set_of_index: dict[int, str] = {}
        for name, indices in parts.items():
            if not indices and name != "test":
                raise DataError(f"the {name} set is empty")
            for index in indices:
                if not 0 <= index < self.n_frames:
                    raise DataError(
                        f"the {name} set holds frame {index}, but there are {self.n_frames} "
                        f"frames (0..{self.n_frames - 1})"
                    )
                if index in set_of_index:
                    raise DataError(f"frame {index} is in {set_of_index[index]} and again in {name}")
                set_of_index[index] = name

    def apply(self, frames: Sequence[Frame]) -> tuple[Subset, Subset, Subset]:
        """Training, validation and test frames, without copying them.

        Raises:
            DataError: The dataset has another number of frames than the split was made for.
        """
        if len(frames) != self.n_frames:
            raise DataError(f"the split was made for {self.n_frames} frames, but the dataset has {len(frames)}")
        return (
            Subset(frames, self.train),
            Subset(frames, self.validation),
            Subset(frames, self.test),
        )

    def save(self, path: str | Path) -> None:
        """Write the split as JSON."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "n_frames": self.n_frames,
            "seed": self.seed,
            "source_sha256": self.source_sha256,
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        write_text(Path(path), json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, source: str | Path | Sequence[str | Path] | None) -> Split:
        """Read a split and verify that it belongs to ``source``.

        Args:
            path: JSON file written by `save`.
            source: The file with the frames, or several in their order; the hash is compared. None only for a split
                that records no hash.

        Raises:
            DataError: Not such a file; the data file is another one than the split was made for, or is not given
                although the split records its hash.
        """
        path = Path(path)
        split = cls._parse(path)
        if split.source_sha256 is None:
            return split
        if source is None:
            raise DataError(f"{path}: the split belongs to a particular data file; give it (source=)")
        found = files_sha256([source] if isinstance(source, str | Path) else source)
        if found != split.source_sha256:
            raise DataError(
                f"{path}: the split was made for a file with SHA-256 {split.source_sha256}, but {source} has {found}"
            )
        return split

    @classmethod
    def _parse(cls, path: Path) -> Split:
        try:
            content: Any = json.loads(read_text(path, _MAX_TEXT))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable split file: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{path}: not a split file (no format {_FORMAT!r})")
        if content.get("version") != _VERSION:
            raise DataError(f"{path}: version {content.get('version')} is not {_VERSION}")
        try:
            fields = _SplitFile.model_validate(content)
            parts = (tuple(fields.train), tuple(fields.validation), tuple(fields.test))
            return cls(*parts, fields.n_frames, fields.seed, fields.source_sha256)
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(map(str, wrong["loc"]))
            raise DataError(f"{path}: {field} is {wrong['input']!r:.80}: {wrong['msg']}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


class _SplitFile(BaseModel):
    """The fields of a split file; numbers must be whole numbers."""

    model_config = ConfigDict(strict=True, extra="ignore")

    train: list[int]
    validation: list[int]
    test: list[int]
    n_frames: int
    seed: int | None
    source_sha256: str | None


def random_split(
    n: int,
    train: int,
    validation: int,
    test: int = 0,
    seed: int = 0,
    *,
    source_sha256: str | None = None,
) -> Split:
    """Draw disjoint sets of the given sizes from ``n`` frames.

    Raises:
        DataError: A negative size, an empty training or validation set, or more frames than there are.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, size in sizes.items():
        if size < 0 or (size == 0 and name != "test"):
            raise DataError(f"the {name} set would have {size} frames")
    total = sum(sizes.values())
    if total > n:
        raise DataError(
            f"{train} training + {validation} validation + {test} test = {total} frames asked, but there are {n}"
        )
    order = [int(i) for i in np.random.default_rng(seed).permutation(n)]
    return Split(
        train=tuple(order[:train]),
        validation=tuple(order[train : train + validation]),
        test=tuple(order[train + validation : total]),
        n_frames=n,
        seed=seed,
        source_sha256=source_sha256,
    )


def joined_split(parts: Sequence[Split], *, source_sha256: str | None = None) -> Split:
    """The splits of several datasets as one split of their concatenation."""
    starts = [sum(part.n_frames for part in parts[:k]) for k in range(len(parts))]

    def shifted(name: str) -> tuple[int, ...]:
        return tuple(start + i for start, part in zip(starts, parts, strict=True) for i in getattr(part, name))

    return Split(
        train=shifted("train"),
        validation=shifted("validation"),
        test=shifted("test"),
        n_frames=sum(part.n_frames for part in parts),
        seed=parts[0].seed,
        source_sha256=source_sha256,
    )


def rmd17_split(n_train_file: int = _RMD17_FILE, seed: int = 0, *, source_sha256: str | None = None) -> Split:
    """The published rMD17 protocol, for a file with the 1,000 official training frames.

    950 frames for training and the other 50 for validation; ``test`` is empty, since the official test frames are in
    another file.

    Raises:
        DataError: The file does not have 1,000 frames (a full archive needs `rmd17_archive_split`).
    """
    _check_protocol(n_train_file)
    return random_split(
        n_train_file,
        _RMD17_TRAIN,
        n_train_file - _RMD17_TRAIN,
        seed=seed,
        source_sha256=source_sha256,
    )


def rmd17_archive_split(
    train_indices: Sequence[int],
    test_indices: Sequence[int],
    n_frames: int,
    seed: int = 0,
    *,
    source_sha256: str | None = None,
) -> Split:
    """The same protocol for a full rMD17 archive and the official index files.

    Args:
        train_indices, test_indices: Official indices (see `read_index_file`); 950 of the first are for training.
        n_frames: Frames in the archive (100,000 for most molecules).
        seed, source_sha256: As in `Split`.

    Raises:
        DataError: Not 1,000 training indices, indices out of range or in both files.
    """
    _check_protocol(len(train_indices))
    inner = rmd17_split(len(train_indices), seed)
    return Split(
        train=tuple(int(train_indices[i]) for i in inner.train),
        validation=tuple(int(train_indices[i]) for i in inner.validation),
        test=tuple(int(i) for i in test_indices),
        n_frames=n_frames,
        seed=seed,
        source_sha256=source_sha256,
    )


def _check_protocol(n: int) -> None:
    if n != _RMD17_FILE:
        raise DataError(
            f"the rMD17 protocol trains on {_RMD17_TRAIN} and validates on "
            f"{_RMD17_FILE - _RMD17_TRAIN} of the {_RMD17_FILE} official training frames; "
            f"got {n}"
        )


def read_index_file(path: str | Path) -> tuple[int, ...]:
    """Indices from a text file with one integer a line, as rMD17's ``index_train_01.csv``.

    Raises:
        DataError: No such file, no indices, an index given twice, or a line that is not an integer of at least 0.
    """
    path = Path(path)
    try:
        indices = tuple(int(line) for line in read_text(path, _MAX_TEXT).encode("ascii").split())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a list of frame numbers: {error}") from error
    if not indices or min(indices) < 0:
        raise DataError(f"{path}: holds no frame numbers, or negative ones")
    if len(set(indices)) != len(indices):
        raise DataError(f"{path}: holds a frame number twice")
    return indices
