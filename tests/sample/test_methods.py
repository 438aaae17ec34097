"""Methods by name: potentials first, then those of labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from ponita_ff.labels import LabelError
from ponita_ff.potential.header import PotentialFileError, read_header
from ponita_ff.sample import SampleError
from ponita_ff.sample.methods import PotentialMethod, method_for, method_of


def test_a_potential_by_name_file_and_committee(tiny_potential_path: Path, tmp_path: Path) -> None:
    other = shutil.copy(tiny_potential_path, tmp_path / "other.safetensors")
    found = method_for(str(tiny_potential_path))
    assert isinstance(found, PotentialMethod) and found.species == {1, 6, 8}
    digest = read_header(tiny_potential_path)["weights_sha256"]
    assert found.hashes == (digest,) and digest[:12] in found.program()
    atoms = molecule("H2O")
    atoms.calc = found.calculator()
    assert atoms.get_forces().shape == (3, 3)
    assert "energy_std" not in atoms.calc.results
    committee = method_for(f"{tiny_potential_path},{other}")
    assert isinstance(committee, PotentialMethod)
    atoms.calc = committee.calculator()
    atoms.get_potential_energy()
    assert atoms.calc.results["energy_std"] == pytest.approx(0.0, abs=1e-9)
    found.check([("water", molecule("H2O"))])
    assert method_of(found, 0, 1) is found
    for charge, multiplicity in ((1, 1), (0, 2)):
        with pytest.raises(LabelError, match=r"knows no charge \("):
            method_of(found, charge, multiplicity)
    with pytest.raises(LabelError, match=r"ammonia: it has N, and .* knows H, C, O only"):
        found.check([("ammonia", molecule("NH3"))])


def test_labels_by_a_potential_are_those_of_the_calculator(
    tiny_potential_path: Path, make_system: Callable[[str], Atoms], tmp_path: Path
) -> None:
    single = method_for(str(tiny_potential_path))
    committee = method_for(f"{tiny_potential_path},{shutil.copy(tiny_potential_path, tmp_path / 'other.safetensors')}")
    for frames in ([molecule("H2O"), molecule("CH3OH")], [make_system("crystal")]):
        for method in (single, committee):
            for atoms, labels in zip(frames, method.compute(frames), strict=True):
                atoms.calc = method.calculator()
                assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
                assert np.abs(labels.forces - atoms.get_forces()).max() < 1e-4
                assert (labels.stress is not None) == bool(atoms.pbc.all())
                if labels.stress is not None:
                    assert np.abs(labels.stress - atoms.get_stress(voigt=False)).max() < 1e-5
    shutil.copy(tiny_potential_path, tmp_path / "changed.safetensors")
    changed = replace(single, files=(str(tmp_path / "changed.safetensors"),), hashes=("another",))
    with pytest.raises(ValueError, match=r"changed\.safetensors is another potential"):
        changed.compute([molecule("H2O")])


def test_the_methods_of_labels() -> None:
    assert method_for("ase.calculators.emt:EMT").name == "ase.calculators.emt:EMT"
    assert method_for("pbe/def2-svp").name == "pbe/def2-svp"
    ion = method_of(method_for("GFN2-xTB"), 1, 2)
    assert (ion.name, ion.charge, ion.multiplicity) == ("gfn2-xtb", 1, 2)
    calculator = method_for("ase.calculators.emt:EMT")
    assert method_of(calculator, 1, 2) is calculator


def test_methods_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"unknown method 'nonsense'.* or the name or file of a potential: .*ethanol"):
        method_for("nonsense")
    with pytest.raises(SampleError, match=r"gone.safetensors' is neither a file nor a shipped potential"):
        method_for(str(tmp_path / "gone.safetensors"))
    (tmp_path / "bad.safetensors").write_text("nothing", "utf-8")
    with pytest.raises(PotentialFileError, match=r"bad.safetensors"):
        method_for(str(tmp_path / "bad.safetensors"))
