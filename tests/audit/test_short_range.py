"""Repulsion of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from audit_calculators import Hole, Springs, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.short_range import closest_pairs, compress_pair


def test_a_hole_at_short_range_is_found(water: Atoms, fast: AuditSettings) -> None:
    result = run_check("short_range", Hole(Springs(water)), water, fast)
    assert {"depth of the deepest hole", "weakest repulsive force"} <= set(result.failures)
    soft = run_check("short_range", Springs(water, 3.0), water, fast)
    assert soft.failures == ["height of the lowest wall"]


def test_pairs_are_moved_about_their_midpoint(water: Atoms) -> None:
    assert closest_pairs(water) == [(1, 2), (0, 1)]
    water.calc = Springs(water)
    energy, repulsion = compress_pair(water, 0, 1, np.array([0.801, 0.8, 0.799]))
    assert repulsion[1] == pytest.approx((energy[2] - energy[0]) / 0.002, rel=1e-5)


def test_a_single_atom_and_a_reversed_range_are_skipped(water: Atoms, fast: AuditSettings) -> None:
    argon = LennardJones(sigma=3.4, epsilon=0.0104)
    assert run_check("short_range", argon, Atoms("Ar"), fast).skip_reason == "a single atom has no pairs"
    wrong = AuditSettings.make({"short_range": {"begin": 0.4, "end": 0.5}})
    assert "below" in (run_check("short_range", Springs(water), water, wrong).skip_reason or "")
