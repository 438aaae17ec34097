"""Water, copper, and settings short enough for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff.audit import AuditSettings

FAST: dict[str, Any] = {
    "rotations": {"number": 8},
    "forces": {"steps": [0.005, 0.01], "max_atoms": 2},
    "stress": {"steps": [0.002]},
    "scans": {"spacing": 0.05, "bonds": 1, "stretch": 1.5, "pull": 2.0, "suspects": 2, "expansion": 1.1},
    "short_range": {"points": 12},
    "nve": {"timesteps": [0.5], "picoseconds": 0.5, "limit": 1e4},
    "nvt": {"factors": [1.0], "picoseconds": 0.2},
}


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """The module with the calculators of these tests."""
    spec = importlib.util.spec_from_file_location("audit_calculators", Path(__file__).parent / "calculators.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_calculators"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def water() -> Atoms:
    """One molecule."""
    return molecule("H2O")


@pytest.fixture
def copper() -> Atoms:
    """Four atoms, periodic, slightly off their places."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


@pytest.fixture
def fast() -> AuditSettings:
    """Settings that take a second."""
    return AuditSettings.make(FAST)
