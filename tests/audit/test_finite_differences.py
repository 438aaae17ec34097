"""Forces and stress against differences of the energy."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from audit_calculators import NonConservative, Rounded, Springs, WrongStress, find_measurement, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.finite_differences import central_difference, energy_noise


def test_a_non_conservative_force_is_found(water: Atoms, fast: AuditSettings) -> None:
    calculator = NonConservative(Springs(water))
    result = run_check("forces", calculator, water, fast)
    found = find_measurement(result, "forces")
    assert found.verdict == "fail" and found.value is not None
    assert 0.01 < found.value < 0.3
    assert "force along the scan against dE/ds" in run_check("smoothness", calculator, water, fast).failures


def test_rounding_noise_raises_the_limit_but_has_its_own(water: Atoms, fast: AuditSettings) -> None:
    calculator = Rounded(Springs(water))
    result = run_check("forces", calculator, water, fast)
    assert result.failures == []
    found = find_measurement(result, "forces")
    assert found.limit is not None and found.limit > fast.forces.limit and "rounding" in found.note
    assert find_measurement(result, "rounding noise").value == pytest.approx(1e-5 / np.sqrt(12), rel=0.3)
    calculator.step = 1e-3
    assert "rounding noise of the energy" in run_check("forces", calculator, water, fast).failures


def test_a_wrong_sign_of_stress_is_found_and_named(copper: Atoms, fast: AuditSettings) -> None:
    result = run_check("stress", WrongStress(EMT()), copper, fast)
    assert result.failures == ["stress, largest difference from ΔE/VΔε"]
    assert any("SIGN IS WRONG" in note for note in result.notes)
    assert np.abs(result.arrays["stress"]).max() > 0.01  # else a sign could not be seen


def test_stress_that_is_not_there_is_skip_reason(copper: Atoms, water: Atoms, fast: AuditSettings) -> None:
    result = run_check("stress", Springs(water), water, fast)
    assert result.skip_reason == "the structure is not periodic in all directions"
    boxed = water.copy()
    boxed.set_cell([8, 8, 8])
    boxed.pbc = True
    assert run_check("stress", Springs(water), boxed, fast).skip_reason == "the calculator implements no stress"


def test_the_five_point_formula_is_exact_for_quartics() -> None:
    found = central_difference(lambda x: 1 + 2 * x + 3 * x**2 - 4 * x**3 + 5 * x**4, [0.1, 0.2])
    np.testing.assert_allclose(found, 2.0, rtol=1e-12)


def test_noise_is_that_of_the_rounding(water: Atoms) -> None:
    water.calc = Springs(water)
    assert energy_noise(water, np.random.default_rng(0)) < 1e-9
    water.calc = Rounded(Springs(water))
    assert energy_noise(water, np.random.default_rng(0)) == pytest.approx(1e-5 / np.sqrt(12), rel=0.3)
