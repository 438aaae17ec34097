"""Structures from any file that ASE reads; those of XYZ files one and all."""

from __future__ import annotations

from pathlib import Path

import ase.io
import pytest
from ase.build import molecule

from ponita_ff.data import DataError
from ponita_ff.data.structures import iter_structures, last_structure

NAMES = ["H2O", "CH3OH", "CH3CH2OH"]


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.xyz.gz", "a.traj", "a.db", "no_suffix", "at@1.xyz"])
def test_all_and_the_last(tmp_path: Path, name: str) -> None:
    path, images = tmp_path / name, [molecule(one) for one in NAMES]
    kind = {"a.traj": "traj", "a.db": "db"}.get(name, "extxyz")
    ase.io.write(tmp_path / "b", images, format=kind) if "@" in name else ase.io.write(path, images, format=kind)
    if "@" in name:
        (tmp_path / "b").rename(path)
    assert [atoms.get_chemical_formula() for atoms in iter_structures(path)] == ["H2O", "CH4O", "C2H6O"]
    assert last_structure(path).get_chemical_formula() == "C2H6O"


@pytest.mark.parametrize("name", ["a.xyz", "no_suffix"])
def test_a_blank_line_is_no_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for one in NAMES:
        ase.io.write(tmp_path / "one.xyz", molecule(one))
        with path.open("a") as file:
            file.write((tmp_path / "one.xyz").read_text() + "\n")
    assert len(list(iter_structures(path))) == 3
    assert last_structure(path).get_chemical_formula() == "C2H6O"


def test_a_folder_that_ase_reads(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "bundle", [molecule("H2O")], format="bundletrajectory")
    assert last_structure(tmp_path / "bundle").get_chemical_formula() == "H2O"


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").touch()
    (tmp_path / "broken.traj").write_bytes(b"- of Ulm" + b"x" * 100)
    (tmp_path / "blank.xyz").write_text("\n\n")
    (tmp_path / "huge.xyz").write_text("1000000000000\n\nH 0 0 0\n")
    for name in ("empty.xyz", "broken.traj", "blank.xyz", "huge.xyz", "none.xyz", "a" * 5000, "a\0b", "/dev/zero"):
        for read in (last_structure, lambda path: list(iter_structures(path))):
            if name == "blank.xyz" and read is not last_structure:
                assert read(tmp_path / name) == []
                continue
            with pytest.raises(DataError) as caught:
                read(tmp_path / name)
            assert (tmp_path / name).name[:100] in str(caught.value)
