"""Calculators and structures by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from audit_calculators import Springs, labelled_frames

from ponita_ff.audit import AuditError
from ponita_ff.audit.calculators import choose_structure, make_calculator, make_calculators


def test_calculators_by_name(tmp_path: Path, tiny_potential_path: Path) -> None:
    argon = make_calculator("ase.calculators.lj:LennardJones{sigma: 3.4, rc: 9.0}")
    assert argon.parameters["sigma"] == 3.4
    texts = [str(tiny_potential_path), "ase.calculators.emt:EMT"]
    assert list(make_calculators(texts)) == [str(tiny_potential_path), "EMT"]
    committee = make_calculator(f"{tiny_potential_path},{tiny_potential_path}")
    assert "forces_std" in committee.implemented_properties


# ------------------------------------------------------------------------------------------ the command


def test_two_calculators_of_one_class_keep_their_full_names() -> None:
    texts = ["ase.calculators.lj:LennardJones", "ase.calculators.lj:LennardJones{sigma: 3.4}"]
    assert list(make_calculators(texts)) == ["LennardJones", "LennardJones{sigma: 3.4}"]
    with pytest.raises(AuditError, match="named twice"):
        make_calculators([texts[0], texts[0]])


def test_the_structure_is_a_molecule_a_file_or_the_best_frame(tmp_path: Path, water: Atoms) -> None:
    assert choose_structure("CH3OH", None).get_chemical_formula() == "CH4O"
    water.write(tmp_path / "water.xyz")
    np.testing.assert_allclose(choose_structure(str(tmp_path / "water.xyz"), None).positions, water.positions)
    frames = labelled_frames(Springs(water), water, 5)
    best = min(frames, key=lambda frame: frame.energy)
    np.testing.assert_array_equal(choose_structure(None, frames).positions, best.positions)
    with pytest.raises(AuditError, match="--structure"):
        choose_structure(None, None)
