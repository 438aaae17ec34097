"""Structures as a user names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from ponita_ff.simulate.structures import StructureError, read_structure


def test_a_file_a_molecule_or_the_potentials_own(tmp_path: Path, tiny_potential_path: Path) -> None:
    atoms = molecule("CH3OH")
    path = tmp_path / "frames.xyz"
    write(path, [molecule("H2O"), atoms], format="extxyz")
    assert read_structure(str(path), "ethanol-rmd17").get_chemical_formula() == "CH4O"
    np.testing.assert_array_equal(read_structure("CH3OH", "no-such").positions, atoms.positions)
    assert read_structure(None, "ethanol-rmd17").get_chemical_formula() == "C2H6O"
    assert read_structure(None, "ethanol-rmd17,organic-rmd17").get_chemical_formula() == "C2H6O"
    with pytest.raises(StructureError, match=r"give STRUCTURE.*no structure\.xyz lies beside"):
        read_structure(None, str(tiny_potential_path))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"nowhere: there is no such file, nor a molecule"):
        read_structure("nowhere", "ethanol-rmd17")
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(StructureError, match=r"there is no such file, nor a molecule"):
            read_structure(name, "ethanol-rmd17")
    with pytest.raises(StructureError, match="/dev/zero: not a file"):
        read_structure("/dev/zero", "ethanol-rmd17")
    path = tmp_path / "broken.xyz"
    path.write_text("no number\n", encoding="utf-8")
    with pytest.raises(StructureError, match=r"broken\.xyz, frame 0 \(line 1\): not readable"):
        read_structure(str(path), "ethanol-rmd17")
