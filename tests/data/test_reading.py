"""One function reads every format: the suffix decides, and every way gives the same frames or a clear error."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest

from ponita_ff.data import (
    AseDbFrames,
    DataError,
    Frame,
    Hdf5Frames,
    InMemoryFrames,
    NpzFrames,
    Units,
    read_frames,
    write_hdf5,
)

EV = Units("eV", "Angstrom")


def make_frames(stress: bool = False) -> list[Frame]:
    """Four frames of one molecule, or crystals with a stress."""
    generator = np.random.default_rng(0)
    return [
        Frame(
            numbers=np.array([8, 1, 1]),
            positions=np.diag([0.0, 1.0, 2.0]) + 0.1 * generator.normal(size=(3, 3)),
            cell=5.0 * np.eye(3) * stress,
            pbc=np.full(3, stress),
            energy=float(generator.normal()),
            forces=generator.normal(size=(3, 3)),
            stress=np.eye(3) * generator.normal() if stress else None,
        )
        for _ in range(4)
    ]


def write_npz(path: Path, frames: list[Frame]) -> None:
    arrays = {"R": [f.positions for f in frames], "E": [f.energy for f in frames], "F": [f.forces for f in frames]}
    np.savez(path, z=frames[0].numbers, e_unit="eV", r_unit="Ang", **{k: np.array(v) for k, v in arrays.items()})


def write_xyz(path: Path, frames: list[Frame]) -> None:
    ase.io.write(path, [frame.to_atoms() for frame in frames], format="extxyz")


def write_xyz_gz(path: Path, frames: list[Frame]) -> None:
    write_xyz(path.with_suffix(""), frames)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


def write_db(path: Path, frames: list[Frame]) -> None:
    with ase.db.connect(path) as database:
        for frame in frames:
            database.write(frame.to_atoms())


def write_h5(path: Path, frames: list[Frame]) -> None:
    write_hdf5(path, frames, {})


WRITERS: dict[str, tuple[Callable[[Path, list[Frame]], None], type]] = {
    "a.npz": (write_npz, NpzFrames),
    "a.xyz": (write_xyz, InMemoryFrames),
    "a.extxyz": (write_xyz, InMemoryFrames),
    "a.XYZ": (write_xyz, InMemoryFrames),
    "a.xyz.gz": (write_xyz_gz, InMemoryFrames),
    "a.h5": (write_h5, Hdf5Frames),
    "a.hdf5": (write_h5, Hdf5Frames),
    "a.db": (write_db, AseDbFrames),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_suffix_has_its_reader(name: str, tmp_path: Path) -> None:
    write, kind = WRITERS[name]
    expected = make_frames()
    write(tmp_path / name, expected)
    found = read_frames(str(tmp_path / name))
    assert type(found) is kind
    for one, other in zip(found, expected, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-8)
        np.testing.assert_array_equal(one.numbers, other.numbers)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-8)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-8)


@pytest.mark.parametrize("name", ["a.npz", "a.xyz", "a.h5", "a.db"])
def test_units_and_index(name: str, tmp_path: Path) -> None:
    expected = make_frames()
    WRITERS[name][0](tmp_path / name, expected)
    some = read_frames(tmp_path / name, units=EV, index=slice(1, 4, 2))
    assert [frame.energy for frame in some] == pytest.approx([expected[1].energy, expected[3].energy], abs=1e-8)
    last = read_frames(tmp_path / name, index=slice(-1, None))
    assert [frame.energy for frame in last] == pytest.approx([expected[3].energy], abs=1e-8)
    with pytest.raises(DataError, match=f"{name}: no frames"):
        read_frames(tmp_path / name, index=slice(9, None))


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.db"])
def test_contradictory_units_are_refused(name: str, tmp_path: Path) -> None:
    WRITERS[name][0](tmp_path / name, make_frames())
    with pytest.raises(DataError, match="units are stated as kcal/mol and Angstrom, but"):
        read_frames(tmp_path / name, units=Units("kcal/mol", "Angstrom"))


@pytest.mark.parametrize("name", ["a.xyz", "a.h5", "a.db"])
def test_stresses_can_be_left_out(name: str, tmp_path: Path) -> None:
    expected = make_frames(stress=True)
    WRITERS[name][0](tmp_path / name, expected)
    np.testing.assert_allclose(read_frames(tmp_path / name)[2].stress, expected[2].stress, atol=1e-8)
    assert read_frames(tmp_path / name, read_stress=False)[2].stress is None


@pytest.mark.parametrize(
    ("name", "keys"),
    [("a.npz", {"stress_key": "s"}), ("a.h5", {"energy_key": "e", "forces_key": "f"}), ("a.db", {"forces_key": "f"})],
)
def test_names_of_labels_where_the_format_fixes_them(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    WRITERS[name][0](tmp_path / name, make_frames())
    with pytest.raises(DataError, match=f"{name}: {', '.join(keys)} cannot be given for this format"):
        read_frames(tmp_path / name, **keys)


def test_names_of_labels(tmp_path: Path) -> None:
    atoms = make_frames()[0].to_atoms()
    atoms.info["dft_energy"], atoms.arrays["dft_forces"] = 3.5, np.full((3, 3), 0.25)
    atoms.calc = None
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    (frame,) = read_frames(tmp_path / "a.xyz", energy_key="dft_energy", forces_key="dft_forces")
    assert frame.energy == 3.5 and (frame.forces == 0.25).all()


@pytest.mark.parametrize("name", ["a" * 5000 + ".xyz", "a\0.xyz", "/dev/zero", "/dev/zero/a.xyz"])
def test_names_of_what_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such file|not a file|cannot be opened") as caught:
        read_frames(tmp_path / name)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xyz: there is no such file"):
        read_frames(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="not a file"):
        read_frames(tmp_path)
    for name in ("a.xyz", "a.traj"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="the file is empty"):
            read_frames(tmp_path / name)
    (tmp_path / "a.traj").write_text("something", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.traj: unknown suffix '\.traj'; known are \.npz"):
        read_frames(tmp_path / "a.traj")
    (tmp_path / "a.npz.gz").write_bytes(gzip.compress(b"something"))
    with pytest.raises(DataError, match=r"unknown suffix '\.gz'"):
        read_frames(tmp_path / "a.npz.gz")
