"""Frames: what is refused, what is converted to ASE and back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ponita_ff.data import (
    DataError,
    Frame,
    InMemoryFrames,
    JoinedFrames,
    Subset,
    Units,
    check_plausible,
    file_sha256,
    files_sha256,
    read_frames,
)


def make_frame(**changes: Any) -> Frame:
    fields: dict[str, Any] = {
        "numbers": [8, 1, 1],
        "positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]],
        "cell": np.zeros((3, 3)),
        "pbc": [False, False, False],
        "energy": -10.0,
        "forces": np.arange(9.0).reshape(3, 3),
        "source": "some.xyz, frame 17",
    }
    return Frame(**(fields | changes))


def with_nan(index: tuple[int, int]) -> np.ndarray:
    array = np.arange(9.0).reshape(3, 3)
    array[index] = np.nan
    return array


def test_fields_get_their_dtypes() -> None:
    frame = make_frame(energy=np.float32(2.5), forces=np.ones((3, 3), np.float32))
    assert frame.numbers.dtype == np.int64
    assert frame.positions.dtype == frame.forces.dtype == frame.cell.dtype == np.float64
    assert frame.pbc.dtype == np.bool_
    assert type(frame.energy) is float
    assert len(frame) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forces": with_nan((2, 1))}, "forces of atom 2"),
        ({"positions": with_nan((1, 0))}, "positions of atom 1"),
        ({"energy": float("inf")}, "energy is inf"),
        ({"energy": [1.0, 2.0, 3.0]}, "not energies per atom"),
        ({"energy": "low"}, "not an array of numbers"),
        ({"stress": np.full((3, 3), np.nan)}, "stress holds NaN"),
        ({"stress": np.zeros(6)}, r"stress has shape \(6,\)"),
        ({"cell": np.full((3, 3), np.inf)}, "cell holds NaN"),
        ({"forces": np.zeros((2, 3))}, r"forces has shape \(2, 3\), expected \(3, 3\)"),
        ({"positions": np.zeros(9)}, r"positions has shape \(9,\)"),
        ({"pbc": [True]}, r"pbc has shape"),
        ({"numbers": [8, 1, 0]}, "atom 2 has atomic number 0"),
        ({"numbers": [119, 1, 1]}, "atom 0 has atomic number 119"),
        ({"numbers": [8, 1, 1.5]}, "not whole numbers"),
        ({"numbers": [], "positions": np.empty((0, 3)), "forces": np.empty((0, 3))}, "no atoms"),
        ({"pbc": [True, False, False]}, "no independent vector"),
        ({"positions": [[0, 0, 0], [1, 0, 0], [1, 0.005, 0]]}, "atoms 1 and 2 are at the same"),
        ({"energy": -10.0 + 0.5j}, r"energy are not an array of numbers: .* found complex numbers, \(-10\+0\.5j\)"),
        ({"energy": True}, "energy are not .* found booleans"),
        ({"energy": "-10"}, "energy are not .* found text, '-10'"),
        ({"energy": np.array([None])}, "found objects"),
        ({"forces": np.ones((3, 3), bool)}, "forces are not .* found booleans"),
        ({"forces": np.ones((3, 3), complex)}, "forces are not .* found complex"),
        ({"numbers": np.array([8, 1, 1], complex)}, "atomic numbers are not .* found complex"),
        ({"numbers": np.full(3, 2**64 - 1, np.uint64)}, "atomic numbers are too large"),
        ({"energy": 1e300}, r"the energy is 1e\+300 eV, more than any physical one"),
        ({"energy": -4e8}, "the energy is -4.*are the units right"),
        ({"forces": np.full((3, 3), -2e8)}, "forces of atom 0 are .* eV/Å, more than any physical"),
        ({"positions": np.diag([1.0, 2.0, 1e300])}, "positions of atom 2 are .* Å, more than any physical"),
        ({"stress": np.diag([0.0, 0.0, 1e9])}, "the stress is .* eV/Å³, more than any physical"),
        ({"stress": np.arange(9.0).reshape(3, 3)}, "stress .* is not symmetric"),
        ({"cell": np.diag([5.0, 5.0, 1e9])}, "the cell is .* Å, more than any physical"),
        ({"cell": np.eye(3) * 1e-300, "pbc": [True] * 3}, "vector of the cell .* is shorter than 0.01 Å"),
        ({"pbc": ["T", "F", "F"]}, "pbc is .*expected true or false"),
        ({"pbc": [2, 0, 0]}, r"pbc is \[2, 0, 0\], expected true or false"),
    ],
)
def test_bad_frames_are_refused_with_their_source(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_frame(**changes)
    assert "some.xyz, frame 17" in str(caught.value)


def test_data_error_is_a_value_error() -> None:
    assert issubclass(DataError, ValueError)


def test_atoms_a_little_apart_are_accepted() -> None:
    make_frame(positions=[[0, 0, 0], [1, 0, 0], [1, 0.02, 0]])


def test_what_is_odd_but_right_is_accepted() -> None:
    """Whole numbers of another type, strongly distorted frames, and the asymmetry of a converged stress."""
    frame = make_frame(numbers=[8.0, 1.0, 1.0], pbc=[0, 0, 0], energy=np.float16(2.5), forces=[[0, 0, 1]] * 3)
    assert frame.numbers.tolist() == [8, 1, 1] and not frame.pbc.any() and frame.energy == 2.5
    make_frame(energy=-1.5e6, numbers=[118, 1, 1], forces=np.full((3, 3), 5e6))
    stress = np.diag([0.1, 0.2, -0.3])
    stress[0, 1] = 5e-4
    np.testing.assert_array_equal(make_frame(stress=stress).stress, stress)


def test_units_are_converted_before_magnitudes_are_checked() -> None:
    fields = {"cell": np.zeros((3, 3)), "source": "a.npz, frame 3", "forces": np.zeros((1, 3))}
    fields |= {"numbers": [92], "positions": np.zeros((1, 3)), "pbc": np.zeros(3, bool)}
    assert Frame.in_units(Units("meV", "Angstrom"), energy=-7.6e8, **fields).energy == pytest.approx(-7.6e5)
    with pytest.raises(DataError, match=r"a\.npz, frame 3: the energy is -76.* are the units right"):
        Frame.in_units(Units("eV", "Angstrom"), energy=-7.6e8, **fields)
    with pytest.raises(DataError, match=r"a\.npz, frame 3: the energy is inf$"):
        Frame.in_units(Units("Hartree", "Bohr"), energy=np.finfo("f8").max, **fields)
    with pytest.raises(DataError, match=r"a\.npz, frame 3: forces of atom 0 are .*inf"):
        Frame.in_units(Units("Hartree", "Bohr"), energy=0.0, **fields | {"forces": np.full((1, 3), np.finfo("f8").max)})


def test_one_atom_is_a_frame() -> None:
    assert len(make_frame(numbers=[1], positions=[[0, 0, 0]], forces=[[0, 0, 0]])) == 1


def test_to_atoms_keeps_labels_and_stress_order() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02), scale_atoms=True)
    atoms.calc = EMT()
    frame = Frame(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=False),
    )
    back = frame.to_atoms()
    assert back.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(back.get_forces(), atoms.get_forces())
    np.testing.assert_allclose(back.get_stress(), atoms.get_stress(), rtol=0, atol=1e-15)
    assert len(set(np.round(atoms.get_stress(), 12))) == 6  # else the order is not tested
    np.testing.assert_array_equal(back.cell.array, atoms.cell.array)
    assert back.pbc.all()


def test_sequence_indexing() -> None:
    frames = InMemoryFrames(make_frame(energy=i) for i in range(5))
    assert [f.energy for f in frames] == [0, 1, 2, 3, 4]
    assert frames[-1].energy == 4
    assert frames[np.int64(2)].energy == 2
    assert [f.energy for f in frames[1::2]] == [1, 3]
    assert [f.energy for f in frames[::-1][:2]] == [4, 3]
    for index in (5, -6):
        with pytest.raises(IndexError):
            frames[index]


def test_subset_keeps_order_and_refuses_what_is_not_there() -> None:
    frames = InMemoryFrames(make_frame(energy=i) for i in range(5))
    assert [f.energy for f in Subset(frames, [3, 0])] == [3, 0]
    for bad in ([5], [-1]):
        with pytest.raises(DataError, match="5 frames"):
            Subset(frames, bad)


def test_joined_frames_are_one_behind_the_other() -> None:
    parts = [InMemoryFrames([make_frame(energy=float(k)) for k in numbers]) for numbers in ([0, 1], [], [2], [3, 4])]
    joined = JoinedFrames(parts)
    assert [frame.energy for frame in joined] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [frame.energy for frame in joined[1:4]] == [1.0, 2.0, 3.0]
    assert joined[-1].energy == 4.0
    with pytest.raises(IndexError, match="frame 5 of 5"):
        joined[5]
    assert len(JoinedFrames([])) == 0


def test_hash_of_several_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"def")
    assert files_sha256([one]) == file_sha256(one)
    assert len({files_sha256(paths) for paths in ([one], [two], [one, two], [two, one])}) == 4


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert file_sha256(path) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("suffix", [".npz", ".xyz", ".extxyz", ".h5", ".hdf5", ".db"])
def test_missing_empty_and_random_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    with pytest.raises(DataError, match="no such file"):
        read_frames(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read_frames(path)
    junk = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    path.write_bytes(junk)
    with pytest.raises(DataError, match="data"):
        read_frames(path)
    assert path.read_bytes() == junk, "reading must not write into a foreign file"


def test_unknown_suffix_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"unknown suffix '.pkl'.*\.extxyz"):
        read_frames(path)
    with pytest.raises(DataError, match="not a file"):
        read_frames(tmp_path)


def labelled_water(scale: float = 1.0, energy: float = -2080.0, force: float = 1.0) -> Frame:
    atoms = molecule("H2O")
    return make_frame(
        numbers=atoms.numbers,
        positions=atoms.positions * scale,
        energy=energy,
        forces=np.full((3, 3), force),
    )


def test_plausible_frames_pass() -> None:
    check_plausible([labelled_water()])
    check_plausible([make_frame(numbers=[1], positions=[[0, 0, 0]], forces=[[0, 0, 0]])])
    copper = bulk("Cu")  # one atom: its neighbours are its own images
    check_plausible(
        [
            make_frame(
                numbers=copper.numbers,
                positions=copper.positions,
                cell=copper.cell.array,
                pbc=copper.pbc,
                forces=[[0, 0, 0]],
            )
        ]
    )


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (labelled_water(scale=0.1), "nearest-neighbour distance"),
        (labelled_water(scale=10.0), "nearest-neighbour distance"),
        (labelled_water(force=500.0), "forces are"),
        (labelled_water(energy=-2080.0 * 23.06), "energy of"),
    ],
)
def test_wrong_units_are_noticed(frame: Frame, message: str) -> None:
    with pytest.raises(DataError, match=f"{message}.*are the units right"):
        check_plausible([frame])
