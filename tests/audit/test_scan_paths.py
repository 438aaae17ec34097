"""Paths of the scans."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from audit_calculators import Springs

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.scan_paths import all_paths
from ponita_ff.audit.target import AuditTarget


def make_target(atoms: Atoms, calculator: Calculator, settings: AuditSettings) -> AuditTarget:
    return AuditTarget(calculator, atoms, None, settings)


def test_paths_of_a_molecule_and_of_a_crystal(water: Atoms, copper: Atoms, fast: AuditSettings) -> None:
    paths = all_paths(make_target(water, Springs(water), fast))
    assert [path.name for path in paths] == ["bond O0–H1", "H1 detached", "molecule rotated"]
    rotated = paths[2].structure(0.5 * paths[2].values[-1])
    np.testing.assert_allclose(rotated.get_all_distances(), water.get_all_distances(), atol=1e-12)
    moved = paths[0].structure(0.2)
    assert moved.get_distance(0, 1) == pytest.approx(water.get_distance(0, 1) + 0.2)
    paths = all_paths(make_target(copper, EMT(), fast))
    assert [path.name for path in paths] == ["bond Cu1–Cu3", "cell expanded"]
    assert paths[1].structure(0.1).cell.lengths() == pytest.approx(copper.cell.lengths() + 0.1)


@pytest.mark.parametrize("periodic", [False, True])
def test_slopes_are_derivatives_of_the_energy(periodic: bool, water: Atoms, copper: Atoms, fast: AuditSettings) -> None:
    target = make_target(copper, EMT(), fast) if periodic else make_target(water, Springs(water), fast)
    for path in all_paths(target):
        s, h = 0.3 * path.values[-1], 1e-4
        difference = (path.point(s + h).energy - path.point(s - h).energy) / (2 * h)
        assert path.point(s).slope == pytest.approx(difference, abs=1e-5)
