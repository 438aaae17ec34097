"""Check: normal modes of the relaxed structure."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms, units
from ase.vibrations import Vibrations

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.subject import Array, Subject

__all__ = ["frequencies", "hessian_by_differences", "normal_modes", "rigid_motions", "vibrational_frequencies"]

#: Square root of eV/Å²/u in cm⁻¹.
_WAVENUMBER = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm


def frequencies(hessian: Array, masses: Array) -> Array:
    """Harmonic frequencies in cm⁻¹, rising, imaginary ones negative, shape (3n,).

    Args:
        hessian: Shape (3n, 3n), eV/Å².
        masses: Shape (n,), u.
    """
    weights = np.repeat(masses, 3) ** -0.5
    values = np.linalg.eigvalsh(hessian * np.outer(weights, weights))
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)) * _WAVENUMBER)


def rigid_motions(atoms: Atoms) -> Array:
    """Orthonormal mass-weighted translations, and rotations of what is not periodic, shape (3n, 3 to 6)."""
    arms = atoms.positions - atoms.get_center_of_mass()
    motions = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        motions += [np.cross(axis, arms) for axis in np.eye(3)]
    weighted = np.array(motions) * np.sqrt(atoms.get_masses())[:, None]
    left, sizes, _ = np.linalg.svd(weighted.reshape(len(motions), -1).T, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-3 * sizes.max()])  # a linear molecule has five


def vibrational_frequencies(hessian: Array, atoms: Atoms) -> Array:
    """Frequencies with translations and rotations projected out, cm⁻¹, rising, imaginary ones negative.

    Projection as in Miller, Handy and Adams 1980, doi:10.1063/1.438959.
    """
    rigid = rigid_motions(atoms)
    # Orthonormal basis of the vibrations: the null space of the rigid motions.
    basis = np.linalg.svd(rigid, full_matrices=True)[0][:, rigid.shape[1] :]
    weights = np.repeat(atoms.get_masses(), 3) ** -0.5
    values = np.linalg.eigvalsh(basis.T @ (hessian * np.outer(weights, weights)) @ basis)
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)) * _WAVENUMBER)


def hessian_by_differences(atoms: Atoms, delta: float) -> Array:
    """Symmetric second derivatives from central differences of the forces, eV/Å², shape (3n, 3n)."""
    # In a new folder: ASE would take up what an earlier run, maybe of another potential, left there.
    with TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=folder, delta=delta)
        vibrations.run()
        hessian = vibrations.get_vibrations().get_hessian_2d()
    return np.asarray(0.5 * (hessian + hessian.T))


def normal_modes(subject: Subject) -> Outcome:
    """Frequencies of the structure relaxed by the calculator: all real, and near the reference where there is one.

    Arrays: ``frequencies`` (3n − 6,) and ``reference`` cm⁻¹.
    """
    settings = subject.settings.modes
    atoms = subject.relaxed.atoms
    if len(atoms) < 2:
        raise NotDone("one atom alone does not vibrate")
    if len(atoms) > settings.max_atoms:
        raise NotDone(f"the structure has {len(atoms)} atoms; up to {settings.max_atoms} are done (modes.max_atoms)")
    relaxed = Measure("force left after relaxation", subject.relaxed.fmax, "eV/Å", settings.fmax)
    if not subject.relaxed.converged:
        why = f"no stationary point was reached in {settings.max_steps} steps (modes.max_steps)"
        return Outcome(
            [relaxed, Measure("lowest frequency", None, "cm⁻¹", 0.0, "at least", note=why)], notes=[why + "."]
        )
    hessian = hessian_by_differences(subject.attach(atoms), settings.delta)
    found = vibrational_frequencies(hessian, atoms)
    rigid = len(atoms) * 3 - len(found)
    lost = np.sort(np.abs(frequencies(hessian, atoms.get_masses())))[:rigid]
    measures = [
        relaxed,
        Measure("lowest frequency", float(found[0]), "cm⁻¹", 0.0, "at least"),
        Measure("rigid motions, largest frequency", float(lost.max()), "cm⁻¹"),
    ]
    notes = [f"{len(found)} vibrations, {int((found < 0).sum())} of them imaginary."]
    arrays = {"frequencies": found}
    if len(subject.bonds):
        notes.append(f"Relaxing changed no bond by more than {subject.bonds.largest_change(atoms):.3f} Å.")
    if settings.reference is not None:
        measures.append(_against_reference(found, np.array(settings.reference), settings.reference_limit))
        arrays["reference"] = np.array(settings.reference)
    return Outcome(measures, arrays, notes)


def _against_reference(found: Array, reference: Array, limit: float) -> Measure:
    name = "frequencies, RMS difference from reference"
    if len(reference) != len(found):
        note = f"modes.reference has {len(reference)} frequencies, the structure {len(found)} vibrations"
        return Measure(name, None, "cm⁻¹", limit, note=note)
    return Measure(name, float(np.sqrt(np.mean((found - np.sort(reference)) ** 2))), "cm⁻¹", limit)
