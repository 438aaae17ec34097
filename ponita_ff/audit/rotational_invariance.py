"""Check: the energy is invariant under rotations, and the forces are equivariant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ponita_ff.audit.result import CheckResult, Measurement
from ponita_ff.audit.target import Array, AuditTarget
from ponita_ff.network.orientations import random_rotations

__all__ = ["RotationScan", "rotate", "rotation_scan", "rotational_invariance"]


def rotate(atoms: Atoms, rotation: Array) -> Atoms:
    """Return a copy with positions and cell rotated about the origin, with the same calculator.

    Args:
        atoms: The structure.
        rotation: Rotation matrix, shape (3, 3).
    """
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ rotation.T)
    copy.positions = atoms.positions @ rotation.T
    copy.calc = atoms.calc
    return copy


@dataclass(frozen=True)
class RotationScan:
    """Energies and forces of one structure under rotations R; the first R is the identity.

    Attributes:
        energies: Total energies, eV, shape (1 + rotations,).
        force_errors: R F(x) − F(R x), eV/Å, shape (rotations, n, 3).
        net_forces: Norm of the sum of all forces, eV/Å, shape (1 + rotations,).
        torques: Norm of the net torque about the centre of mass, eV, shape (1 + rotations,).
    """

    energies: Array
    force_errors: Array
    net_forces: Array
    torques: Array


def rotation_scan(atoms: Atoms, rotations: Array) -> RotationScan:
    """Calculate energies, forces and torques of a structure under rotations.

    Args:
        atoms: The structure, with a calculator.
        rotations: Rotation matrices, shape (rotations, 3, 3).
    """
    reference = atoms.get_forces()
    energies, errors, net_forces, torques = [], [], [], []
    for rotation in np.concatenate([np.eye(3)[None], rotations]):
        rotated = rotate(atoms, rotation)
        forces = rotated.get_forces()
        lever_arms = rotated.positions - rotated.get_center_of_mass()
        energies.append(rotated.get_potential_energy())
        errors.append(reference @ rotation.T - forces)
        net_forces.append(np.linalg.norm(forces.sum(axis=0)))
        torques.append(np.linalg.norm(np.cross(lever_arms, forces).sum(axis=0)))
    return RotationScan(np.array(energies), np.array(errors[1:]), np.array(net_forces), np.array(torques))


def rotational_invariance(target: AuditTarget) -> CheckResult:
    """Measure the spread of the energy over random rotations, the equivariance error, net force and net torque.

    Returns:
        Array ``energies`` (1 + rotations,), meV, relative to their mean.
    """
    settings = target.settings.rotations
    atoms = target.rattled()
    scan = rotation_scan(atoms, random_rotations(settings.number, (target.settings.seed, 2)))
    energies = 1e3 * (scan.energies - scan.energies.mean())
    per_atom = float(np.ptp(energies)) / len(atoms)
    rms_error, largest_error = float(np.sqrt(np.mean(scan.force_errors**2))), float(np.abs(scan.force_errors).max())
    measurements = [
        Measurement("energy spread, peak to peak", per_atom, "meV/atom", settings.energy_limit),
        Measurement("energy spread, standard deviation", float(energies.std()), "meV"),
        Measurement("force equivariance error, RMS", rms_error, "eV/Å", settings.force_limit),
        Measurement("force equivariance error, largest", largest_error, "eV/Å"),
        Measurement("net force, largest", float(scan.net_forces.max()), "eV/Å", settings.net_force_limit),
    ]
    name = "net torque, largest"
    if target.periodic:
        measurements.append(Measurement(name, None, "eV", note="not defined for periodic structures"))
    else:
        measurements.append(Measurement(name, float(scan.torques.max()), "eV", settings.torque_limit))
    return CheckResult(measurements, {"energies": energies})
