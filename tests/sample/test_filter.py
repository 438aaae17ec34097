"""Frames that are left out, each for its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from sample_calculators import ForceField

from ponita_ff.sample.filter import refusal
from ponita_ff.sample.geometry import Connectivity
from ponita_ff.sample.settings import FilterSettings


def refused(atoms: Atoms, connectivity: Connectivity | None = None, calc: Any = None, **settings: Any) -> str | None:
    atoms.calc = calc or ForceField()
    return refusal(atoms, connectivity, FilterSettings(**settings))


def test_a_whole_molecule_is_kept() -> None:
    water = molecule("H2O")
    assert refused(water, Connectivity.of(water)) is None


def test_bonds() -> None:
    water = molecule("H2O")
    whole = Connectivity.of(water)
    water.positions[1] *= 2.5
    assert refused(water, whole) == "broken"
    assert refused(water, None) is None
    assert refused(water, whole, broken=False) is None


def test_distances_and_forces() -> None:
    water, calculator = molecule("H2O"), ForceField()
    water.calc = calculator
    water.get_forces()
    axis = water.positions[1] - water.positions[0]
    water.positions[1] += 0.5 * axis / np.linalg.norm(axis)
    largest = np.linalg.norm(water.get_forces(), axis=1).max()
    assert refused(water, calc=calculator, max_force=largest + 0.01) is None
    assert refused(water, calc=calculator, max_force=largest - 0.01) == "force too large"
    assert refused(water, calc=calculator, max_force=None) is None
    close = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]])
    assert refused(close, closest=0.5) == "atoms too close"
    assert refused(close, closest=0.45) is None


def test_results_that_are_none() -> None:
    water = molecule("H2O")
    assert refused(water, calc=ForceField(nan="H2O")) == "forces not finite"
    assert refused(water, calc=ForceField(fail="H2O")) == "no forces (RuntimeError)"
    water.positions[0] = np.nan
    assert refused(water) == "positions not finite"


@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "SO2", "H2", "F2"])
def test_defaults_keep_equilibrium_structures(name: str) -> None:
    atoms = molecule(name)
    assert refused(atoms, Connectivity.of(atoms)) is None
