"""Extended XYZ: labels, units, cells, stresses, damage."""

from __future__ import annotations

import gzip
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ponita_ff.data import DataError, Units, iter_extxyz, read_frames, read_isolated_atoms


def waters(n: int = 4) -> list[Atoms]:
    """Rattled water molecules with Lennard-Jones labels."""
    images = []
    for seed in range(n):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        lj = atoms.copy()
        lj.calc = LennardJones(sigma=0.9, epsilon=0.3, rc=5.0)
        energy, forces = lj.get_potential_energy(), lj.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        images.append(atoms)
    return images


def coppers(n: int = 3) -> list[Atoms]:
    images = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images


def save(path: Path, images: list[Atoms]) -> Path:
    write(path, images, format="extxyz")
    return path


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.xyz.gz"])
def test_labels_in_ase_units(tmp_path: Path, name: str) -> None:
    images = waters()
    path = save(tmp_path / "plain.xyz", images).rename(tmp_path / name)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    frames = read_frames(path)
    assert len(frames) == 4
    for frame, atoms in zip(frames, images, strict=True):
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-7)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_array_equal(frame.numbers, atoms.numbers)
    assert frames[3].source == f"{name}, frame 3"


def test_stated_units_convert(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xyz", waters())
    plain = read_frames(path)[0]
    frame = read_frames(path, units=Units("Hartree", "Bohr"))[0]
    assert frame.energy == pytest.approx(plain.energy * 27.2113862, rel=1e-7)
    np.testing.assert_allclose(frame.positions, plain.positions * 0.529177211, rtol=1e-8)
    np.testing.assert_allclose(frame.forces, plain.forces * 51.4220675, rtol=1e-7)


def custom(images: list[Atoms]) -> list[Atoms]:
    for atoms in images:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    return images


def test_custom_keys(tmp_path: Path) -> None:
    images = waters()
    energies = [atoms.get_potential_energy() for atoms in images]
    path = save(tmp_path / "a.xyz", custom(images))
    with pytest.raises(DataError, match=r"a\.xyz, frame 0: no energy.*is it energy_key='REF_en"):
        read_frames(path)
    with pytest.raises(DataError, match=r"no forces.*\['REF_forces'\].*forces_key='REF_forces'"):
        read_frames(path, energy_key="REF_energy")
    frames = read_frames(path, energy_key="REF_energy", forces_key="REF_forces")
    assert [f.energy for f in frames] == pytest.approx(energies, abs=1e-7)


def test_keys_that_ase_moves_away_are_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xyz", waters())
    assert len(read_frames(path, energy_key="energy", forces_key="forces")) == 4


def test_second_energy_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = waters(2)
    for atoms in images:
        atoms.info["dft_energy"] = 1.0
    with caplog.at_level(logging.WARNING):
        read_frames(save(tmp_path / "a.xyz", images))
    assert "dft_energy" in caplog.text


@pytest.mark.parametrize("lost", ["energy", "forces"])
def test_missing_in_one_frame_names_it(tmp_path: Path, lost: str) -> None:
    images = waters()
    del images[2].calc.results[lost]
    with pytest.raises(DataError, match=rf"a\.xyz, frame 2: no {lost}"):
        read_frames(save(tmp_path / "a.xyz", images))


def test_nan_label_names_frame_and_atom(tmp_path: Path) -> None:
    images = waters()
    images[1].calc.results["forces"][2, 0] = np.nan
    with pytest.raises(DataError, match=r"a\.xyz, frame 1: forces of atom 2"):
        read_frames(save(tmp_path / "a.xyz", images))


def test_energy_per_atom_is_not_a_total(tmp_path: Path) -> None:
    images = custom(waters())
    images[0].info["REF_energy"] = np.array([1.0, 2.0, 3.0])
    path = save(tmp_path / "a.xyz", images)
    with pytest.raises(DataError, match="not energies per atom"):
        read_frames(path, energy_key="REF_energy", forces_key="REF_forces")


def mark(images: list[Atoms], **info: str) -> list[Atoms]:
    for atoms in images:
        atoms.info.update(info)
    return images


@pytest.mark.parametrize(
    ("info", "factor"),
    [
        ({"units": "kcal/mol"}, 0.0433641043),
        ({"units": "kcal/mol/Angstrom"}, 0.0433641043),
        ({"units": "kJ/mol, Ang"}, 0.0103642697),
        ({"energy_unit": "Hartree"}, 27.2113862),
        ({"energy_units": "meV", "forces_unit": "meV/Ang"}, 1e-3),
        ({"energy_unit": "eV"}, 1.0),
    ],
)
def test_markers_decide(tmp_path: Path, info: dict[str, str], factor: float) -> None:
    plain = read_frames(save(tmp_path / "plain.xyz", waters()))[0]
    marked = read_frames(save(tmp_path / "a.xyz", mark(waters(), **info)))[0]
    assert marked.energy == pytest.approx(plain.energy * factor, rel=1e-7)


def test_stated_units_against_a_marker(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xyz", mark(waters(), energy_unit="kcal/mol"))
    with pytest.raises(DataError, match=r"stated as eV.*frame 0 states.*kcal/mol"):
        read_frames(path, units=Units("eV", "Angstrom"))
    assert len(read_frames(path, units=Units("kcal/mol", "Angstrom"))) == 4


@pytest.mark.parametrize("second", [{"energy_unit": "kcal/mol"}, {}])
def test_mixed_units_in_one_file(tmp_path: Path, second: dict[str, str]) -> None:
    images = mark(waters(1), energy_unit="Hartree") + mark(waters(1), **second)
    with pytest.raises(DataError, match=r"mixed units: frame 0.*Hartree.*frame 1"):
        read_frames(save(tmp_path / "a.xyz", images))


def test_mixed_units_in_one_frame(tmp_path: Path) -> None:
    images = mark(waters(), energy_unit="eV", forces_unit="kcal/mol/Ang")
    with pytest.raises(DataError, match="mixed units in one frame"):
        read_frames(save(tmp_path / "a.xyz", images))


def test_marker_that_nobody_understands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.xyz", mark(waters(), units="zorkmid"))
    with pytest.raises(DataError, match=r"zorkmid.*state the units"):
        read_frames(path)
    assert len(read_frames(path, units=Units("eV", "Angstrom"))) == 4
    assert "zorkmid" in caplog.text


def test_box_without_periodicity_is_dropped(tmp_path: Path) -> None:
    images = waters()
    for atoms in images:
        atoms.set_cell([50.0, 50.0, 50.0])
    path = save(tmp_path / "a.xyz", images)
    assert 'pbc="F F F"' in path.read_text() and "Lattice" in path.read_text()
    assert not read_frames(path)[0].cell.any()


def test_crystal_keeps_cell_and_stress(tmp_path: Path) -> None:
    images = coppers()
    frames = read_frames(save(tmp_path / "a.xyz", images))
    for frame, atoms in zip(frames, images, strict=True):
        np.testing.assert_allclose(frame.cell, atoms.cell.array, atol=1e-7)
        assert frame.pbc.all()
        assert frame.stress is not None
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-7)


@pytest.mark.parametrize("form", ["voigt", "flat", "matrix"])
def test_stress_under_its_own_key_and_in_its_units(tmp_path: Path, form: str) -> None:
    images = coppers()
    expected = [atoms.get_stress(voigt=False) for atoms in images]
    for atoms, matrix in zip(images, expected, strict=True):
        value = atoms.calc.results.pop("stress") if form == "voigt" else matrix
        atoms.calc.results.pop("stress", None)
        atoms.info["ref_stress"] = value.ravel() if form == "flat" else value
    path = save(tmp_path / "a.xyz", images)
    units = Units("Hartree", "Bohr")
    frames = read_frames(path, stress_key="ref_stress", units=units)
    for frame, matrix in zip(frames, expected, strict=True):
        assert frame.stress is not None
        np.testing.assert_allclose(frame.stress, matrix * 183.631513, atol=1e-5)
    with pytest.raises(DataError, match="no stress"):
        read_frames(path, stress_key="stres")


def test_stress_in_some_frames_only(tmp_path: Path) -> None:
    images = coppers()
    del images[1].calc.results["stress"]
    path = save(tmp_path / "a.xyz", images)
    with pytest.raises(DataError, match=r"frame 0 has a stress and frame 1 has none"):
        read_frames(path)
    assert [f.stress for f in read_frames(path, read_stress=False)] == [None] * 3


@pytest.mark.parametrize(
    "index",
    [slice(2), slice(1, None), slice(None, None, 2), slice(-2, None), slice(None, None, -1)],
)
def test_index_keeps_frame_numbers(tmp_path: Path, index: slice) -> None:
    path = save(tmp_path / "a.xyz", waters())
    expected = [f"a.xyz, frame {i}" for i in range(4)][index]
    assert [f.source for f in iter_extxyz(path, index=index)] == expected


def test_truncated_and_plain_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xyz", waters())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"a\.xyz.*not readable"):
        read_frames(path)
    path.write_text("1\njust a comment\nH 0 0 0\n")
    with pytest.raises(DataError, match="no energy"):
        read_frames(path)
    path.write_text("\n\n")
    with pytest.raises(DataError, match=r"no frames|not readable"):
        read_frames(path)


def test_frames_come_one_by_one(tmp_path: Path) -> None:
    images = waters()
    del images[3].calc.results["energy"]
    frames = iter_extxyz(save(tmp_path / "a.xyz", images))
    assert [next(frames).source[-1] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(DataError, match="frame 3"):
        next(frames)


@pytest.mark.parametrize("gap", ["\n", "\n\n \n", "\r\n", "\t\n"])
def test_blank_lines_between_frames_are_no_end(tmp_path: Path, gap: str) -> None:
    path = save(tmp_path / "a.xyz", waters())
    expected = [frame.energy for frame in read_frames(path)]
    lines = path.read_text().splitlines(keepends=True)
    frames = ["".join(lines[5 * k : 5 * k + 5]) for k in range(4)]
    path.write_text(gap + gap.join(frames) + gap, newline="")
    assert [frame.energy for frame in read_frames(path)] == expected
    assert [frame.energy for frame in read_frames(path, index=slice(-1, None))] == expected[-1:]


@pytest.mark.parametrize("energy", ["T", "true", "low", '"1 2"', "nan", "inf", "1e300", "1+2j", '""', '"_JSON [true]"'])
def test_an_energy_that_is_none(tmp_path: Path, energy: str) -> None:
    path = save(tmp_path / "a.xyz", waters(2))
    lines = path.read_text().splitlines()
    lines[6] = re.sub(r"energy=\S+", f"energy={energy}", lines[6])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.xyz, frame 1"):
        read_frames(path)
    path.write_text(f"1\nenergy={energy} pbc=F\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"a\.xyz, frame 0"):
        read_isolated_atoms(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy=", "energy=-3 energy=", "energy given twice"),
        ("energy=", "energy_unit=eV energy_unit=eV energy=", "energy_unit given twice"),
        ("pbc=", "name= pbc=", "pbc= in the comment line is not read"),
        ("pbc=", 'name=" pbc=', "pbc= in the comment line is not read"),
        ("pbc=", "name=[ pbc=", "pbc= in the comment line is not read"),
        ('"T T T"', "abc", "pbc is 'abc'"),
        ('"T T T"', '"1 2 0"', r"pbc is \[1, 2, 0\]"),
        ('"T T T"', '"T T"', "expected one or three of T and F"),
        ("forces:R:3", "forces:R:2", "atom 0: expected 6 columns, found 7"),
        ("forces:R:3", "forces:R:4", "atom 0: expected 8 columns, found 7"),
        ("forces:R:3", "pos:R:3", "pos is given twice"),
        ("pos:R:3:forces:R:3", "x:R:3:forces:R:3", "has no positions"),
        ("species:S:1", "Z:R:1", "numbers must be of type I with 1 column"),
        ("forces:R:3", "forces:S:3", "forces must be of type R or I"),
        ("forces:R:3", "forces:L:3", "forces must be of type R or I"),
    ],
)
def test_what_ase_would_misread_in_silence(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = save(tmp_path / "a.xyz", coppers(2))
    lines = path.read_text().splitlines()
    assert old in lines[7]
    lines[7] = lines[7].replace(old, new)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"a\.xyz, frame 1.*{message}"):
        read_frames(path)


def test_an_asymmetric_stress_is_refused(tmp_path: Path) -> None:
    """ASE would take its upper triangle."""
    path = save(tmp_path / "a.xyz", coppers(1))
    text = re.sub(r'stress="[^"]*"', 'stress="1 2 3 4 5 6 7 8 9"', path.read_text())
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.xyz, frame 0: the stress .* is not symmetric"):
        read_frames(path)
    assert read_frames(path, read_stress=False)[0].stress is None
    path.write_text(text.replace("1 2 3 4 5 6 7 8 9", "1 2 3 2 5 6 3 6 9"))
    np.testing.assert_array_equal(read_frames(path)[0].stress, [[1, 2, 3], [2, 5, 6], [3, 6, 9]])


def test_isolated_atoms(tmp_path: Path) -> None:
    path = tmp_path / "atoms.xyz"
    one = '1\nProperties=species:S:1:pos:R:3 energy={} pbc="F F F"\n{} 0 0 0\n'
    path.write_text(one.format(-13.5, "H") + one.format(-1025.0, "C"))
    assert read_isolated_atoms(path) == {1: -13.5, 6: -1025.0}
    hartree = read_isolated_atoms(path, units=Units("Ha", "Bohr"))
    assert hartree[1] == pytest.approx(-13.5 * 27.2113862, rel=1e-7)
    path.write_text(one.format(-13.5, "H") * 2)
    with pytest.raises(DataError, match="frame 1: H is given twice"):
        read_isolated_atoms(path)
    path.write_text(one.format("nan", "H"))
    with pytest.raises(DataError, match="energy"):
        read_isolated_atoms(path)
    with pytest.raises(DataError, match="3 atoms"):
        read_isolated_atoms(save(tmp_path / "w.xyz", waters()))
