"""Each check finds the defect that it is there for, and lets a sound calculator pass."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ponita_ff.audit import AuditSettings, Measure, Outcome, audit, dynamics
from ponita_ff.audit.derivatives import central_difference
from ponita_ff.audit.domain import Domain, environments
from ponita_ff.audit.dynamics import NveRun, energy_drift, temperature_of, thermal_momenta
from ponita_ff.audit.scans import fragment
from ponita_ff.audit.subject import find_bonds
from ponita_ff.data import Frame


def run(check: str, calculator: Calculator, atoms: Atoms, settings: AuditSettings, frames: Any = None) -> Outcome:
    """One check of one calculator."""
    return audit({"it": calculator}, atoms, frames, settings, only=[check]).outcomes["it"][check]


def measure(outcome: Outcome, beginning: str) -> Measure:
    """The one number whose name begins so."""
    (found,) = [item for item in outcome.measures if item.name.startswith(beginning)]
    return found


def frames_of(calculator: Calculator, atoms: Atoms, number: int = 20, noise: float = 0.05) -> list[Frame]:
    """Labelled frames near a structure."""
    generator, frames = np.random.default_rng(0), []
    for _ in range(number):
        copy = atoms.copy()
        copy.positions += noise * generator.normal(size=copy.positions.shape)
        copy.calc = calculator
        labels = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        frames.append(Frame(copy.numbers, copy.positions, copy.cell.array, copy.pbc, **labels))
    return frames


def test_a_sound_molecule_passes_everything(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    calculator = made.Springs(water)
    report = audit({"springs": calculator}, water, frames_of(calculator, water, noise=0.1), fast)
    assert report.failures == []
    done = [check for check, outcome in report.outcomes["springs"].items() if outcome.measures]
    assert done == ["labels", "rotations", "forces", "smoothness", "short_range", "modes", "nve", "nvt", "domain"]
    assert len(report.undone) == 1 and "not periodic" in report.undone[0]


def test_a_sound_crystal_passes_everything(copper: Atoms, fast: AuditSettings) -> None:
    report = audit({"EMT": EMT()}, copper, None, fast)
    assert report.failures == []
    assert report.outcomes["EMT"]["stress"].measures[0].verdict == "pass"
    assert {line.split(": ")[1] for line in report.undone} == {"labels", "rotations", "domain"}


def test_label_errors_are_those_planted(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    springs = made.Springs(water)
    wrong = made.Shifted(springs)
    wrong.energy, wrong.hydrogen_force = 0.03, 0.12
    outcome = run("labels", wrong, water, fast, frames_of(springs, water))
    values = {item.name: item.value for item in outcome.measures}
    assert values["energy MAE"] == pytest.approx(0.01)
    assert values["energy MAE, mean difference taken off"] == pytest.approx(0.0, abs=1e-12)
    assert values["force MAE"] == pytest.approx(0.08)
    assert values["force MAE of H"] == pytest.approx(0.12)
    assert values["force MAE of O"] == pytest.approx(0.0, abs=1e-12)
    assert set(outcome.failures) == {"energy MAE", "force MAE"}
    bins = outcome.arrays
    assert np.sum(bins["bin_mae"] * bins["bin_atoms"]) / np.sum(bins["bin_atoms"]) == pytest.approx(0.08)


def test_broken_rotation_invariance_is_found_and_only_there(
    made: ModuleType, water: Atoms, fast: AuditSettings
) -> None:
    calculator = made.Anisotropic(made.Springs(water))
    outcome = run("rotations", calculator, water, fast)
    failed = set(outcome.failures)
    assert failed == {"energy spread, peak to peak", "force equivariance error, RMS", "net torque, largest"}
    assert run("forces", calculator, water, fast).failures == []


def test_a_non_conservative_force_is_found(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    calculator = made.NonConservative(made.Springs(water))
    outcome = run("forces", calculator, water, fast)
    found = measure(outcome, "forces")
    assert found.verdict == "fail" and found.value is not None
    assert 0.01 < found.value < 0.3
    assert "force against the scan's derivative" in run("smoothness", calculator, water, fast).failures


def test_a_non_conservative_force_drifts(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    strict = AuditSettings.make(fast.model_dump(), {"nve": {"limit": 100.0}})
    sound = measure(run("nve", made.Springs(water), water, strict), "NVE drift at 0.5 fs")
    broken = measure(run("nve", made.NonConservative(made.Springs(water)), water, strict), "NVE drift at 0.5 fs")
    assert broken.verdict == "fail"
    assert abs(sound.value or 0) < 0.01 * abs(broken.value or 0)


@pytest.mark.parametrize(("change", "verdict"), [(0.1, "not done"), (-0.1, "not done"), (1.0, "fail"), (-1.0, "fail")])
def test_no_run_fails_for_a_change_of_the_size_of_its_fluctuation(
    change: float, verdict: str, made: ModuleType, water: Atoms, fast: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = np.linspace(0.0, 1.0, 201)  # ps; meV/atom
    record = NveRun(list(time), list(change * time + 0.1 * np.sin(200 * time)), [300.0] * 201)
    monkeypatch.setattr(dynamics, "_thermal_nve", lambda *_: record)
    strict = AuditSettings.make(fast.model_dump(), {"nve": {"limit": 10.0}})
    found = measure(run("nve", made.Springs(water), water, strict), "NVE drift at 0.5 fs")
    assert found.value == pytest.approx(1e3 * change, rel=0.2)
    assert found.verdict == verdict


def test_rounding_noise_raises_the_limit_but_has_its_own(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    calculator = made.Rounded(made.Springs(water))
    outcome = run("forces", calculator, water, fast)
    assert outcome.failures == []
    found = measure(outcome, "forces")
    assert found.limit is not None and found.limit > fast.forces.limit and "rounding" in found.note
    assert measure(outcome, "rounding noise").value == pytest.approx(1e-5 / np.sqrt(12), rel=0.3)
    calculator.step = 1e-3
    assert "rounding noise of the energy" in run("forces", calculator, water, fast).failures


def test_a_wrong_sign_of_stress_is_found_and_named(made: ModuleType, copper: Atoms, fast: AuditSettings) -> None:
    outcome = run("stress", made.WrongStress(EMT()), copper, fast)
    assert outcome.failures == ["stress, largest difference from ΔE/VΔε"]
    assert any("SIGN IS WRONG" in note for note in outcome.notes)
    assert np.abs(outcome.arrays["stress"]).max() > 0.01  # else a sign could not be seen


def test_stress_that_is_not_there_is_not_done(
    made: ModuleType, copper: Atoms, water: Atoms, fast: AuditSettings
) -> None:
    outcome = run("stress", made.Springs(water), water, fast)
    assert outcome.not_done == "the structure is not periodic in all directions"
    boxed = water.copy()
    boxed.set_cell([8, 8, 8])
    boxed.pbc = True
    assert run("stress", made.Springs(water), boxed, fast).not_done == "the calculator implements no stress"


@pytest.mark.parametrize(
    ("energy", "force", "failed"),
    [
        (0.0, 0.0, set()),
        (0.004, 0.0, {"jump of the energy, largest"}),
        (0.0, 0.02, {"jump of a force, largest"}),
    ],
)
def test_a_jump_at_a_cutoff_is_found(
    made: ModuleType, water: Atoms, fast: AuditSettings, energy: float, force: float, failed: set[str]
) -> None:
    calculator = made.Jump(made.Springs(water))
    calculator.energy, calculator.force = energy, force
    outcome = run("smoothness", calculator, water, fast)
    assert failed <= set(outcome.failures)
    if failed:
        (name,) = failed
        direction = water.get_distance(0, 1, vector=True) / water.get_distance(0, 1)
        size = energy or force * np.abs(direction).max()  # of a component
        assert measure(outcome, name).value == pytest.approx(size, rel=0.1)
        path = outcome.arrays["bond O0–H1"]
        at = path["energy_worst_at" if energy else "force_worst_at"]
        start = water.get_distance(0, 1)
        assert start + at == pytest.approx(2.0, abs=0.1)
    else:
        assert outcome.failures == []


def test_the_truncated_lennard_jones_force_of_ase_jumps(fast: AuditSettings) -> None:
    argon = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
    settings = AuditSettings.make(fast.model_dump(), {"scans": {"pull": 8.0, "force_limit": 1e-4}})
    cut = {"sigma": 3.4, "epsilon": 0.0104, "rc": 8.0}
    assert "jump of a force, largest" in run("smoothness", LennardJones(**cut), argon, settings).failures
    assert run("smoothness", LennardJones(**cut, ro=6.0, smooth=True), argon, settings).failures == []


def test_a_hole_at_short_range_is_found(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    outcome = run("short_range", made.Hole(made.Springs(water)), water, fast)
    assert {"hole on the way in, deepest", "repulsion of a pair, weakest"} <= set(outcome.failures)
    soft = run("short_range", made.Springs(water, 3.0), water, fast)
    assert soft.failures == ["height of the wall, lowest"]


def test_a_saddle_point_has_an_imaginary_mode(fast: AuditSettings) -> None:
    linear = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [7.6, 0, 0]])
    triangle = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=20.0)
    bent = run("modes", calculator, linear, fast)
    assert bent.failures == ["lowest frequency"]
    assert len(bent.arrays["frequencies"]) == 4  # a linear molecule: 3n − 5
    assert run("modes", calculator, triangle, fast).failures == []


def test_frequencies_against_a_reference(made: ModuleType, fast: AuditSettings) -> None:
    # One spring: ω = √(k / μ), with √(eV/Å²/u) = 521.47 cm⁻¹.
    hydrogen = molecule("H2")
    expected = 521.47 * np.sqrt(30.0 / (1.008 / 2))
    for reference, failed in (
        ([expected], []),
        ([expected + 100], ["frequencies, RMS difference from reference"]),
    ):
        settings = AuditSettings.make(fast.model_dump(), {"modes": {"reference": reference, "reference_limit": 5.0}})
        outcome = run("modes", made.Springs(hydrogen), hydrogen, settings)
        assert outcome.failures == failed
    settings = AuditSettings.make(fast.model_dump(), {"modes": {"reference": [1.0, 2.0]}})
    assert "2 frequencies" in run("modes", made.Springs(hydrogen), hydrogen, settings).undone[0]


def test_a_molecule_that_falls_apart_is_found(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    outcome = run("nvt", made.Springs(water, 0.02), water, fast)
    found = measure(outcome, "stable time at 300 K")
    assert found.verdict == "fail" and found.value is not None and 0 < found.value < 0.2
    assert "broken at" in outcome.notes[0]


def test_a_run_that_is_too_short_is_not_judged() -> None:
    assert Measure("drift", 5.0, "", 10.0, error=4.0).verdict == "not done"
    assert Measure("drift", 5.0, "", 10.0, error=1.0).verdict == "pass"
    assert Measure("drift", -15.0, "", 10.0, error=1.0).verdict == "fail"
    assert Measure("drift", -15.0, "", 10.0, error=4.0).verdict == "not done"
    assert Measure("drift", float("nan"), "", 10.0).verdict == "fail"


def test_the_domain_tells_near_from_far(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    springs = made.Springs(water)
    frames = frames_of(springs, water, 60, 0.05)
    near = run("domain", springs, water, fast, frames)
    assert near.failures == []
    far = water.copy()
    far.positions *= 1.3
    assert run("domain", springs, far, fast, frames).failures == ["structure from the frames"]
    sulphide = water.copy()
    sulphide.symbols[0] = "S"
    unknown = run("domain", springs, sulphide, fast, frames)
    assert unknown.failures == ["structure from the frames"] and "no S" in unknown.measures[0].note
    assert "three" in (run("domain", springs, water, fast, frames[:2]).not_done or "")


def test_a_committee_that_becomes_unsure_is_seen(made: ModuleType, water: Atoms, fast: AuditSettings) -> None:
    committee = made.Committee(made.Springs(water))
    frames = frames_of(made.Springs(water), water, 20, 0.01)
    hot = AuditSettings.make(fast.model_dump(), {"temperature": 2000.0})
    outcome = audit({"it": committee}, water, frames, hot, only=["nvt", "domain"]).outcomes["it"]["domain"]
    part = measure(outcome, "part at 2000 K with a committee spread")
    assert part.value is not None and part.value > 0.2


def test_what_a_calculator_raises_is_a_failure_of_that_check_only(
    made: ModuleType, water: Atoms, fast: AuditSettings
) -> None:
    report = audit({"it": made.Failing(made.Springs(water))}, water, None, fast, only=["short_range", "forces"])
    assert report.failures == ["it: short_range: raised an error"]
    assert "far outside" in (report.outcomes["it"]["short_range"].error or "")


def test_the_five_point_formula_is_exact_for_quartics() -> None:
    found = central_difference(lambda x: 1 + 2 * x + 3 * x**2 - 4 * x**3 + 5 * x**4, [0.1, 0.2])
    np.testing.assert_allclose(found, 2.0, rtol=1e-12)


def test_drift_of_a_known_line() -> None:
    generator = np.random.default_rng(0)
    time = np.arange(2000) * 0.01
    slopes = []
    for _ in range(50):
        noise = np.repeat(generator.normal(size=200), 10)  # correlated
        drift = energy_drift(NveRun(list(time), list(3e-3 * time + 0.02 * noise)))
        slopes.append(((drift.slope - 3.0) / drift.error, drift.rms))
    scores = np.array([score for score, _ in slopes])
    assert 0.6 < scores.std() < 1.6  # the errors are of the size of the errors
    assert np.mean([rms for _, rms in slopes]) == pytest.approx(0.02, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        energy_drift(NveRun([0.0] * 10, [0.0] * 10))


def test_fragments_of_a_bond() -> None:
    ethanol = molecule("CH3CH2OH")
    pairs = find_bonds(ethanol).pairs
    assert fragment(pairs, 1, 2) == {2, 3}  # C–O: the hydroxyl group
    assert fragment(pairs, 2, 3) == {3}
    benzene = find_bonds(molecule("C6H6")).pairs
    assert fragment(benzene, 0, 1) == {1}  # in a ring there is no side


def test_bonds_across_a_boundary_keep_their_length(copper: Atoms) -> None:
    bonds = find_bonds(copper)
    assert len(bonds) == 4 * 12 // 2
    assert bonds.largest_change(copper) == pytest.approx(0.0, abs=1e-10)


def test_environments_do_not_depend_on_rotation_or_order(water: Atoms) -> None:
    rows = environments(water, (1, 8), 5.0)
    turned = water.copy()
    turned.rotate(40, (1, 2, 3))
    np.testing.assert_allclose(environments(turned, (1, 8), 5.0), rows, atol=1e-12)
    swapped = water[[0, 2, 1]]
    np.testing.assert_allclose(environments(swapped, (1, 8), 5.0), rows[[0, 2, 1]], atol=1e-12)
    assert Domain({8: rows[:1], 1: rows[1:]}, (1, 8), 1.0, 5.0).distance(turned) == pytest.approx(0.0, abs=1e-6)


def test_momenta_have_the_temperature_and_no_motion_of_the_whole(water: Atoms, copper: Atoms) -> None:
    for atoms in (water, copper):
        thermal_momenta(atoms, 400.0, np.random.default_rng(0))
        assert temperature_of(atoms) == pytest.approx(400.0)
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(water.get_angular_momentum(), 0.0, atol=1e-12)
    assert water.get_temperature() == pytest.approx(400.0 * 3 / 9)  # ASE counts the whole's motion too
