"""Check: harmonic frequencies of the relaxed structure."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms, units
from ase.vibrations import Vibrations
from numpy.typing import NDArray
from scipy.linalg import null_space

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import Array, AuditTarget
from ponita_ff.structure.rigid import rigid_motions

__all__ = ["frequencies", "hessian_by_differences", "normal_modes", "vibrational_frequencies"]

#: Square root of eV/Å²/u in cm⁻¹.
_WAVENUMBER = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm


def _mass_weighted(hessian: Array, masses: Array) -> Array:
    """Return M^(−1/2) H M^(−1/2), eV/Å²/u, shape (3n, 3n)."""
    weights = np.repeat(masses, 3) ** -0.5
    return np.asarray(hessian * np.outer(weights, weights))


def _to_wavenumbers(eigenvalues: NDArray[np.floating]) -> Array:
    """Convert eigenvalues of a mass-weighted Hessian, eV/Å²/u, to cm⁻¹; imaginary frequencies become negative."""
    return np.asarray(np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * _WAVENUMBER)


def frequencies(hessian: Array, masses: Array) -> Array:
    """Return the harmonic frequencies of all 3n modes, translations and rotations included.

    Args:
        hessian: Second derivatives of the energy, eV/Å², shape (3n, 3n).
        masses: Atomic masses, u, shape (n,).

    Returns:
        Frequencies in cm⁻¹ in ascending order, imaginary ones negative, shape (3n,).
    """
    return _to_wavenumbers(np.linalg.eigvalsh(_mass_weighted(hessian, masses)))


def vibrational_frequencies(hessian: Array, atoms: Atoms) -> Array:
    """Return the harmonic frequencies with translations and rotations projected out.

    The projection is that of Miller, Handy and Adams 1980, doi:10.1063/1.438959.

    Args:
        hessian: Second derivatives of the energy, eV/Å², shape (3n, 3n).
        atoms: The structure.

    Returns:
        Frequencies in cm⁻¹ in ascending order, imaginary ones negative, shape (3n − k,); see
        `ponita_ff.structure.rigid.rigid_motions` for k.
    """
    masses = atoms.get_masses()
    vibrations = null_space(rigid_motions(atoms, masses).T)
    projected = vibrations.T @ _mass_weighted(hessian, masses) @ vibrations
    return _to_wavenumbers(np.linalg.eigvalsh(projected))


def hessian_by_differences(atoms: Atoms, displacement: float) -> Array:
    """Return the symmetrised second derivatives of the energy from central differences of the forces.

    Args:
        atoms: The structure, with a calculator.
        displacement: Displacement of each coordinate, Å.

    Returns:
        Shape (3n, 3n), eV/Å².
    """
    # ASE reuses files that it finds in the folder, perhaps of another calculator: use a new one.
    with TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=folder, delta=displacement)
        vibrations.run()
        hessian = vibrations.get_vibrations().get_hessian_2d()
    return np.asarray(0.5 * (hessian + hessian.T))


def normal_modes(target: AuditTarget) -> CheckResult:
    """Measure the frequencies of the relaxed structure: all must be real, and close to the reference if there is one.

    Returns:
        Arrays ``frequencies`` (3n − k,) and, if given, ``reference``, both cm⁻¹.

    Raises:
        CheckSkipped: For a single atom, or for more than ``modes.max_atoms`` atoms.
    """
    settings = target.settings.modes
    atoms = target.relaxed.atoms
    if len(atoms) < 2:
        raise CheckSkipped("a single atom has no vibrations")
    if len(atoms) > settings.max_atoms:
        raise CheckSkipped(f"the structure has {len(atoms)} atoms, more than modes.max_atoms = {settings.max_atoms}")
    relaxation = Measurement("force left after relaxation", target.relaxed.fmax, "eV/Å", settings.fmax)
    if not target.relaxed.converged:
        reason = f"the relaxation did not converge in {settings.max_steps} steps (modes.max_steps)"
        lowest = Measurement("lowest frequency", None, "cm⁻¹", 0.0, "minimum", note=reason)
        return CheckResult([relaxation, lowest], notes=[f"{reason.capitalize()}."])
    hessian = hessian_by_differences(target.attach(atoms), settings.displacement)
    found = vibrational_frequencies(hessian, atoms)
    # Translations and rotations are the modes of the lowest absolute frequencies.
    rigid = np.sort(np.abs(frequencies(hessian, atoms.get_masses())))[: 3 * len(atoms) - len(found)]
    measurements = [
        relaxation,
        Measurement("lowest frequency", float(found[0]), "cm⁻¹", 0.0, "minimum"),
        Measurement("translations and rotations, largest frequency", float(rigid.max()), "cm⁻¹"),
    ]
    notes = [f"{len(found)} vibrations, {int((found < 0).sum())} of them imaginary."]
    arrays = {"frequencies": found}
    if len(target.bonds):
        notes.append(f"Relaxation changed no bond by more than {target.bonds.largest_change(atoms):.3f} Å.")
    if settings.reference is not None:
        measurements.append(_compare(found, np.array(settings.reference), settings.reference_limit))
        arrays["reference"] = np.array(settings.reference)
    return CheckResult(measurements, arrays, notes)


def _compare(found: Array, reference: Array, limit: float) -> Measurement:
    """Return the root mean square difference of sorted frequencies from the reference."""
    name = "frequencies, RMS difference from reference"
    if len(reference) != len(found):
        note = f"modes.reference has {len(reference)} frequencies, the structure {len(found)} vibrations"
        return Measurement(name, None, "cm⁻¹", limit, note=note)
    return Measurement(name, float(np.sqrt(np.mean((found - np.sort(reference)) ** 2))), "cm⁻¹", limit)
