"""All frames of a task: each error is told, and none costs frames of another kind."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from sample_calculators import ForceField

from ponita_ff.labels import find_method
from ponita_ff.labels.worker import Failure
from ponita_ff.sample.methods import method_for, method_of
from ponita_ff.sample.molecules import in_order, read_molecules
from ponita_ff.sample.settings import CLUSTER_KINDS, MOLECULE_KINDS, SampleSettings
from ponita_ff.sample.worker import Made, SampleTask

QUICK: dict[str, Any] = {
    "method": "force-field",
    "minimum.steps": 50,
    "md.temperatures": [100.0, 200.0],
    "md.frames": 2,
    "md.equilibration": 2.0,
    "md.interval": 2.0,
    "cluster_md.temperatures": [100.0],
    "cluster_md.frames": 2,
    "cluster_md.equilibration": 2.0,
    "cluster_md.interval": 2.0,
    "cluster_minimum.steps": 10,
}


def task(*structures: Atoms | str, method: Any = None, **changes: Any) -> SampleTask:
    """A task of one structure or a cluster of several."""
    molecules = [read_molecules([one])[0][0][0] for one in structures]
    settings = SampleSettings.make({}, {**QUICK, **{name.replace("__", "."): value for name, value in changes.items()}})
    method = find_method(method or ForceField, name="force-field")
    return SampleTask(0, in_order(molecules), method, settings)


def made(found: SampleTask) -> Made:
    outcome = found.run()
    assert isinstance(outcome, Made), outcome
    return outcome


def kinds_of(found: Made) -> list[str]:
    return list(dict.fromkeys(str(frame.info["kind"]) for frame in found.frames))


def test_all_kinds_of_a_molecule() -> None:
    found = made(task(molecule("CH3CH2OH")))
    assert kinds_of(found) == list(MOLECULE_KINDS) and not found.ended
    assert found.numbers == molecule("CH3CH2OH").numbers.tolist() and found.pbc == [False] * 3
    for frame in found.frames:
        assert np.abs(frame.positions.mean(0)).max() < 1e-7
        np.testing.assert_array_equal(frame.positions, np.round(frame.positions, 8))
        assert frame.info["conformer"] == 0


def test_all_kinds_of_a_cluster() -> None:
    parts = [molecule("CH3OH"), molecule("H2O"), molecule("H2O")]
    found = made(task(*parts))
    assert kinds_of(found) == list(CLUSTER_KINDS) and not found.ended
    assert sorted(found.numbers) == sorted(number for part in parts for number in part.numbers)


def test_names() -> None:
    pytest.importorskip("rdkit")
    water, methanol = molecule("H2O"), molecule("CH3OH")
    assert task(water, water).source == "2 × structure 0"
    assert task("CO").source == "SMILES given (CO)"
    assert task("CO", "O").source == "SMILES given (CO.O)"
    assert task(water, methanol).smiles is None


def test_conformers_of_smiles() -> None:
    pytest.importorskip("rdkit")
    found = made(task("CCCO", kinds=["minimum"]))
    assert {frame.info["conformer"] for frame in found.frames} == {0, 1}
    one, other = (
        next(frame.positions for frame in found.frames if frame.info["conformer"] == number) for number in (0, 1)
    )
    assert np.abs(Atoms("H12", one).get_all_distances() - Atoms("H12", other).get_all_distances()).max() > 0.1


def frames_of(found: Made, kind: str) -> list[Any]:
    return [frame.positions for frame in found.frames if frame.info["kind"] == kind]


def test_frames_of_a_kind_depend_on_seed_and_molecule_alone() -> None:
    ethanol, methanol = molecule("CH3CH2OH"), molecule("CH3OH")
    whole, alone = made(task(ethanol)), made(task(ethanol, kinds=["bonds"]))
    for one, other in zip(frames_of(whole, "bonds"), frames_of(alone, "bonds"), strict=True):
        np.testing.assert_array_equal(one, other)
    again = made(task(ethanol, kinds=["bonds"], seed=2))
    assert not np.array_equal(frames_of(alone, "bonds")[0], frames_of(again, "bonds")[0])
    other_way = made(task(methanol, ethanol)), made(task(ethanol, methanol))
    for one, other in zip(*(found.frames for found in other_way), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_a_crystal_has_the_kinds_that_fit_it() -> None:
    found = made(task(bulk("Cu", cubic=True), method=EMT, md__temperatures=[300.0], selection__distance=0))
    assert kinds_of(found) == ["minimum", "md", "modes"]
    assert found.pbc == [True] * 3 and found.cell[0][0] == pytest.approx(3.61)


def test_a_single_atom() -> None:
    found = made(task(Atoms("He")))
    assert kinds_of(found) == ["minimum"] and not found.ended
    outcome = task(Atoms("He"), kinds=["md"]).run()
    assert isinstance(outcome, Failure) and outcome.reason == "structure 0: no frame is left: no kind fits it"


class EndsAfter(ForceField):
    """Fails after some calculations."""

    def __init__(self, calculations: int) -> None:
        super().__init__()
        self.left = calculations

    def calculate(self, *args: Any, **keywords: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the field does\nnot converge")
        super().calculate(*args, **keywords)


class Reacts(ForceField):
    """Pulls the last atom away."""

    def calculate(self, *args: Any, **keywords: Any) -> None:
        super().calculate(*args, **keywords)
        self.results["forces"][-1] += [0.0, 0.0, 200.0]


class Deadly(Calculator):
    """A program that ends the interpreter instead of raising an error."""

    def __init__(self) -> None:
        raise SystemExit("no licence")


def test_an_error_in_a_kind_keeps_the_frames_before_it() -> None:
    found = made(task(molecule("CH3CH2OH"), method=partial(EndsAfter, 12), kinds=["minimum", "md"]))
    assert kinds_of(found)[0] == "minimum"
    assert found.ended == {"md, conformer 0": "RuntimeError: the field does not converge"}


def test_errors_that_leave_nothing() -> None:
    outcome = task(molecule("CH3CH2OH"), method=partial(ForceField, fail="C2H6O")).run()
    assert isinstance(outcome, Failure)
    assert outcome.reason == (
        "structure 0: no frame is left: conformer 0: its relaxation failed: RuntimeError: C2H6O is not to my liking"
    )
    outcome = task(molecule("H2O"), method=Deadly).run()
    assert outcome == Failure("structure 0: SystemExit: no licence")
    outcome = task(molecule("H2O"), method=partial(ForceField, nan="H2O")).run()
    assert isinstance(outcome, Failure)


def test_a_relaxation_that_breaks_the_molecule_is_told() -> None:
    outcome = task(molecule("CH3OH"), method=Reacts).run()
    assert isinstance(outcome, Failure)
    assert "its relaxation changed it: the bond C0–H5 has changed from" in outcome.reason


def test_what_is_filtered_is_counted() -> None:
    found = made(task(molecule("CH3CH2OH"), filters__max_force=0.1, kinds=["minimum", "bonds"]))
    assert found.dropped == {"minimum: force too large": 1, "bonds: force too large": 3}


def test_ions_and_their_clusters() -> None:
    pytest.importorskip("tblite")
    ammonium, water = molecule("NH3"), molecule("H2O")
    ammonium += Atoms("H", [[0.0, 0.0, 1.1]])
    ammonium.info["charge"] = 1
    one = task(ammonium, water, kinds=["contacts"], contacts__frames=1, minimum__steps=2)
    method = method_for("gfn2-xtb")
    found = made(SampleTask(0, one.molecules, method_of(method, 1, 1), one.settings))
    assert len(found.numbers) == 8 and kinds_of(found) == ["contacts"] and found.program.startswith("tblite")
