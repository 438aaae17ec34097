"""The list of all checks, and the audit that runs them on every calculator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ponita_ff.audit.dynamics import nve_drift, nvt_stability
from ponita_ff.audit.finite_differences import finite_difference_forces, finite_difference_stress
from ponita_ff.audit.label_errors import label_errors
from ponita_ff.audit.normal_modes import normal_modes
from ponita_ff.audit.result import AuditReport, CheckResult, CheckSkipped
from ponita_ff.audit.rotational_invariance import rotational_invariance
from ponita_ff.audit.settings import AuditError, AuditSettings
from ponita_ff.audit.short_range import short_range
from ponita_ff.audit.smoothness import smoothness
from ponita_ff.audit.target import AuditTarget
from ponita_ff.audit.training_domain import training_domain
from ponita_ff.data import Frame
from ponita_ff.progress import progress_bar

__all__ = ["CHECKS", "Check", "audit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: Heading on the page.
        run: Measures one calculator; raises `CheckSkipped` if the check does not apply.
        description: What is measured, in a few sentences for the page.
    """

    title: str
    run: Callable[[AuditTarget], CheckResult]
    description: str


#: All checks by name, in the order of the page. ``domain`` uses the snapshots of ``nvt`` and must follow it.
CHECKS: dict[str, Check] = {
    "labels": Check(
        "Errors on labelled frames",
        label_errors,
        "Errors of energies and forces against the labels of the data file, also by element and by the distance of an "
        "atom's nearest neighbour.",
    ),
    "rotations": Check(
        "Rotational invariance",
        rotational_invariance,
        "The structure, with a little noise, in random orientations: the energy must not change, the forces must "
        "rotate with the structure, and without an external field there must be no net force and no net torque.",
    ),
    "forces": Check(
        "Forces and energy are consistent",
        finite_difference_forces,
        "Forces against central differences of the energy at several steps. Small steps suffer from rounding of the "
        "energy (dashed: five standard deviations of the noise), large ones from the error of the formula; the best "
        "step counts.",
    ),
    "stress": Check(
        "Stress and energy are consistent",
        finite_difference_stress,
        "Stress of a strained cell against central differences of the energy with respect to strain.",
    ),
    "smoothness": Check(
        "Smooth scans",
        smoothness,
        "Scans of stretched bonds, of an atom moved away beyond the cutoff, and of the rotated molecule (periodic "
        "structures: of atoms moved along bonds, and of the expanded cell). Neither energy nor forces may jump, and "
        "the force along the scan must be the derivative of the energy. An interval suspected of a jump is bisected "
        "repeatedly: the difference at a jump stays, the change along a slope shrinks.",
    ),
    "short_range": Check(
        "Short range",
        short_range,
        "Two atoms of each pair of elements pushed together, closer than any bond: they must repel each other at all "
        "distances, up to a wall far above thermal energies. Energies are relative to the structure as given.",
    ),
    "modes": Check(
        "Normal modes",
        normal_modes,
        "Harmonic frequencies of the structure relaxed by the calculator: all are real at a minimum.",
    ),
    "nve": Check(
        "Energy conservation (NVE)",
        nve_drift,
        "Drift of the total energy in dynamics without a thermostat, by linear regression; standard errors are from "
        "block means. A drift within two standard errors of the limit is inconclusive: the run is too short.",
    ),
    "nvt": Check(
        "Stability (NVT)",
        nvt_stability,
        "Langevin dynamics at the training temperature and above: time until a bond differs from its length in the "
        "given structure by more than the limit (criterion of arXiv:2210.07237).",
    ),
    "domain": Check(
        "Training domain",
        training_domain,
        "Distance of atomic environments (radial symmetry functions) from those of the labelled frames, in units of "
        "the limit of their domain; beyond 1 the calculator extrapolates.",
    ),
}


def _run_check(check: Check, target: AuditTarget, wanted: bool) -> CheckResult:
    """Run one check; what the calculator raises becomes part of the result."""
    if not wanted:
        return CheckResult(skip_reason="not selected by the user")
    try:
        return check.run(target)
    except CheckSkipped as reason:
        return CheckResult(skip_reason=str(reason))
    except Exception as error:  # a calculator may raise anything; the other checks go on
        logger.debug("%s", check.title, exc_info=True)
        return CheckResult(error=f"{type(error).__name__}: {error}")


def _require_energy_and_forces(name: str, target: AuditTarget) -> None:
    """Refuse a calculator that cannot calculate the structure.

    Raises:
        AuditError: Naming the calculator and the problem.
    """
    try:
        atoms = target.attach(target.structure)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except Exception as error:
        raise AuditError(
            f"{name} cannot calculate energy and forces of the structure {target.structure.symbols}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if np.shape(forces) != (len(atoms), 3):
        raise AuditError(f"{name} gives forces of shape {np.shape(forces)}, expected ({len(atoms)}, 3)")
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise AuditError(f"{name} gives an energy or forces that are not finite for the structure as given")


def audit(
    calculators: Mapping[str, Calculator],
    structure: Atoms,
    frames: Sequence[Frame] | None = None,
    settings: AuditSettings | None = None,
    only: Collection[str] | None = None,
    progress: bool = False,
) -> AuditReport:
    """Audit calculators on one structure, with the same geometries and random numbers for each of them.

    Args:
        calculators: ASE calculators by the names that they have on the page.
        structure: A structure near a minimum; its bonds are the reference of the stability check.
        frames: Labelled frames, which also represent the training set in the check of the training domain.
        settings: Lengths of runs and limits; None for the defaults.
        only: Names of the checks to run; None for all.
        progress: Whether to show progress bars.

    Raises:
        AuditError: For no calculators, an unknown check, an empty structure, or a calculator that cannot calculate it.
    """
    settings = settings or AuditSettings()
    unknown = sorted(set(only or ()) - set(CHECKS))
    if unknown:
        raise AuditError(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if not calculators:
        raise AuditError("give at least one calculator to audit")
    if len(structure) == 0:
        raise AuditError("the structure has no atoms")
    bare = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    targets = {
        name: AuditTarget(calculator, bare, frames, settings, progress) for name, calculator in calculators.items()
    }
    for name, target in targets.items():
        _require_energy_and_forces(name, target)
    results: dict[str, dict[str, CheckResult]] = {}
    with progress_bar(progress, total=len(targets) * len(CHECKS), desc="audit", unit="check") as bar:
        for name, target in targets.items():
            results[name] = {}
            for key, check in CHECKS.items():
                bar.set_postfix_str(f"{name}: {check.title}")
                results[name][key] = _run_check(check, target, only is None or key in only)
                bar.update()
    versions = {package: version(package) for package in ("ponita-ff", "ase", "numpy")}
    description = f"{bare.symbols.formula:metal}, {len(bare)} atoms" + (", periodic" if bare.pbc.any() else "")
    return AuditReport(results, description, settings.model_dump(mode="json"), versions)
