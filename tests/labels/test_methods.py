"""Methods by name, and what is refused before any work begins."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from label_calculators import Spring

from ponita_ff.data import read_frames
from ponita_ff.labels import LabelError, find_method, label_frames, methods


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For checks that need no program, whether it is there or not."""
    monkeypatch.setattr(methods, "_require_package", lambda *_: None)


def check(method: str, atoms: Atoms, **options: Any) -> None:
    """As ``label_frames`` does with a file."""
    find_method(method, **options).check([("frames.xyz, frame 7", atoms)])


def test_names() -> None:
    xtb = find_method(" GFN2-xTB ")
    assert (xtb.name, xtb.charge, xtb.multiplicity) == ("gfn2-xtb", 0, 1)
    ion = find_method("PBE/def2-SVP", charge=-1, multiplicity=2)
    assert (ion.name, ion.charge, ion.multiplicity) == ("pbe/def2-svp", -1, 2)
    argon = find_method("ase.calculators.lj:LennardJones{sigma: 3.4}")
    assert argon.calculator().parameters["sigma"] == 3.4
    assert argon.program() == f"ase {version('ase')}"
    assert (argon.charge, argon.multiplicity) == (None, None)
    fitted = find_method("wB97X/6-31G*/density-fitting/cartesian")
    assert fitted.name == "wb97x/6-31g*/cartesian/density-fitting"
    assert find_method(fitted.name) == fitted
    assert find_method(fitted) is fitted
    assert find_method(EMT).name == "ase.calculators.emt:EMT"
    assert find_method(partial(LennardJones, sigma=3.4)).name == "ase.calculators.lj:LennardJones{sigma: 3.4}"
    assert find_method(partial(Spring, "here", fail=[1])).name == "label_calculators:Spring[here, {fail: [1]}]"
    assert find_method(lambda: EMT(), name="mine").name == "mine"
    assert find_method(partial(Spring, "here")).program() == "label_calculators (no version)"


@pytest.mark.parametrize(
    "method", ["gfn1-xtb", "b3lyp/6-31g*", "pbe/sto-3g/cartesian", "ase.calculators.lj:LennardJones{sigma: 3.4}"]
)
def test_methods_travel(method: str) -> None:
    assert repr(pickle.loads(pickle.dumps(find_method(method)))) == repr(find_method(method))


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("gfn3-xtb", {}, r"unknown method 'gfn3-xtb'; expected gfn1-xtb, gfn2-xtb, .*FUNCTIONAL/BASIS"),
        ("pbe/", {}, "unknown method 'pbe/'"),
        ("pbe/sto-3g/fitted", {}, "'fitted' behind FUNCTIONAL/BASIS; expected cartesian or density-fitting"),
        (find_method("gfn2-xtb"), {"charge": 1}, "charge, multiplicity and name are in the method itself"),
        ("gfn2-xtb", {"multiplicity": 0}, "at least 1"),
        ("gfn2-xtb", {"name": "mine"}, "already has one"),
        ("ase.calculators.emt:EMT", {"charge": 0}, "set them in the calculator itself"),
        (EMT, {"multiplicity": 1}, "set them in the calculator itself"),
        (EMT, {"name": "two\nlines"}, "must be one line"),
        (lambda: EMT(), {}, "no name that is the same in every run"),
        (partial(Spring, Path()), {}, "no name that is the same in every run"),
    ],
)
def test_mistakes(method: Any, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(LabelError, match=expected):
        find_method(method, **options)


@pytest.mark.usefixtures("all_installed")
def test_electrons_must_fit_the_multiplicity() -> None:
    radical = molecule("OH")
    expected = (
        r"frames.xyz, frame 7: 9 electrons \(charge 0\) cannot have multiplicity 1; give an even one of at most 10"
    )
    with pytest.raises(LabelError, match=expected):
        check("gfn2-xtb", radical)
    check("gfn2-xtb", radical, multiplicity=2)
    check("gfn2-xtb", radical, charge=-1)
    with pytest.raises(LabelError, match=r"10 electrons \(charge 0\) cannot have multiplicity 2; give an odd one"):
        check("gfn1-xtb", molecule("H2O"), multiplicity=2)
    with pytest.raises(LabelError, match=r"2 electrons .* cannot have multiplicity 5"):
        check("gfn1-xtb", Atoms("He"), multiplicity=5)
    with pytest.raises(LabelError, match="charge 2 leaves 0 electrons"):
        check("gfn1-xtb", Atoms("He"), charge=2)
    check("ase.calculators.emt:EMT", Atoms("Cu"))  # which knows no electrons


@pytest.mark.usefixtures("all_installed")
def test_tight_binding_counts_the_electrons_that_it_has() -> None:
    # Ce has 58 electrons, and 3 in GFN-xTB: CeF3 is a closed shell there.
    fluoride = Atoms("CeF3", [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])
    check("gfn2-xtb", fluoride)


@pytest.mark.usefixtures("all_installed")
def test_frames_that_a_method_cannot_do() -> None:
    with pytest.raises(LabelError, match=r"frame 7: atom 1 is U; gfn2-xtb ends at Rn"):
        check("gfn2-xtb", Atoms("OU", [[0, 0, 0], [0, 0, 2]]))
    slab = bulk("Si", cubic=True)
    slab.pbc = (True, True, False)
    with pytest.raises(LabelError, match="periodic in some directions only"):
        check("gfn2-xtb", slab)
    ion = molecule("H2O")
    ion.info["charge"] = 1
    with pytest.raises(LabelError, match=r"frame 7: the frame says charge=1, but --charge is 0"):
        check("gfn2-xtb", ion)


def test_kohn_sham_refuses_before_work_what_cannot_be() -> None:
    pytest.importorskip("pyscf", reason="needs PySCF")
    check("pbe/def2-svp", molecule("CH3OH"))
    for method, atoms, expected in (
        ("pbee/def2-svp", molecule("H2O"), "PySCF has no functional 'pbee'"),
        ("pbe/def2-svpp", molecule("H2O"), "frame 7: atom 0 is O: PySCF has no basis set 'def2-svpp'"),
        ("pbe/sto-3g", Atoms("UO2", np.eye(3)), "frame 7: atom 0 is U: PySCF has no basis set 'sto-3g'"),
        ("pbe/def2-svp", bulk("Si"), "frame 7: periodic, but pbe/def2-svp labels molecules only"),
        ("pbe/def2-svp", molecule("OH"), "9 electrons"),
    ):
        with pytest.raises(LabelError, match=expected):
            check(method, atoms)


@pytest.mark.parametrize(("method", "package"), [("gfn2-xtb", "tblite"), ("pbe/def2-svp", "pyscf")])
def test_a_missing_program_is_named_with_what_installs_it(
    method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(LabelError, match=f"{method} needs {package}, which is not installed: pip install {package}"):
        check(method, molecule("H2O"))


def test_importing_needs_neither_program_nor_torch() -> None:
    program = """
import sys
sys.modules["tblite"] = sys.modules["pyscf"] = sys.modules["distributed"] = sys.modules["torch"] = None
import ponita_ff.labels
ponita_ff.labels.find_method("pbe/def2-svp")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tblite_gives_what_it_gives_directly(tmp_path: Path) -> None:
    tblite = pytest.importorskip("tblite.ase", reason="needs tblite")
    names = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB", "ipea1-xtb": "IPEA1-xTB"}
    frames = [molecule("CH3OH"), molecule("H2O")]
    for atoms in frames:
        atoms.rattle(0.05, seed=0)
    with ThreadPoolExecutor(1) as executor:
        results = {
            name: label_frames(frames, name, tmp_path / f"{name}.xyz", charge=1, multiplicity=2, executor=executor)
            for name in names
        }
    for name, theirs in names.items():
        result = results[name]
        for atoms, frame in zip(frames, read_frames(result.path), strict=True):
            atoms.calc = tblite.TBLite(method=theirs, charge=1, multiplicity=2, accuracy=0.01, verbosity=0)
            assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
            np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=2e-8)
        assert f"tblite {version('tblite')}" in result.path.read_text(encoding="utf-8")


def test_tblite_of_a_crystal_has_a_stress(tmp_path: Path) -> None:
    tblite = pytest.importorskip("tblite.ase", reason="needs tblite")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    result = label_frames([atoms], "gfn1-xtb", tmp_path / "out.xyz")
    atoms.calc = tblite.TBLite(method="GFN1-xTB", accuracy=0.01, verbosity=0)
    (frame,) = read_frames(result.path)
    np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-9)
