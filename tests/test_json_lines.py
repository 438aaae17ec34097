"""Files of JSON lines: what is appended comes back, and what a killed process left is removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ponita_ff.json_lines import ForeignFileError, JsonLines, checksum

HEADER = {"format": 1}


def test_records_come_back_with_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.jsonl"
    file = JsonLines(path, HEADER)
    offsets = [file.append({"number": number}) for number in (3, 0.1)]
    (first, header), *rest = file.lines()
    assert (first, json.loads(header)) == (0, HEADER)
    assert [offset for offset, _ in rest] == offsets
    assert [file.read(offset) for offset in offsets] == [text for _, text in rest]
    assert json.loads(rest[1][1]) == {"number": 0.1, "sha256": checksum({"number": 0.1})}
    file.close()


def test_an_incomplete_line_is_removed_and_told(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    file = JsonLines(path, HEADER)
    file.append({"number": 3})
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"numb')
    file = JsonLines(path, HEADER)
    assert list(file.lines())[-1] == (-1, b'{"numb')
    assert path.read_bytes() == whole
    file.close()


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    file = JsonLines(path, HEADER)
    with pytest.raises(ForeignFileError):
        list(file.lines())
    file.close()
    assert path.read_text() == "my notes"


def test_a_file_without_records_is_deleted_and_one_that_was_replaced_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    JsonLines(path, HEADER).close()
    assert not path.exists()
    file = JsonLines(path, HEADER)
    path.unlink()
    with pytest.raises(OSError, match=r"cannot write .*file\.jsonl: it was deleted or replaced meanwhile"):
        file.append({"number": 1})
    file.close()
