"""What the examples share: options, the molecule, running dynamics, statistics, pictures."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# On a machine that others use too, OpenMP's spinning threads slow torch many times over: they spin
# for some microseconds, then sleep. This must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import matplotlib
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixCom
from ase.io.trajectory import TrajectoryWriter
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize.optimize import Optimizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

Array = NDArray[np.float64]

SEED = 1
TAU_FS = 50.0  # relaxation time of the thermostats
FRAME_FS = 10.0  # between frames of a trajectory file
BOND_TOLERANCE = 0.5  # Å that a bond of an intact molecule may move from its start length

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


@dataclass(frozen=True)
class Bonds:
    """The bonds of a molecule at its start.

    Attributes:
        pairs: Atoms, shape (2, bonds).
        lengths: In Å, shape (bonds,).
    """

    pairs: NDArray[np.int64]
    lengths: Array

    def largest_change(self, atoms: Atoms) -> float:
        """Largest change of a bond length since the start in Å."""
        first, second = self.pairs
        now = np.linalg.norm(atoms.positions[first] - atoms.positions[second], axis=1)
        return float(np.abs(now - self.lengths).max())


def bond_lengths(atoms: Atoms) -> Bonds:
    """The bonds of a molecule, found by covalent radii."""
    first, second, distance = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.2))
    once = first < second
    return Bonds(np.array([first[once], second[once]]), distance[once])


def set_thermal_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Momenta of the Maxwell–Boltzmann distribution at a temperature in K."""
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))


def torsion(atoms: Atoms) -> float:
    """H–O–C–C angle of ethanol in degrees, −180 to 180."""
    return float((atoms.get_dihedral(*TORSION) + 180) % 360 - 180)


def relax(
    atoms: Atoms, optimiser: type[Optimizer], fmax: float, max_steps: int, path: Path, name: str = "relaxing"
) -> tuple[Array, bool]:
    """Relax atoms under a progress bar and save every step.

    Args:
        atoms: Structure; it is changed.
        optimiser: Any of ASE's.
        fmax: Largest force on an atom to reach, eV/Å.
        max_steps: Steps after which to give up.
        path: Trajectory file.
        name: For the progress bar.

    Returns:
        Energy (eV) and largest force (eV/Å) of every step, shape (steps, 2), and whether ``fmax`` was reached.
    """
    rows = []
    converged = False
    with (
        TrajectoryWriter(path, "w", atoms) as trajectory,
        optimiser(atoms, logfile=None) as dynamics,
        tqdm(total=max_steps, desc=name, unit="step") as bar,
    ):
        dynamics.attach(trajectory)
        for done in dynamics.irun(fmax=fmax, steps=max_steps):
            converged = bool(done)
            rows.append((atoms.get_potential_energy(), np.linalg.norm(atoms.get_forces(), axis=1).max()))
            bar.update(dynamics.nsteps - bar.n)
            bar.set_postfix_str(f"fmax {rows[-1][1]:.4f} eV/Å", refresh=False)
    return np.array(rows), converged


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
    """Langevin dynamics with the centre of mass held by a constraint (see `hold_centre`)."""
    return Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature,
        friction=1.0 / (tau_fs * units.fs),
        fixcm=False,
        rng=rng,
    )


def hold_centre(atoms: Atoms) -> None:
    """Hold the centre of mass: a molecule in vacuum would drift away, and its drift is no heat of interest."""
    atoms.set_constraint(FixCom())


def steps(ps: float, timestep_fs: float) -> int:
    """How many steps a time in ps takes."""
    return max(1, round(1000 * ps / timestep_fs))


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
        with tqdm(total=number, desc=name, unit="step") as bar:
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


def say_intact(*records: Record) -> None:
    """Whether the molecule stayed intact in runs that follow each other."""
    passed, largest = 0.0, 0.0
    for record in records:
        broken = record.bond_change > BOND_TOLERANCE
        if broken.any():
            at = passed + record.time_ps[broken.argmax()]
            say("molecule", f"BROKEN: at {at:.3f} ps a bond had moved by more than {BOND_TOLERANCE} Å")
            return
        passed, largest = passed + record.time_ps[-1], max(largest, record.bond_change.max())
    say("molecule", f"intact: no bond moved by more than {largest:.2f} Å from its start length")


def say_speed(record: Record, timestep_fs: float) -> None:
    """Steps per second, and what that makes in a day."""
    ns_per_day = record.steps_per_second * timestep_fs * 1e-6 * 86_400
    say("speed", f"{record.steps_per_second:.1f} steps/s, {ns_per_day:.3f} ns/day")


def block_means(values: Array, blocks: int = 10) -> Array:
    """Means of consecutive blocks: longer than the correlation time, they are nearly independent."""
    size = max(1, len(values) // blocks)
    number = len(values) // size
    return values[: number * size].reshape(number, size).mean(axis=1)


@dataclass(frozen=True)
class Drift:
    """How well a run kept its total energy.

    Attributes:
        slope: Drift in meV/atom/ns, by linear regression.
        error: Its standard error, from block means.
        rms: Root mean square of the fluctuation about the line in meV (whole molecule).
        line: The fitted energies in eV.
    """

    slope: float
    error: float
    rms: float
    line: Array


def energy_drift(record: Record, num_atoms: int) -> Drift:
    """Linear regression of total energy on time.

    Energies of neighbouring steps go up and down together, so that the usual standard error would be far too small:
    it is taken from a line through the means of 10 blocks.
    """
    slope, offset = np.polyfit(record.time_ps, record.energy, 1)
    line = offset + slope * record.time_ps
    t, e = block_means(record.time_ps), block_means(record.energy)
    residuals = e - np.polyval(np.polyfit(t, e, 1), t)
    error = np.sqrt(np.sum(residuals**2) / (len(t) - 2) / np.sum((t - t.mean()) ** 2))
    # eV/ps is 10³ meV/eV × 10³ ps/ns of meV/ns
    scale = 1e6 / num_atoms
    return Drift(slope * scale, error * scale, 1e3 * float(np.std(record.energy - line)), line)


def say_drift(drift: Drift, num_atoms: int) -> None:
    """Drift and fluctuation of the total energy."""
    say("energy drift", f"{drift.slope:.4g} ± {drift.error:.2g} meV/atom/ns")
    say("energy fluctuation", f"{drift.rms:.4g} meV RMS, {drift.rms / num_atoms:.4g} meV/atom")


# --------------------------------------------------------------------------------------- pictures

STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}
SMOOTH_FS = 100.0  # window of the running means
COLOURS = ("#1f5fa8", "#d1652b", "#3a8f5c", "#7a4fa3")


@contextmanager
def picture(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (8.0, 4.5),
    widths: Sequence[float] | None = None,
) -> Iterator[Sequence[Any]]:
    """Panels, row by row; the PNG is written on leaving.

    Args:
        path: PNG file.
        rows: Panels above each other; they share the horizontal axis.
        columns: Panels beside each other.
        size: Inches.
        widths: Relative widths of the columns.
    """
    # Without pyplot, which keeps global state and may want a display.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, sharex="col", squeeze=False, width_ratios=widths).ravel()
        yield list(panels)
        figure.align_ylabels()
        figure.savefig(path, dpi=150)
    print(f"Picture: {path}")


def plot_with_mean(panel: Any, time_ps: Array, values: Array, colour: str, label: str) -> None:
    """Values faintly, and their running mean over 100 fs (less in a very short run) on top.

    Args:
        panel: matplotlib's axes.
        time_ps: Equally spaced times in ps.
        values: What to plot.
        colour: Of both lines.
        label: Of the running mean.
    """
    panel.plot(time_ps, values, color=colour, linewidth=0.5, alpha=0.35)
    width = max(1, min(round(SMOOTH_FS / (1000 * (time_ps[1] - time_ps[0]))), len(values) // 10))
    mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
    panel.plot(time_ps[width // 2 :][: len(mean)], mean, color=colour, linewidth=1.6, label=label, zorder=3)
