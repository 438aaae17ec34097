"""Predictions of many structures, and what ASE reads back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ponita_ff import PonitaCalculator
from ponita_ff.potential.potential import Potential
from ponita_ff.simulate.predict import PredictionError, predict_frames, read_structures, write_structures


def frames(make_system: Callable[[str], Atoms]) -> list[Atoms]:
    return [make_system("molecule"), make_system("crystal"), make_system("triclinic, mixed pbc"), molecule("CH3OH")]


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
def test_predictions_are_the_calculators_and_come_back(
    suffix: str, tiny_potential: Potential, make_system: Callable[[str], Atoms], tmp_path: Path
) -> None:
    given, done = frames(make_system), []
    found = predict_frames([tiny_potential], given, progress=done.append)
    assert done == [4]
    path = tmp_path / f"out.{suffix}"
    write_structures(path, found)
    calculator = PonitaCalculator(tiny_potential)
    for atoms, again in zip(given, read(path, ":"), strict=True):
        atoms.calc = calculator
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-7)
        assert ("stress" in again.calc.results) == bool(atoms.pbc.all())
        if atoms.pbc.all():
            np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), atol=1e-7)


def test_a_committee_adds_its_spread(make_potential: Callable[..., Potential], tmp_path: Path) -> None:
    members = [make_potential(seed=seed) for seed in (0, 1, 2)]
    atoms = molecule("CH3OH")
    write_structures(tmp_path / "out.xyz", predict_frames(members, [atoms]))
    again = read(tmp_path / "out.xyz")
    atoms.calc = PonitaCalculator(members)
    assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert again.info["energy_std"] == pytest.approx(atoms.calc.results["energy_std"], rel=1e-6)
    np.testing.assert_allclose(again.arrays["forces_std"], atoms.calc.results["forces_std"], atol=1e-7)


def test_mistakes_name_file_and_frame(tiny_potential: Potential, tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"frame 2: atom 0 is N \(Z = 7\)"):
        predict_frames([tiny_potential], [molecule("H2O"), molecule("CH4"), molecule("N2")])
    with pytest.raises(PredictionError, match=r"out\.cif: give a file that ends in one of \.xyz, \.extxyz, \.traj"):
        write_structures(tmp_path / "out.cif", [])
    with pytest.raises(PredictionError, match=r"nowhere\.xyz: there is no such file"):
        read_structures(tmp_path / "nowhere.xyz")
    (tmp_path / "broken.xyz").write_text("3\nno atoms\n", encoding="utf-8")
    with pytest.raises(PredictionError, match=r"broken\.xyz, frame 0 \(line 1\): not readable"):
        read_structures(tmp_path / "broken.xyz")
    write(tmp_path / "one.xyz", molecule("H2O"))
    assert len(read_structures(tmp_path / "one.xyz")) == 1
