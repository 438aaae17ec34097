"""What the examples share: options, the molecule, running dynamics, statistics, pictures."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# On a machine that others use too, OpenMP's spinning threads slow torch many times over: they spin
# for some microseconds, then sleep. This must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.io.trajectory import TrajectoryWriter
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from numpy.typing import NDArray

from ponita_ff.progress import progress_bar
from ponita_ff.simulate import md, plots
from ponita_ff.simulate.statistics import Drift
from ponita_ff.structure.bonds import BOND_CHANGE_LIMIT, Bonds

Array = NDArray[np.float64]

SEED = 1
TAU_FS = 50.0  # relaxation time of the thermostats
FRAME_FS = 10.0  # between frames of a trajectory file

# Atoms of ethanol as ase.build.molecule("CH3CH2OH") numbers them.
METHYL_C, METHYLENE_C, OXYGEN, HYDROXYL_H = 0, 1, 2, 3
TORSION = (METHYL_C, METHYLENE_C, OXYGEN, HYDROXYL_H)


# ---------------------------------------------------------------------------------------- options


def options(description: str, name: str) -> argparse.ArgumentParser:
    """Options of every example.

    Args:
        description: The example's docstring.
        name: Of the example, for the folder of its results.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="ethanol-rmd17", help="a shipped potential, or a potential file")
    parser.add_argument("--out", type=Path, default=Path(f"{name}-out"), help=f"folder for results ({name}-out)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (auto)")
    parser.add_argument("--allow-broken", action="store_true", help="end without an error if the molecule breaks")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it works")
    return parser


def dynamics_options(description: str, name: str) -> argparse.ArgumentParser:
    """Options of the examples that run molecular dynamics."""
    parser = options(description, name)
    parser.add_argument("--temperature", type=positive, default=300.0, help="K (300)")
    parser.add_argument("--timestep", type=positive, default=0.5, help="fs (0.5)")
    parser.add_argument("--backend", default="auto", help="auto, native, compiled or eager")
    return parser


def positive(text: str) -> float:
    """A number above zero, for argparse."""
    value = float(text)
    if not 0 < value < np.inf:
        raise argparse.ArgumentTypeError(f"must be above zero, got {text}")
    return value


def make_calculator(args: argparse.Namespace, dtype: str | None = None) -> Calculator:
    """The calculator that the options ask for, and the folder for the results.

    Args:
        args: Parsed options.
        dtype: ``"float64"`` where small differences of energies or forces matter.
    """
    from ponita_ff import PonitaCalculator

    try:
        backend = getattr(args, "backend", "auto")
        calculator = PonitaCalculator(args.potential, device=args.device, dtype=dtype, backend=backend)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot use {args.potential}: {error}") from None
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"cannot write to {args.out}: {error.strerror}") from None
    print(f"Ethanol with the potential {args.potential}; results go to {args.out}/")
    return calculator


def say(name: str, text: str) -> None:
    """One line of results."""
    print(f"  {name:<26}{text}")


# --------------------------------------------------------------------------------------- molecule


def ethanol() -> Atoms:
    """Ethanol, trans (H–O–C–C 180°), from ASE's own table of molecules."""
    return molecule("CH3CH2OH")


def torsion(atoms: Atoms) -> float:
    """H–O–C–C angle of ethanol in degrees, −180 to 180."""
    return float((atoms.get_dihedral(*TORSION) + 180) % 360 - 180)


# --------------------------------------------------------------------------------------- dynamics


@dataclass
class Record:
    """What a run did, step by step; the first entry is its start.

    Attributes:
        time_ps: Time in ps.
        temperature: Kinetic temperature in K.
        energy: Total energy in eV.
        bond_change: Largest change of a bond length since the start in Å.
        steps_per_second: Speed, everything included.
    """

    time_ps: Array
    temperature: Array
    energy: Array
    bond_change: Array
    steps_per_second: float


def langevin(
    atoms: Atoms, timestep_fs: float, temperature: float, rng: np.random.Generator, tau_fs: float = TAU_FS
) -> Langevin:
    """Langevin dynamics with the examples' friction."""
    return md.langevin(atoms, timestep_fs, temperature, rng, tau_fs)


def run(dynamics: MolecularDynamics, number: int, path: Path, name: str, start: Bonds, append: bool = False) -> Record:
    """Run dynamics under a progress bar, record every step, and save a frame every 10 fs.

    Args:
        dynamics: Any molecular dynamics of ASE.
        number: How many steps.
        path: Trajectory file.
        name: For the progress bar.
        start: Bonds that the molecule should keep.
        append: Go on in an existing trajectory file.
    """
    atoms = dynamics.atoms
    every = max(1, round(FRAME_FS * units.fs / dynamics.dt))
    rows = []
    with TrajectoryWriter(path, "a" if append else "w", atoms) as trajectory:
        dynamics.attach(trajectory, interval=every)
        began = time.perf_counter()
        with progress_bar(True, total=number, desc=name, unit="step") as bar:
            for _ in dynamics.irun(number):
                change = start.largest_change(atoms)
                rows.append((dynamics.get_time(), atoms.get_temperature(), atoms.get_total_energy(), change))
                bar.update(dynamics.nsteps - bar.n)
        seconds = time.perf_counter() - began
    times, temperatures, energies, changes = np.array(rows).T
    return Record(times / (1000 * units.fs), temperatures, energies, changes, number / seconds)


def say_temperature(name: str, record: Record) -> None:
    """Mean of the kinetic temperature, and its standard deviation over the steps."""
    say(name, f"{record.temperature.mean():.1f} K, standard deviation {record.temperature.std():.1f} K")


def say_intact(*records: Record) -> bool:
    """Say and return whether the molecule stayed intact in runs that follow each other."""
    passed, largest = 0.0, 0.0
    for record in records:
        broken = record.bond_change > BOND_CHANGE_LIMIT
        if broken.any():
            at = passed + record.time_ps[broken.argmax()]
            say("molecule", f"BROKEN: at {at:.3f} ps a bond had moved by more than {BOND_CHANGE_LIMIT} Å")
            return False
        passed, largest = passed + record.time_ps[-1], max(largest, record.bond_change.max())
    say("molecule", f"intact: no bond moved by more than {largest:.2f} Å from its start length")
    return True


def require_intact(args: argparse.Namespace, *intact: bool) -> None:
    """End with an error if a molecule broke, because results of broken molecules mean nothing."""
    if not all(intact) and not args.allow_broken:
        raise SystemExit(
            "the molecule broke, so that the results are not those of the molecule: does the potential know it? "
            "Otherwise a lower --temperature or a shorter time step may help"
        )


def say_speed(record: Record, timestep_fs: float) -> None:
    """Steps per second, and what that makes in a day."""
    ns_per_day = record.steps_per_second * timestep_fs * 1e-6 * 86_400
    say("speed", f"{record.steps_per_second:.1f} steps/s, {ns_per_day:.3f} ns/day")


def say_drift(drift: Drift, num_atoms: int) -> None:
    """Drift and fluctuation of the total energy."""
    say("energy drift", f"{drift.slope:.4g} ± {drift.error:.2g} meV/atom/ns")
    say("energy fluctuation", f"{drift.rms:.4g} meV RMS, {drift.rms / num_atoms:.4g} meV/atom")


# --------------------------------------------------------------------------------------- pictures


@contextmanager
def picture(path: Path, **options: Any) -> Iterator[list[Any]]:
    """Panels of a picture, which says where it was written (see ``ponita_ff.simulate.plots.picture``)."""
    with plots.picture(path, **options) as panels:
        yield panels
    print(f"Picture: {path}")
