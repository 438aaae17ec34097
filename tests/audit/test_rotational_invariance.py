"""Invariance of the energy and equivariance of the forces."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from audit_calculators import Anisotropic, Springs, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.rotational_invariance import rotate, rotation_scan


def test_broken_rotation_invariance_is_found_and_only_there(water: Atoms, fast: AuditSettings) -> None:
    calculator = Anisotropic(Springs(water))
    result = run_check("rotations", calculator, water, fast)
    failed = set(result.failures)
    assert failed == {"energy spread, peak to peak", "force equivariance error, RMS", "net torque, largest"}
    assert run_check("forces", calculator, water, fast).failures == []


def test_rotated_results_are_compared_with_the_rotated_forces(water: Atoms, copper: Atoms) -> None:
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    water.calc = Anisotropic(Springs(water))
    scan = rotation_scan(water, quarter[None])
    x, y = (water.positions[:, axis] - water.positions[:, axis].mean() for axis in (0, 1))
    # E = 0.05 Σ x²; the rotated x is −y.
    assert scan.energies[1] - scan.energies[0] == pytest.approx(0.05 * float(np.sum(y**2) - np.sum(x**2)))
    assert scan.force_errors.shape == (1, 3, 3)
    rotated = rotate(copper, quarter)
    np.testing.assert_allclose(rotated.cell.array, copper.cell.array @ quarter.T)
    np.testing.assert_allclose(rotated.get_all_distances(mic=True), copper.get_all_distances(mic=True))


def test_periodic_structures_have_no_torque(copper: Atoms, fast: AuditSettings) -> None:
    result = run_check("rotations", EMT(), copper, fast)
    assert result.failures == []
    assert result.inconclusive == ["net torque, largest: not defined for periodic structures"]
