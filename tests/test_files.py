"""Atomic writes: the new file is complete, or the old one is still there."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ponita_ff.files import exists, read_text, why_not_a_file, write_atomically, write_json, write_text


def test_a_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "file.txt"
    write_text(path, "Å\n")
    assert path.read_bytes() == "Å\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_file_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old and long")
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (RuntimeError("unexpected pos 64 vs 0"), errno.EIO),
        (SafetensorError("No space left on device"), errno.EIO),
    ],
)
def test_old_content_is_kept_when_writing_fails(error: Exception, code: int, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def fail(temporary: Path) -> None:
        temporary.write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(OSError, match=r"cannot write .*file\.txt: .*before is unchanged") as caught:
        write_atomically(path, fail)
    assert caught.value.errno == code
    assert str(error) in str(caught.value)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_mistake_in_the_program_is_not_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def fail(temporary: Path) -> None:
        temporary.write_text("half", encoding="utf-8")
        raise KeyError("name")

    with pytest.raises(KeyError):
        write_atomically(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_folder_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*blocked/file\.txt: (Not a directory|File exists)"):
        write_text(blocked / "file.txt", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*locked/file\.txt: Permission denied"):
        write_text(folder / "file.txt", "text")


def test_no_permission_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the user root meets it on a read-only disk."""

    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*file\.txt: Permission denied"):
        write_text(tmp_path / "file.txt", "text")


def test_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2.5], "b": None})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1, 2.5], "b": None}
    assert text.endswith("}\n")
    assert '\n  "a": [' in text


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": path})
    assert json.loads(path.read_text(encoding="utf-8")) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("Å", encoding="utf-8")
    assert why_not_a_file(path) is None and exists(path)
    found = [tmp_path, Path("/dev/zero"), tmp_path / "none", path / "below", tmp_path / ("a" * 5000), tmp_path / "a\0b"]
    reasons = [why_not_a_file(one) for one in found]
    assert reasons[:4] == ["not a file", "not a file", "there is no such file", "there is no such file"]
    assert str(reasons[4]).startswith("cannot be opened (File name too long)")
    assert str(reasons[5]).startswith("cannot be opened")
    assert [exists(one) for one in found] == [True, True, False, False, False, False]


def test_text_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("Å", encoding="utf-8")
    assert read_text(path, 2) == "Å"
    for endless in (path, Path("/dev/zero")):
        with pytest.raises(OSError, match="larger than 1 bytes"):
            read_text(endless, 1)
