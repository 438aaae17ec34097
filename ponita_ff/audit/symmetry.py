"""Check: energies must not depend on how a structure is turned, and forces must turn with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ponita_ff.audit.result import Measure, Outcome
from ponita_ff.audit.subject import Array, Subject
from ponita_ff.network.orientations import random_rotations

__all__ = ["Turned", "rotation_spread", "turned", "under_rotations"]


def turned(atoms: Atoms, rotation: Array) -> Atoms:
    """A copy with positions and cell turned about the origin, with the same calculator."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ rotation.T)
    copy.positions = atoms.positions @ rotation.T
    copy.calc = atoms.calc
    return copy


@dataclass(frozen=True)
class Turned:
    """What a calculator says of one structure under rotations; the first is none.

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


def under_rotations(atoms: Atoms, rotations: Array) -> Turned:
    """Energies, forces and torques of ``atoms`` turned by each of ``rotations`` (k, 3, 3)."""
    reference = atoms.get_forces()
    energies, errors, net, torques = [], [], [], []
    for rotation in np.concatenate([np.eye(3)[None], rotations]):
        copy = turned(atoms, rotation)
        forces = copy.get_forces()
        energies.append(copy.get_potential_energy())
        errors.append(reference @ rotation.T - forces)
        net.append(np.linalg.norm(forces.sum(axis=0)))
        torques.append(np.linalg.norm(np.cross(copy.positions - copy.get_center_of_mass(), forces).sum(axis=0)))
    return Turned(np.array(energies), np.array(errors[1:]), np.array(net), np.array(torques))


def rotation_spread(subject: Subject) -> Outcome:
    """Spread of the energy over random rotations, the forces' error of equivariance, net force and net torque.

    Arrays: ``energies`` (1 + rotations,) meV, from their mean.
    """
    settings = subject.settings.rotations
    atoms = subject.rattled()
    found = under_rotations(atoms, random_rotations(settings.number, (subject.settings.seed, 2)))
    energies = 1e3 * (found.energies - found.energies.mean())
    error = float(np.sqrt(np.mean(found.force_errors**2)))
    measures = [
        Measure("energy spread, peak to peak", float(np.ptp(energies)) / len(atoms), "meV/atom", settings.energy_limit),
        Measure("energy spread, standard deviation", float(energies.std()), "meV"),
        Measure("force equivariance error, RMS", error, "eV/Å", settings.force_limit),
        Measure("force equivariance error, largest", float(np.abs(found.force_errors).max()), "eV/Å"),
        Measure("net force, largest", float(found.net_forces.max()), "eV/Å", settings.net_force_limit),
    ]
    if subject.periodic:
        measures.append(Measure("net torque, largest", None, "eV", note="periodic structures have no torque"))
    else:
        measures.append(Measure("net torque, largest", float(found.torques.max()), "eV", settings.torque_limit))
    return Outcome(measures, {"energies": energies})
