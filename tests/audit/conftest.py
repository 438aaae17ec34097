"""Water, copper, settings for short checks, and reports that several tests read."""

from __future__ import annotations

from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from audit_calculators import Springs, WrongStress, labelled_frames

from ponita_ff.audit import AuditReport, AuditSettings, audit

FAST: dict[str, Any] = {
    "rotations": {"number": 8},
    "forces": {"steps": [0.005, 0.01], "max_atoms": 2},
    "stress": {"steps": [0.002]},
    "scans": {"spacing": 0.05, "bonds": 1, "stretch": 1.5, "detach": 2.0, "bisected_intervals": 2, "expansion": 1.1},
    "short_range": {"points": 12},
    "nve": {"timesteps": [0.5], "picoseconds": 0.5, "limit": 1e4},
    "nvt": {"temperature_factors": [1.0], "picoseconds": 0.2},
}


@pytest.fixture
def water() -> Atoms:
    """One molecule."""
    return molecule("H2O")


@pytest.fixture
def copper() -> Atoms:
    """Four atoms of copper, periodic, with a little noise."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


@pytest.fixture
def fast() -> AuditSettings:
    """Settings with which all checks together take about a second."""
    return AuditSettings.make(FAST)


@pytest.fixture(scope="session")
def molecule_report() -> AuditReport:
    """All checks of a correct calculator on water."""
    water = molecule("H2O")
    springs = Springs(water)
    return audit({"springs": springs}, water, labelled_frames(springs, water, noise=0.1), AuditSettings.make(FAST))


@pytest.fixture(scope="session")
def crystal_report() -> AuditReport:
    """Some checks of copper by EMT, and by EMT with a wrong stress under a name with HTML's special characters."""
    calculators = {"EMT": EMT(), "<wrong> & stress": WrongStress(EMT())}
    checks = ["rotations", "forces", "modes", "stress", "short_range"]
    return audit(calculators, bulk("Cu", cubic=True), None, AuditSettings.make(FAST), checks)
