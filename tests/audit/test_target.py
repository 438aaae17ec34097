"""What all checks share: noise, relaxation, random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from audit_calculators import Springs

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.target import AuditTarget, evenly_spaced


def test_noise_is_the_same_for_every_calculator(water: Atoms, fast: AuditSettings) -> None:
    first, second = (AuditTarget(Springs(water, stiffness), water, None, fast) for stiffness in (10.0, 20.0))
    np.testing.assert_array_equal(first.rattled().positions, second.rattled().positions)
    assert 0.01 < np.std(first.rattled().positions - water.positions) < 0.15
    assert first.rattled().calc is first.calculator and first.structure.calc is None
    assert first.generator(1).normal() != first.generator(2).normal()
    assert first.generator(1).normal() == second.generator(1).normal()


def test_relaxation_ends_at_the_minimum(water: Atoms, fast: AuditSettings) -> None:
    distorted = water.copy()
    distorted.rattle(0.1, seed=0)
    relaxed = AuditTarget(Springs(water), distorted, None, fast).relaxed
    assert relaxed.converged and relaxed.fmax < fast.modes.fmax
    np.testing.assert_allclose(relaxed.atoms.get_all_distances(), water.get_all_distances(), atol=1e-3)
    few = AuditSettings.make({"modes": {"max_steps": 1}})
    assert not AuditTarget(Springs(water), distorted, None, few).relaxed.converged


@pytest.mark.parametrize(
    ("number", "at_most", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 3, [0, 2, 4])]
)
def test_evenly_spaced(number: int, at_most: int, expected: list[int]) -> None:
    assert evenly_spaced(number, at_most).tolist() == expected
