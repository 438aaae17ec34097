"""The text of XYZ files: every line belongs to a frame or is an error.

ASE parses a frame. It is not left to find the frames in a file: its reader ends at the first blank line without a word,
and loops as often as a count of atoms says, whatever the size of the file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict, read_xyz

from ponita_ff.data.frames import DataError, as_flags
from ponita_ff.files import why_not_a_file

__all__ = ["XyzText", "iter_texts"]

_MAX_LINE = 1_000_000  # characters; a comment line with some arrays of numbers has thousands
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_COUNT = re.compile(r"[0-9]+")
_QUOTED = re.compile(r"""\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}|\[[^\]]*\]""")
_ENTRY = re.compile(r"([^\s=]+)(\s*=\s*[^\s=]*)?")
_ANY_KEY = re.compile(r"([\w.-]+)[\"']?\s*=")
#: Entries of the comment line that decide how the frame is read.
_FORMAT_KEYS = frozenset({"Lattice", "Properties", "pbc"})
#: Columns of the format that have two names; ASE takes the last one that it finds.
_SAME_COLUMN = {"pos": "positions", "Z": "numbers", "species": "symbols"}
_COLUMN_TYPES = {"positions": ("RI", 3), "numbers": ("I", 1), "symbols": ("S", 1)}
_DEFAULT_COLUMNS = 4  # element and position


@dataclass(frozen=True)
class XyzText:
    """The lines of one frame.

    Attributes:
        number: Place in the file, from 0.
        line: Line of the file that it begins with, from 1.
        text: Its lines: number of atoms, comment, atoms, and up to three vectors of the cell (``VEC1 …``).
        source: Name of the frame for error messages, e.g. ``"file.xyz, frame 17"``.
    """

    number: int
    line: int
    text: str
    source: str

    def parse(self, matters: Callable[[str], bool] = lambda key: False) -> tuple[Atoms, dict[str, Any]]:
        """ASE's atoms, and the entries of the comment line as ASE parsed them (it moves some of them elsewhere).

        Args:
            matters: Whether an entry or column of this name is used. ``Lattice``, ``Properties`` and ``pbc`` always
                are. The comment line may be free text, so that other entries are not checked.

        Raises:
            DataError: The text is not (extended) XYZ, or gives an entry that matters twice.
        """
        entries: dict[str, Any] = {}

        def parse_comment(comment: str) -> dict[str, Any]:
            found = key_val_str_to_dict(comment)
            _check_comment(comment, found, lambda key: key in _FORMAT_KEYS or matters(key))
            _check_columns(found.get("Properties"), self.text, matters)
            entries.update(found)
            return found

        try:
            atoms = next(iter(read_xyz(StringIO(self.text), 0, properties_parser=parse_comment)))
            if not entries:  # blank, or not parsed, since ASE takes it as free text where vectors of the cell follow
                _check_comment(self.text.split("\n", 2)[1], {}, lambda key: key in _FORMAT_KEYS)
                _check_columns(None, self.text, matters)
        except Exception as error:  # ASE raises many types of errors for a damaged frame
            name = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            raise DataError(
                f"{self.source} (line {self.line}): not readable as extended XYZ ({name}{error!s:.300})"
            ) from error
        return atoms, entries


def iter_texts(path: Path) -> Iterator[XyzText]:
    """Texts of the frames of an XYZ file; blank lines between them are skipped. It may be compressed (.gz, .bz2, .xz).

    Raises:
        DataError: No such file; text that is not a frame, is cut off, or has a line of more than a million characters.
    """
    problem = why_not_a_file(path)
    if problem is not None:
        raise DataError(f"{path!s:.300}: {problem}")
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8") as file:
            yield from _split(file, path)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: not readable as text ({type(error).__name__}: {error})") from error


class _Lines:
    """Lines of a file one by one, with their number and one line of look-ahead."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self.number = 0
        self._next: str | None = None

    def peek(self) -> str:
        """The next line; empty at the end."""
        if self._next is None:
            self._next = self._file.readline(_MAX_LINE + 1)
            if len(self._next) > _MAX_LINE:
                raise DataError(
                    f"{self._path}, line {self.number + 1}: longer than {_MAX_LINE} characters; not an XYZ file"
                )
        return self._next

    def take(self) -> str:
        """The next line, which is then behind."""
        line = self.peek()
        self._next = None
        self.number += bool(line)
        return line


def _split(file: TextIO, path: Path) -> Iterator[XyzText]:
    lines, number = _Lines(file, path), 0
    while True:
        while (line := lines.peek()) and not line.strip():
            lines.take()
        if not line:
            return
        source, first = f"{path.name}, frame {number}", lines.number + 1
        if not _COUNT.fullmatch(line.strip()):
            raise DataError(
                f"{source} (line {first}): not readable as extended XYZ: expected the number of its atoms, "
                f"found {line.strip()!r:.80}"
            )
        yield XyzText(number, first, "".join(_frame_lines(lines, source)), source)
        number += 1


def _frame_lines(lines: _Lines, source: str) -> list[str]:
    first = lines.number + 1
    found = [lines.take(), lines.take()]
    count = found[0].strip()
    # As text, since a count of thousands of digits is a mistake, too, and slow to convert.
    n_atoms = int(count) if len(count) < 19 else 10**19
    while len(found) < n_atoms + 2 and (line := lines.take()):
        found.append(line)
    if len(found) < n_atoms + 2 or not found[1]:
        raise DataError(
            f"{source} (line {first}): not readable as extended XYZ: {count:.30} atoms, "
            f"but the file ends after {max(len(found) - 2, 0)} lines of atoms"
        )
    while lines.peek().lstrip().startswith("VEC"):
        found.append(lines.take())
    return found


def _check_comment(comment: str, entries: Mapping[str, Any], matters: Callable[[str], bool]) -> None:
    """Refuse what ASE misreads in silence.

    It takes the last of two entries, and a quote that is not closed or an empty value swallow the next entries.
    """
    plain = _QUOTED.sub(lambda quoted: re.sub(r"[\s=]", "_", _unquoted(quoted[0])), comment)
    keys = [found[1] for found in _ENTRY.finditer(plain) if matters(found[1])]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise DataError(f"{', '.join(twice)} given twice in the comment line")
    hidden = [key for key in _ANY_KEY.findall(comment) if matters(key) and key not in entries]
    if hidden:
        raise DataError(f"{hidden[0]}= in the comment line is not read: after an open quote or '=', or with VEC1 below")
    if "pbc" in entries and as_flags("pbc", entries["pbc"], "comment line").shape not in ((), (3,)):
        raise DataError(f"pbc is {entries['pbc']}, expected one or three of T and F")


def _unquoted(text: str) -> str:
    return text[1:] if text.startswith("\\") else text[1:-1]


def _check_columns(properties: Any, text: str, matters: Callable[[str], bool]) -> None:
    """Refuse columns that ASE would take silently for something else, and rows with other columns than stated."""
    number, exact = _DEFAULT_COLUMNS, False
    if properties is not None:
        number, exact = _count_columns(str(properties), matters), True
    for k, row in enumerate(text.split("\n")[2:-1] if text.endswith("\n") else text.split("\n")[2:]):
        found = len(row.split())
        if row.lstrip().startswith("VEC") and not exact:
            continue
        if found < number or (exact and found > number):
            raise DataError(f"atom {k}: expected {number} columns, found {found}")


def _count_columns(properties: str, matters: Callable[[str], bool]) -> int:
    fields = properties.split(":")
    if len(fields) % 3:
        raise DataError(f"Properties={properties} is not a list of name:type:columns")
    columns: dict[str, tuple[str, int]] = {}
    for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if not _COUNT.fullmatch(count) or not 0 < int(count) < _MAX_LINE:
            raise DataError(f"Properties={properties}: {name} has {count!r} columns, expected a number")
        canonical = _SAME_COLUMN.get(name, name)
        if canonical in columns:
            raise DataError(f"Properties={properties}: {name} is given twice")
        columns[canonical] = (kind, int(count))
        if matters(name) and kind not in ("R", "I"):
            # ASE would make numbers of text, and zeros of what is neither true nor false.
            raise DataError(f"Properties={properties}: {name} must be of type R or I")
    for name, (kinds, width) in _COLUMN_TYPES.items():
        if name in columns and (columns[name][0] not in kinds or columns[name][1] != width):
            raise DataError(
                f"Properties={properties}: {name} must be of type {' or '.join(kinds)} with {width} column(s)"
            )
    if "positions" not in columns or not columns.keys() & {"numbers", "symbols"}:
        raise DataError(f"Properties={properties} has no positions (pos) or no elements (species or Z)")
    return sum(count for _, count in columns.values())
