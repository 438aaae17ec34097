"""Runs the checks on every calculator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from tqdm import tqdm

from ponita_ff.audit.derivatives import finite_difference_forces, finite_difference_stress
from ponita_ff.audit.domain import training_domain
from ponita_ff.audit.dynamics import nve_drift, nvt_stability
from ponita_ff.audit.labels import label_errors
from ponita_ff.audit.modes import normal_modes
from ponita_ff.audit.result import NotDone, Outcome, Report
from ponita_ff.audit.scans import short_range, smoothness
from ponita_ff.audit.settings import AuditError, AuditSettings
from ponita_ff.audit.subject import Subject
from ponita_ff.audit.symmetry import rotation_spread
from ponita_ff.data import Frame

__all__ = ["CHECKS", "Check", "audit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: Heading on the page.
        run: Measures one calculator.
        question: What it asks, in a sentence or two for the page.
    """

    title: str
    run: Callable[[Subject], Outcome]
    question: str


#: Every check, in the order of the page; the domain check looks at what the NVT check visited.
CHECKS: dict[str, Check] = {
    "labels": Check(
        "Errors on labelled frames",
        label_errors,
        "Energies and forces against the labels of the data file, also by element and by the distance of an atom's "
        "nearest neighbour.",
    ),
    "rotations": Check(
        "Rotations",
        rotation_spread,
        "The structure with a little noise, turned at random: the energy must stay, the forces must turn with it, and "
        "without an outer field neither net force nor net torque may act.",
    ),
    "forces": Check(
        "Forces are the energy's derivative",
        finite_difference_forces,
        "Forces against central differences of the energy at several steps. Small steps suffer from rounding of the "
        "energy (dashed: five standard deviations of it), large ones from the formula's error; the best step counts.",
    ),
    "stress": Check(
        "Stress is the energy's derivative",
        finite_difference_stress,
        "Stress against central differences of the energy with respect to strain, of a strained cell.",
    ),
    "smoothness": Check(
        "Smooth scans",
        smoothness,
        "Along stretched bonds, an atom pulled out through the cutoff and the molecule turned (of periodic structures: "
        "atoms moved along bonds, and the cell expanded) neither energy nor forces may jump, and the force along the "
        "scan must be the scan's own derivative. An interval suspected of a jump is halved again and again: a jump "
        "stays, a slope does not.",
    ),
    "short_range": Check(
        "Short range",
        short_range,
        "Two atoms of every pair of elements pushed together, nearer than any bond: they must repel all the way, "
        "and the wall must be too high for heat. Energies are from the structure as given.",
    ),
    "modes": Check(
        "Normal modes",
        normal_modes,
        "Harmonic frequencies of the structure relaxed by the calculator: all real at a minimum.",
    ),
    "nve": Check(
        "Energy conservation (NVE)",
        nve_drift,
        "Drift of the total energy in dynamics without a thermostat, by linear regression; the error is that of block "
        "means. A limit within two standard errors cannot be judged: then the run is too short.",
    ),
    "nvt": Check(
        "Stability (NVT)",
        nvt_stability,
        "Langevin dynamics at the training temperature and above: time until a bond differs from its length in the "
        "given structure by more than allowed (criterion of arXiv:2210.07237).",
    ),
    "domain": Check(
        "Training domain",
        training_domain,
        "Distance of atomic environments (radial symmetry functions) from those of the labelled frames, in units of "
        "the frames' own range; beyond 1 the calculator extrapolates.",
    ),
}


def _outcome(check: Check, subject: Subject, wanted: bool) -> Outcome:
    if not wanted:
        return Outcome(not_done="left out by the user")
    try:
        return check.run(subject)
    except NotDone as reason:
        return Outcome(not_done=str(reason))
    except Exception as error:  # a calculator may raise anything; the other checks go on
        logger.debug("%s", check.title, exc_info=True)
        return Outcome(error=f"{type(error).__name__}: {error}")


def _probe(name: str, subject: Subject) -> None:
    """Refuse at once a calculator that cannot do the structure at all."""
    try:
        atoms = subject.attach(subject.structure)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except Exception as error:
        raise AuditError(
            f"{name} cannot calculate energy and forces of the structure {subject.structure.symbols}: "
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
) -> Report:
    """Audit calculators on one structure; each of them meets the same geometries and random numbers.

    Args:
        calculators: Any calculators of ASE by the names that the page gives them.
        structure: Near a minimum, e.g. a molecule; its bonds are the reference of the stability check.
        frames: Labelled frames; they stand for the training set in the domain check.
        settings: Lengths and limits; None for the defaults.
        only: Names of the checks to do; None for all.
        progress: Whether to show progress bars.

    Raises:
        AuditError: For no calculators, an unknown check, an empty structure, or a calculator that cannot do it.
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
    subjects = {name: Subject(item, bare, frames, settings, progress) for name, item in calculators.items()}
    for name, subject in subjects.items():
        _probe(name, subject)
    outcomes: dict[str, dict[str, Outcome]] = {}
    with tqdm(total=len(subjects) * len(CHECKS), desc="audit", unit="check", disable=not progress) as bar:
        for name, subject in subjects.items():
            outcomes[name] = {}
            for key, check in CHECKS.items():
                bar.set_postfix_str(f"{name}: {check.title}")
                outcomes[name][key] = _outcome(check, subject, only is None or key in only)
                bar.update()
    packages = {package: version(package) for package in ("ponita-ff", "ase", "numpy")}
    words = f"{bare.symbols.formula:metal}, {len(bare)} atoms" + (", periodic" if bare.pbc.any() else "")
    return Report(outcomes, words, settings.model_dump(mode="json"), packages)
