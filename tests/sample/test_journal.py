"""The journal: what was written is there, whatever happened to the process or the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ponita_ff.labels.worker import Failure
from ponita_ff.sample import SampleError
from ponita_ff.sample.journal import Journal
from ponita_ff.sample.worker import Made, Sampled

SETTINGS = {"method": "m", "md": {"frames": 3}}


def make(number: int) -> Made:
    positions = np.random.default_rng(number).normal(size=(2, 3))
    info = {"kind": "md", "temperature": 300.0, "conformer": number, "relaxed": True, "bond": "0-1"}
    return Made(
        [1, 8],
        np.eye(3).tolist(),
        [True, False, True],
        "p 1",
        [Sampled(positions, info)],
        Counter({"a": 2}),
        {"b": "c"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with three outcomes."""
    with Journal(tmp_path / "run" / "journal.jsonl", SETTINGS) as journal:
        journal.add("one", make(1))
        journal.add("two", Failure("no reason"))
        journal.add("three", make(3))
    return tmp_path / "run" / "journal.jsonl"


def test_everything_is_read_as_it_was_written(path: Path) -> None:
    with Journal(path, SETTINGS) as journal:
        assert [journal.is_done(task) for task in ("one", "two", "three", "four")] == [True, True, True, False]
        assert not journal.is_done("two", retry_failed=True) and journal.is_done("one", retry_failed=True)
        assert (journal.failure("one"), journal.failure("two")) == (None, "no reason")
        found, expected = journal.made("three"), make(3)
        np.testing.assert_array_equal(found.frames[0].positions, expected.frames[0].positions)
        assert found.frames[0].info == expected.frames[0].info
        assert {key: type(value) for key, value in found.frames[0].info.items()} == {
            "kind": str,
            "temperature": float,
            "conformer": int,
            "relaxed": bool,
            "bond": str,
        }
        for name in ("numbers", "cell", "pbc", "program", "dropped", "ended"):
            assert getattr(found, name) == getattr(expected, name)


def test_a_later_outcome_counts(path: Path) -> None:
    with Journal(path, SETTINGS) as journal:
        journal.add("two", make(2))
    with Journal(path, SETTINGS) as journal:
        assert journal.failure("two") is None and journal.made("two").frames[0].info["conformer"] == 2


def test_a_torn_line_is_removed(path: Path) -> None:
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[3]), 40):
        path.write_bytes(whole[:-cut])
        with Journal(path, SETTINGS) as journal:
            assert journal.is_done("two") and not journal.is_done("three")
        assert path.read_bytes() == b"".join(lines[:3])
    path.write_bytes(lines[0][:20])
    with Journal(path, SETTINGS) as journal:
        assert not journal.is_done("one")
        journal.add("one", make(1))
    assert path.read_bytes() == b"".join(lines[:2])


def test_a_damaged_line_counts_for_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[1].replace(b"300.0", b"301.0"), b"[]\n", b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(lines[0] + damaged + lines[2] + lines[3])
        with Journal(path, SETTINGS) as journal:
            assert [journal.is_done(task) for task in ("one", "two", "three")] == [False, True, True]
        assert "line 2: damaged; its frames are made again" in caplog.text
        caplog.clear()


def test_other_settings_are_named(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(SampleError, match=r"begun with other settings \(md.frames: 3, not 4; seed: None, not 1\)"):
        Journal(path, {"method": "m", "md": {"frames": 4}, "seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"text\n", b"text", b'{"ponita_ff labels": 1}\n', b"[1]\n"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SampleError, match="is not a journal of sampling"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_a_journal_that_was_deleted_meanwhile_takes_no_more(path: Path) -> None:
    with Journal(path, SETTINGS) as journal:
        path.unlink()
        with pytest.raises(OSError, match=r"cannot write .*journal.jsonl: it was deleted or replaced meanwhile"):
            journal.add("four", make(4))


def test_an_empty_journal_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", SETTINGS):
        pass
    assert list(tmp_path.iterdir()) == []
