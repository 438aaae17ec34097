"""ASE databases: lazy, in order, never written to."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from ponita_ff.data import AseDbFrames, DataError, Units, file_sha256, read_frames


def labelled(atoms: Atoms, *names: str) -> Atoms:
    atoms.calc = EMT()
    results: dict[str, Any] = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
    }
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    kept = {name: results[name] for name in names} if names else results
    atoms.calc = SinglePointCalculator(atoms, **kept)
    return atoms


def crystal(seed: int) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def write(path: Path, images: list[Atoms]) -> Path:
    with ase.db.connect(path, type="db") as database:
        for atoms in images:
            database.write(atoms)
    return path


def test_rows_are_frames(tmp_path: Path) -> None:
    images = [labelled(crystal(i)) for i in range(4)]
    path = write(tmp_path / "a.db", images)
    before = file_sha256(path)
    frames = read_frames(path)
    assert len(frames) == 4
    for frame, atoms in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.positions, atoms.positions)
        np.testing.assert_array_equal(frame.forces, atoms.get_forces())
        np.testing.assert_array_equal(frame.cell, atoms.cell.array)
        assert frame.energy == atoms.get_potential_energy()
        assert frame.stress is not None
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-15)
    assert frames[2].source == "a.db, frame 2 (id 3)"
    assert file_sha256(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.db"]


def test_deleted_rows_leave_no_hole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.db", [labelled(crystal(i)) for i in range(4)])
    ase.db.connect(path).delete([2])
    assert [f.source for f in read_frames(path)][1] == "a.db, frame 1 (id 3)"


def test_molecule_loses_its_box(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.set_cell([50, 50, 50])
    frame = read_frames(write(tmp_path / "a.db", [labelled(atoms)]))[0]
    assert not frame.cell.any() and frame.stress is None


def test_missing_labels_name_the_row(tmp_path: Path) -> None:
    images = [labelled(crystal(0)), labelled(crystal(1), "energy")]
    with pytest.raises(DataError, match=r"a\.db, frame 1 \(id 2\): no forces"):
        read_frames(write(tmp_path / "a.db", images))
    with pytest.raises(DataError, match=r"frame 0 \(id 1\): no energy"):
        read_frames(write(tmp_path / "b.db", [crystal(0)]))


def test_stress_in_some_rows(tmp_path: Path) -> None:
    images = [labelled(crystal(0)), labelled(crystal(1), "energy", "forces")]
    path = write(tmp_path / "a.db", images)
    with pytest.raises(DataError, match="some rows have a stress"):
        read_frames(path)
    assert [f.stress for f in read_frames(path, read_stress=False)] == [None, None]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("cell", None, "no cell"),
        ("pbc", None, "no pbc"),
        ("positions", None, "no positions"),
        ("pbc", "all", "column pbc holds text"),
        ("pbc", 9, "pbc is 9, expected 0 to 7"),
        ("energy", "low", "column energy holds text, expected real or integer"),
        ("energy", b"12345678", "column energy holds blob"),
        ("forces", "text", "column forces holds text, expected blob"),
        ("forces", b"12345678", "forces has 8 bytes, expected 96 for 4 atoms"),
        ("numbers", b"", "numbers has 0 bytes, expected 16"),
        ("cell", b"\0" * 24, "cell has 24 bytes, expected 72"),
        ("stress", b"\0" * 24, "stress has 24 bytes, expected 48"),
        ("natoms", "some", "the number of atoms is 'some'"),
        ("natoms", None, "the number of atoms is None"),
    ],
)
def test_wrong_columns_name_the_row(tmp_path: Path, column: str, value: Any, message: str) -> None:
    path = write(tmp_path / "a.db", [labelled(crystal(0)), labelled(crystal(1))])
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE systems SET {column} = ? WHERE id = 2", (value,))
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match=rf"a\.db, frame 1 \(id 2\): {message}"):
        read_frames(path)


def test_columns_that_only_ase_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.db", [labelled(crystal(0))])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE systems SET tags = 'text'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match=r"a\.db, frame 0 \(id 1\): the row cannot be read"):
        list(read_frames(path))


def test_foreign_sqlite_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.commit()
    connection.close()
    before = file_sha256(path)
    with pytest.raises(DataError, match="not an ASE database"):
        read_frames(path)
    assert file_sha256(path) == before


def test_empty_database_units_and_pickle(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    ase.db.connect(empty).count()
    with pytest.raises(DataError, match="no frames"):
        read_frames(empty)
    path = write(tmp_path / "a.db", [labelled(crystal(0))])
    with pytest.raises(DataError, match="stated as Hartree"):
        read_frames(path, units=Units("Ha", "Bohr"))
    frames = AseDbFrames(path)
    assert frames[0].energy == pickle.loads(pickle.dumps(frames))[0].energy
