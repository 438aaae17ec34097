"""The journal: what goes in comes out, and what is no journal is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from label_calculators import make_frames

from ponita_ff.labels import LabelError, Method, find_method
from ponita_ff.labels.journal import Journal, frame_key, journal_path
from ponita_ff.labels.results import Labels
from ponita_ff.labels.worker import Failure
from ponita_ff.locks import LockedError

METHOD = find_method("gfn2-xtb", charge=1)


def open_journal(path: Path, frames: list[Atoms], method: Method = METHOD) -> Journal:
    """For some frames."""
    return Journal(path, method, frames, "frames.xyz")


def some_labels(stress: bool) -> Labels:
    """Numbers that need all their digits."""
    values = np.random.default_rng(0)
    return Labels(
        float(values.normal()),
        values.normal(size=(2, 3)),
        values.normal(size=(3, 3)) if stress else None,
        "program 1.0",
    )


@pytest.mark.parametrize("stress", [True, False])
def test_labels_come_back_to_the_last_bit(stress: bool, tmp_path: Path) -> None:
    given = some_labels(stress)
    path = tmp_path / "new" / "journal"
    with open_journal(path, make_frames(4)) as journal:
        journal.add(2, given)
        journal.add(0, Failure("too short"))
    with open_journal(path, make_frames(4)) as journal:
        found = journal.labels(2)
        assert (found.energy, found.program) == (given.energy, given.program)
        np.testing.assert_array_equal(found.forces, given.forces)
        np.testing.assert_array_equal(found.stress, given.stress)
        assert journal.labelled == [2] and journal.failures == {0: "too short"}
        assert journal.missing() == [1, 3] and journal.missing(retry_failed=True) == [0, 1, 3]


def test_spreads_come_back_and_are_not_in_the_lines_of_others(tmp_path: Path) -> None:
    given = replace(some_labels(False), energy_spread=0.1 + 0.2, forces_spread=np.array([1 / 3, 2 / 3]))
    with open_journal(tmp_path / "journal", make_frames(2)) as journal:
        journal.add(0, given)
        journal.add(1, some_labels(False))
    with open_journal(tmp_path / "journal", make_frames(2)) as journal:
        found = journal.labels(0)
        assert found.energy_spread == given.energy_spread
        np.testing.assert_array_equal(found.forces_spread, given.forces_spread)
        assert (journal.labels(1).energy_spread, journal.labels(1).forces_spread) == (None, None)
    lines = (tmp_path / "journal").read_text(encoding="utf-8").splitlines()
    assert "spread" in lines[1] and "spread" not in lines[2]


def test_an_outcome_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", make_frames(2)) as journal:
        journal.add(1, Failure("why"))
        record = json.loads((tmp_path / "journal").read_text(encoding="utf-8").splitlines()[-1])
        assert (record["frame"], record["failed"]) == (1, "why")


def test_a_key_knows_all_that_labels_depend_on() -> None:
    atoms = Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]], cell=[4.0, 5.0, 6.0], pbc=True)
    other = [atoms.copy() for _ in range(4)]
    other[0].numbers[0] = 7
    other[1].positions[1, 2] += 1e-9
    other[2].cell[0, 0] += 1e-9
    other[3].pbc = (True, True, False)
    methods = [find_method("gfn1-xtb"), find_method("gfn1-xtb", charge=1), find_method("gfn1-xtb", multiplicity=3)]
    keys = [frame_key(a, methods[0]) for a in (atoms, *other)] + [frame_key(atoms, method) for method in methods[1:]]
    assert len(set(keys)) == len(keys)
    same = atoms.copy()
    same.positions[0] *= -1  # −0.0
    same.info["note"] = "none of the labels' business"
    assert frame_key(same, methods[0]) == keys[0]


def test_another_charge_is_another_method(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", make_frames(2)) as journal:
        journal.add(0, some_labels(False))
    with pytest.raises(LabelError, match="another method: gfn2-xtb, charge 1, multiplicity 1, not gfn2-xtb, charge -1"):
        open_journal(tmp_path / "journal", make_frames(2), find_method("gfn2-xtb", charge=-1))


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "journal", make_frames(2)),
        pytest.raises(LockedError, match=rf"another run is using the journal .*: process {os.getpid()} on "),
    ):
        open_journal(tmp_path / "journal", make_frames(2))


def test_nothing_is_left_where_nothing_was_added(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", make_frames(2)):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["some text", '{"a": 1}\n', "[1, 2]\n", "\n\n", '{"ponita_ff labels": 2}\n'])
def test_what_is_no_journal_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelError, match="journal"):
        open_journal(path, make_frames(2))
    assert path.read_text(encoding="utf-8") == text


def three_lines(path: Path) -> list[bytes]:
    """A journal of three labelled crystals: its header, and a line for each."""
    with open_journal(path, make_frames(3)) as journal:
        for number in range(3):
            journal.add(number, some_labels(True))
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda line: b"\0" * 20 + b"\n", "damaged, not a JSON object"),
        (lambda line: line.replace(b'"energy": 0', b'"energy": 1'), "damaged, its SHA-256 does not match"),
        (lambda line: line.replace(b'"frame": 1', b'"frame": 2'), "damaged, its SHA-256 does not match"),
        (lambda line: line.replace(b'"sha256": "', b'"sha256": "0'), "damaged, its SHA-256 does not match"),
        (lambda line: line[: len(line) // 2] + b"\n" + line[len(line) // 2 :], "damaged, not a JSON object"),
    ],
)
def test_a_damaged_line_in_the_middle_is_told_and_labelled_again(
    damage: Callable[[bytes], bytes], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    lines = three_lines(path)
    damaged = damage(lines[2])
    assert damaged != lines[2]
    path.write_bytes(b"".join([*lines[:2], damaged, lines[3]]))
    with open_journal(path, make_frames(3)) as journal:
        assert journal.labelled == [0, 2] and journal.missing() == [1]
        assert f"journal, line 3: {reason}" in caplog.text and "labelled again" in caplog.text
        journal.add(1, some_labels(True))
    with open_journal(path, make_frames(3)) as journal:
        assert journal.labelled == [0, 1, 2]


@pytest.mark.parametrize("bit", range(0, 8 * 400, 37))
def test_any_flipped_bit_is_noticed(bit: int, tmp_path: Path) -> None:
    """The frame counts as not labelled, or the journal is refused: nothing wrong is believed."""
    path = tmp_path / "journal"
    lines = three_lines(path)
    line = bytearray(lines[2])
    line[bit // 8] ^= 1 << bit % 8
    path.write_bytes(b"".join([*lines[:2], bytes(line), lines[3]]))
    with open_journal(path, make_frames(3)) as journal:
        assert 1 not in journal.labelled and 1 in journal.missing()


WRONG: list[dict[str, Any]] = [
    {"energy": "1.0"},
    {"energy": None},
    {"energy": float("nan")},
    {"energy": True},
    {"energy": [1.0]},
    {"forces": [[0.0, 0.0, 0.0]]},
    {"forces": [[0.0, 0.0]] * 2},
    {"forces": [[0.0, 0.0, "0"]] * 2},
    {"forces": [[0.0, 0.0, float("inf")]] * 2},
    {"forces": None},
    {"stress": 1.0},
    {"stress": [0.0] * 6},
    {"program": 7},
    {"failed": 3},
    {"frame": 1.0},
    {"frame": "1"},
    {"frame": None},
    {"key": None},
    {"further": 1},
    {"energy_spread": "0.1"},
    {"forces_spread": [0.1]},
    {"forces_spread": [0.1, float("nan")]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_line_of_wrong_types_is_labelled_again(
    wrong: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In journals of earlier versions, too, which have no checksums."""
    path = tmp_path / "journal"
    lines = three_lines(path)
    record = {name: value for name, value in json.loads(lines[2]).items() if name != "sha256"} | wrong
    path.write_bytes(b"".join([*lines[:2], json.dumps(record).encode() + b"\n", lines[3]]))
    with open_journal(path, make_frames(3)) as journal:
        assert journal.labelled == [0, 2] and journal.missing() == [1]
    assert "journal, line 3: " in caplog.text and "labelled again" in caplog.text


def test_a_journal_without_checksums_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal"
    header, *lines = (json.loads(line) for line in three_lines(path))
    old = [{name: value for name, value in line.items() if name != "sha256"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *old]), encoding="utf-8")
    with open_journal(path, make_frames(3)) as journal:
        assert journal.labelled == [0, 1, 2]
        np.testing.assert_array_equal(journal.labels(1).forces, some_labels(True).forces)
    assert caplog.text == ""


def test_a_journal_that_was_deleted_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, make_frames(3)) as journal:
        journal.add(0, some_labels(False))
        path.unlink()
        with pytest.raises(OSError, match=r"cannot write .*journal: it was deleted or replaced meanwhile"):
            journal.add(1, some_labels(False))


def test_labels_that_are_damaged_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, make_frames(3)) as journal:
        journal.add(0, some_labels(False))
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"0")
        with pytest.raises(LabelError, match="the line of frame 0 was damaged meanwhile"):
            journal.labels(0)


def test_the_journal_is_beside_the_file() -> None:
    assert journal_path(Path("some/labelled.xyz")) == Path("some/labelled.xyz.journal.jsonl")
