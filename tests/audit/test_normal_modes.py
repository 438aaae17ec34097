"""Frequencies of the relaxed structure."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from audit_calculators import Springs, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.normal_modes import frequencies, hessian_by_differences, vibrational_frequencies


def test_a_saddle_point_has_an_imaginary_mode(fast: AuditSettings) -> None:
    linear = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [7.6, 0, 0]])
    triangle = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=20.0)
    bent = run_check("modes", calculator, linear, fast)
    assert bent.failures == ["lowest frequency"]
    assert len(bent.arrays["frequencies"]) == 4  # a linear molecule: 3n − 5
    assert run_check("modes", calculator, triangle, fast).failures == []


def test_frequencies_against_a_reference(fast: AuditSettings) -> None:
    # One spring: ω = √(k / μ), with √(eV/Å²/u) = 521.47 cm⁻¹.
    hydrogen = molecule("H2")
    expected = 521.47 * np.sqrt(30.0 / (1.008 / 2))
    for reference, failed in (
        ([expected], []),
        ([expected + 100], ["frequencies, RMS difference from reference"]),
    ):
        settings = AuditSettings.make(fast.model_dump(), {"modes": {"reference": reference, "reference_limit": 5.0}})
        result = run_check("modes", Springs(hydrogen), hydrogen, settings)
        assert result.failures == failed
    settings = AuditSettings.make(fast.model_dump(), {"modes": {"reference": [1.0, 2.0]}})
    assert "2 frequencies" in run_check("modes", Springs(hydrogen), hydrogen, settings).inconclusive[0]


def test_projection_keeps_the_vibrations(water: Atoms) -> None:
    water.calc = Springs(water)
    hessian = hessian_by_differences(water, 0.005)
    projected = vibrational_frequencies(hessian, water)
    np.testing.assert_allclose(projected, frequencies(hessian, water.get_masses())[-3:], rtol=1e-3)


def test_what_cannot_be_relaxed_or_vibrate_is_no_failure(water: Atoms, fast: AuditSettings) -> None:
    assert run_check("modes", EMT(), Atoms("Cu"), fast).skip_reason == "a single atom has no vibrations"
    few = AuditSettings.make({"modes": {"max_atoms": 2}})
    assert "modes.max_atoms = 2" in (run_check("modes", Springs(water), water, few).skip_reason or "")
    short = AuditSettings.make({"modes": {"max_steps": 1, "fmax": 1e-9}})
    water.rattle(0.1, seed=0)
    result = run_check("modes", Springs(molecule("H2O")), water, short)
    assert result.failures == ["force left after relaxation"]
    assert "did not converge" in result.inconclusive[0]
