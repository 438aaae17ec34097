"""Frames to label: any file that ASE reads, and errors that name file and frame."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.units import Bohr

from ponita_ff.data import DataError
from ponita_ff.labels import LabelError
from ponita_ff.labels.structures import kept_info, read_structures


@pytest.mark.parametrize("name", ["frames.xyz", "frames.traj", "frames.db", "frames.json", "at@:1.xyz"])
def test_files_with_or_without_labels(name: str, tmp_path: Path) -> None:
    frames = [bulk("Cu", cubic=True), bulk("Cu", cubic=True)]
    frames[1].rattle(0.05, seed=0)
    frames[0].calc = EMT()
    frames[0].get_forces()
    ase.io.write(tmp_path / "some.xyz" if "@" in name else tmp_path / name, frames)
    if "@" in name:
        (tmp_path / "some.xyz").rename(tmp_path / name)
    prefix, found = read_structures(tmp_path / name)
    assert prefix == f"{name}, " and len(found) == 2
    for atoms, given in zip(found, frames, strict=True):
        np.testing.assert_allclose(atoms.positions, given.positions, atol=1e-8)
        assert atoms.calc is None and (atoms.pbc == given.pbc).all()


def test_marked_lengths_are_converted(tmp_path: Path) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.4]], cell=[8, 8, 8], pbc=True, info={"length_unit": "Bohr"})
    ase.io.write(tmp_path / "frames.xyz", atoms)
    _, (found,) = read_structures(tmp_path / "frames.xyz")
    assert found.positions[1, 2] == pytest.approx(1.4 * Bohr)
    assert found.cell[0, 0] == pytest.approx(8 * Bohr)
    assert found.info == {}
    atoms.info = {"length_unit": "furlong"}
    ase.io.write(tmp_path / "frames.xyz", atoms)
    with pytest.raises(DataError, match=r"frames.xyz, frame 0: length_unit='furlong' is not understood"):
        read_structures(tmp_path / "frames.xyz")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "frames.xyz"
    with pytest.raises(LabelError, match="there is no such file"):
        read_structures(path)
    with pytest.raises(LabelError, match="not a file"):
        read_structures(tmp_path)
    ase.io.write(path, [molecule("H2O"), molecule("H2O")])
    text = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(text[:-1]), encoding="utf-8")
    with pytest.raises(LabelError, match=r"frames.xyz, frame 1 \(line 6\): not readable"):
        read_structures(path)
    with pytest.raises(LabelError, match="no frames"):
        read_structures([])
    with pytest.raises(LabelError, match="frame 1: the frame has no atoms"):
        read_structures([molecule("H2O"), Atoms()])


def test_comments_that_are_no_labels_are_kept() -> None:
    kept = {"trajectory": 3, "name": "a b", "hot": True, "temperature": 300.5}
    lost = {"energy": 1.0, "REF_energy": 1.0, "dft_forces": 1, "units": "Bohr", "Lattice": 3, "two words": 1, "a": [1]}
    lost |= {"quote": 'a"b', "line": "a\nb", "level_of_theory": "another"}
    assert kept_info({**kept, **lost, "count": np.int64(2)}) == {**kept, "count": 2}
