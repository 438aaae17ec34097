"""Jumps along scans."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from audit_calculators import Altered, Jump, Springs, find_measurement, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.smoothness import suspicious_intervals


@pytest.mark.parametrize(
    ("energy", "force", "failed"),
    [
        (0.0, 0.0, set()),
        (0.004, 0.0, {"largest jump of the energy"}),
        (0.0, 0.02, {"largest jump of a force component"}),
    ],
)
def test_a_jump_at_a_cutoff_is_found(
    water: Atoms, fast: AuditSettings, energy: float, force: float, failed: set[str]
) -> None:
    calculator = Jump(Springs(water))
    calculator.energy, calculator.force = energy, force
    result = run_check("smoothness", calculator, water, fast)
    assert failed <= set(result.failures)
    if failed:
        (name,) = failed
        direction = water.get_distance(0, 1, vector=True) / water.get_distance(0, 1)
        size = energy or force * np.abs(direction).max()  # of a component
        assert find_measurement(result, name).value == pytest.approx(size, rel=0.1)
        path = result.arrays["bond O0–H1"]
        at = path["energy_worst_at" if energy else "force_worst_at"]
        start = water.get_distance(0, 1)
        assert start + at == pytest.approx(2.0, abs=0.1)
    else:
        assert result.failures == []


def test_the_truncated_lennard_jones_force_of_ase_jumps(fast: AuditSettings) -> None:
    argon = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
    settings = AuditSettings.make(fast.model_dump(), {"scans": {"detach": 8.0, "force_limit": 1e-4}})
    cut = {"sigma": 3.4, "epsilon": 0.0104, "rc": 8.0}
    assert "largest jump of a force component" in run_check("smoothness", LennardJones(**cut), argon, settings).failures
    assert run_check("smoothness", LennardJones(**cut, ro=6.0, smooth=True), argon, settings).failures == []


def test_a_jump_is_measured_and_a_steep_slope_is_none(water: Atoms, fast: AuditSettings) -> None:
    calculator = Jump(Springs(water))
    calculator.energy, calculator.force = 0.004, 0.02
    result = run_check("smoothness", calculator, water, fast)
    assert find_measurement(result, "largest jump of the energy").value == pytest.approx(0.004, rel=1e-3)
    force = find_measurement(result, "largest jump of a force").value
    assert force is not None and 0.02 / np.sqrt(3) < force < 0.02  # the largest component of a vector of length 0.02
    steep = run_check("smoothness", Springs(water, 300.0), water, fast)
    assert steep.failures == []


def test_suspicious_intervals_contain_the_jump() -> None:
    x = np.linspace(0.0, 1.0, 41)
    values = 10 * np.sin(3 * x) + np.where(x > 0.71, 0.05, 0.0)
    assert 28 in suspicious_intervals(values, 2)  # between 0.70 and 0.725


def test_without_stress_the_slope_of_an_expansion_is_unknown(water: Atoms, fast: AuditSettings) -> None:
    lattice = Atoms("Ar", cell=[3.8, 3.8, 3.8], pbc=True)
    calculator = Altered(LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, ro=6.0, smooth=True))
    calculator.implemented_properties = ["energy", "forces"]
    result = run_check("smoothness", calculator, lattice, fast)
    assert list(result.arrays) == ["cell expanded"]
    assert result.inconclusive == ["force along the scan against dE/ds: needs the calculator's stress"]
    assert run_check("smoothness", calculator, Atoms("Ar"), fast).skip_reason == "a single atom has no scans"
