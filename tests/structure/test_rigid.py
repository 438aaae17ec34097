"""Translation and rotation as a whole, and the constraint that holds them in optimisers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCom
from ase.io import read
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch
from audit_calculators import Springs, Turned

from ponita_ff import FixRigidMotion
from ponita_ff.structure.rigid import rigid_motions


def shaken(name: str = "CH3CH2OH") -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.mark.parametrize(("name", "number"), [("CO2", 5), ("H2O", 6), ("C2H2", 5), ("O", 3)])
def test_rigid_motions_of_molecules(name: str, number: int) -> None:
    atoms = molecule(name)
    for weights in (None, atoms.get_masses()):
        motions = rigid_motions(atoms, weights)
        assert motions.shape == (3 * len(atoms), number)
        np.testing.assert_allclose(motions.T @ motions, np.eye(number), atol=1e-12)
    assert FixRigidMotion().get_removed_dof(atoms) == number


def test_rigid_motions_of_a_crystal_are_translations() -> None:
    assert rigid_motions(bulk("Cu") * (2, 1, 1)).shape == (6, 3)


@pytest.mark.parametrize("optimiser", [BFGS, LBFGS, BFGSLineSearch, FIRE])
def test_optimisers_converge_though_the_energy_depends_on_orientation(optimiser: Any) -> None:
    atoms = shaken("CH3OH")
    atoms.calc = Turned(Springs(molecule("CH3OH")))
    atoms.set_constraint(FixRigidMotion())
    centre = atoms.positions.mean(axis=0)
    with optimiser(atoms, logfile=None) as dynamics:
        assert dynamics.run(fmax=1e-4, steps=200)
    # What was projected out is there, and larger than the limit: without the constraint this is no minimum.
    assert np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1).max() > 1e-3
    np.testing.assert_allclose(atoms.positions.mean(axis=0), centre, atol=1e-10)


def test_forces_have_no_net_force_and_no_net_torque() -> None:
    atoms = shaken()
    generator = np.random.default_rng(0)
    forces = generator.normal(size=atoms.positions.shape)
    FixRigidMotion().adjust_forces(atoms, forces)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(atoms.positions, forces).sum(axis=0), 0, atol=1e-12)
    again = forces.copy()
    FixRigidMotion().adjust_forces(atoms, again)
    np.testing.assert_allclose(again, forces, atol=1e-12)


def test_steps_keep_bonds_and_lose_overall_motion() -> None:
    atoms = shaken()
    turned = atoms.copy()
    turned.rotate(0.01, (1, 2, 3))
    turned.translate((0.1, 0.2, 0.3))
    held = atoms.copy()
    held.set_constraint(FixRigidMotion())
    held.set_positions(turned.positions)
    np.testing.assert_allclose(held.positions, atoms.positions, atol=1e-6)
    step = np.random.default_rng(1).normal(scale=0.01, size=atoms.positions.shape)
    FixRigidMotion().adjust_forces(atoms, step)
    held.set_positions(atoms.positions + step)
    np.testing.assert_allclose(held.positions, atoms.positions + step, atol=1e-12)


def test_a_single_atom_is_at_rest() -> None:
    atom = Atoms("O", constraint=FixRigidMotion())
    forces = np.ones((1, 3))
    atom.constraints[0].adjust_forces(atom, forces)
    np.testing.assert_allclose(forces, 0, atol=1e-12)


def test_with_constraints_that_leave_the_molecule_free() -> None:
    atoms = shaken()
    atoms.calc = EMT()
    length = atoms.get_distance(0, 1)
    atoms.set_constraint([FixRigidMotion(), FixBondLength(0, 1)])
    with BFGS(atoms, logfile=None) as dynamics:
        dynamics.run(fmax=0.01, steps=10)
    assert atoms.get_distance(0, 1) == pytest.approx(length, abs=1e-6)


def test_what_is_not_free_is_refused() -> None:
    fixed = shaken()
    fixed.calc = EMT()
    fixed.set_constraint([FixAtoms([0]), FixRigidMotion()])
    with pytest.raises(ValueError, match="free to move, but FixAtoms holds this one"):
        fixed.get_forces()
    crystal = bulk("Cu")
    crystal.calc = EMT()
    crystal.set_constraint(FixRigidMotion())
    with pytest.raises(ValueError, match=r"for molecules, but pbc is \[True, True, True\]"):
        crystal.get_forces()
    moving = shaken()
    moving.set_constraint(FixRigidMotion())
    with pytest.raises(ValueError, match="is for optimisers, not for dynamics"):
        moving.set_momenta(np.ones((len(moving), 3)))


def test_copies_selections_and_files(tmp_path: Path) -> None:
    atoms = shaken()
    atoms.set_constraint(FixRigidMotion())
    for other in (atoms.copy(), copy.deepcopy(atoms), atoms[[0, 1, 2]], atoms.repeat((1, 1, 1))):
        assert [type(c) for c in other.constraints] == [FixRigidMotion], other
    assert isinstance(FixRigidMotion().copy(), FixRigidMotion) and "FixRigidMotion()" in repr(atoms)
    atoms.calc = Springs(atoms)
    with BFGS(atoms, logfile=None, trajectory=tmp_path / "run.traj") as dynamics:
        dynamics.run(fmax=0.05, steps=5)
    frames = read(tmp_path / "run.traj", ":")
    assert all(isinstance(frame.constraints[0], FixCom) for frame in frames)
