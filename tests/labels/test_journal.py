"""The journal: what goes in comes out, and what is no journal is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from label_calculators import make_frames

from ponita_ff.labels import LabelError, Method, find_method
from ponita_ff.labels.journal import Journal, frame_key, journal_path
from ponita_ff.labels.worker import Failure, Labels

METHOD = find_method("gfn2-xtb", charge=1)


def open_journal(path: Path, frames: list[Atoms], method: Method = METHOD) -> Journal:
    """For some frames."""
    return Journal(path, method, [frame_key(atoms, method) for atoms in frames], "frames.xyz")


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
    pytest.importorskip("fcntl")
    with (
        open_journal(tmp_path / "journal", make_frames(2)),
        pytest.raises(LabelError, match="another run is using this journal"),
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


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, make_frames(3)) as journal:
        for number in range(3):
            journal.add(number, some_labels(False))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 20 + b"\n", lines[3]]))
    with pytest.raises(LabelError, match=r"line 3: damaged, not a JSON object; delete that line"):
        open_journal(path, make_frames(3))


def test_the_journal_is_beside_the_file() -> None:
    assert journal_path(Path("some/labelled.xyz")) == Path("some/labelled.xyz.journal.jsonl")
