"""NVE and NVT runs."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from audit_calculators import Failing, NonConservative, Springs, find_measurement, run_check

from ponita_ff.audit import AuditSettings, dynamics
from ponita_ff.audit.dynamics import NveRun, energy_drift, kinetic_temperature, run_nve, thermal_momenta
from ponita_ff.structure.bonds import find_bonds


def test_a_non_conservative_force_drifts(water: Atoms, fast: AuditSettings) -> None:
    strict = AuditSettings.make(fast.model_dump(), {"nve": {"limit": 100.0, "picoseconds": 0.2}})
    sound = find_measurement(run_check("nve", Springs(water), water, strict), "NVE drift at 0.5 fs")
    broken = find_measurement(run_check("nve", NonConservative(Springs(water)), water, strict), "NVE drift at 0.5 fs")
    assert broken.verdict == "fail"
    assert abs(sound.value or 0) < 0.01 * abs(broken.value or 0)


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.1, "inconclusive"), (-0.1, "inconclusive"), (1.0, "fail"), (-1.0, "fail")]
)
def test_no_run_fails_for_a_change_of_the_size_of_its_fluctuation(
    change: float, verdict: str, water: Atoms, fast: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = np.linspace(0.0, 1.0, 201)  # ps; meV/atom
    record = NveRun(list(time), list(change * time + 0.1 * np.sin(200 * time)), [300.0] * 201)
    monkeypatch.setattr(dynamics, "_thermal_nve", lambda *_: record)
    strict = AuditSettings.make(fast.model_dump(), {"nve": {"limit": 10.0}})
    found = find_measurement(run_check("nve", Springs(water), water, strict), "NVE drift at 0.5 fs")
    assert found.value == pytest.approx(1e3 * change, rel=0.2)
    assert found.verdict == verdict


def test_a_molecule_that_falls_apart_is_found(water: Atoms, fast: AuditSettings) -> None:
    result = run_check("nvt", Springs(water, 0.02), water, fast)
    found = find_measurement(result, "stable time at 300 K")
    assert found.verdict == "fail" and found.value is not None and 0 < found.value < 0.2
    assert "broken at" in result.notes[0]


def test_drift_of_a_known_line() -> None:
    generator = np.random.default_rng(0)
    time = np.arange(2000) * 0.01
    slopes = []
    for _ in range(50):
        noise = np.repeat(generator.normal(size=200), 10)  # correlated
        drift = energy_drift(NveRun(list(time), list(3e-3 * time + 0.02 * noise)))
        slopes.append(((drift.slope - 3.0) / drift.standard_error, drift.fluctuation))
    scores = np.array([score for score, _ in slopes])
    assert 0.6 < scores.std() < 1.6  # the errors are of the size of the errors
    assert np.mean([rms for _, rms in slopes]) == pytest.approx(0.02, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        energy_drift(NveRun([0.0] * 10, [0.0] * 10))


def test_momenta_have_the_temperature_and_no_motion_of_the_whole(water: Atoms, copper: Atoms) -> None:
    for atoms in (water, copper):
        thermal_momenta(atoms, 400.0, np.random.default_rng(0))
        assert kinetic_temperature(atoms) == pytest.approx(400.0)
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(water.get_angular_momentum(), 0.0, atol=1e-12)
    assert water.get_temperature() == pytest.approx(400.0 * 3 / 9)  # ASE counts the whole's motion too


def test_momenta_of_a_linear_molecule_raise_no_warning() -> None:
    hydrogen = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])  # its moment of inertia about z is exactly 0
    thermal_momenta(hydrogen, 300.0, np.random.default_rng(0))
    assert kinetic_temperature(hydrogen) == pytest.approx(300.0)
    np.testing.assert_allclose(hydrogen.get_momenta()[:, :2], 0.0, atol=1e-12)


def test_records_are_equally_spaced(water: Atoms) -> None:
    water.calc = Springs(water)
    thermal_momenta(water, 300.0, np.random.default_rng(0))
    seen: list[int] = []
    run = run_nve(water, 0.5, 0.01, find_bonds(water), 5, lambda so_far: seen.append(len(so_far.time)))
    np.testing.assert_allclose(run.time, [0.0, 0.0025, 0.005, 0.0075, 0.01], atol=1e-12)
    assert seen == [1, 2, 3, 4, 5]
    assert len(run.energy) == len(run.temperature) == len(run.bond_change) == 5
    assert run.bond_change[0] == pytest.approx(0.0, abs=1e-12) and max(run.bond_change) > 1e-3
    assert run.temperature[0] == pytest.approx(300.0)


def test_an_error_of_the_calculator_ends_the_nvt_run(water: Atoms, fast: AuditSettings) -> None:
    hot = AuditSettings.make(fast.model_dump(), {"temperature": 20000.0})
    result = run_check("nvt", Failing(Springs(water)), water, hot)
    assert find_measurement(result, "stable time").verdict == "fail"
    assert "ValueError: the structure is far outside anything" in result.notes[0]


def test_structures_without_bonds_are_skipped(fast: AuditSettings) -> None:
    assert "no bonds" in (run_check("nvt", LennardJones(), Atoms("Ar"), fast).skip_reason or "")
