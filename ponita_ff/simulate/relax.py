"""Relaxation of positions and cell, with trajectory, log and picture."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.io.trajectory import TrajectoryWriter
from ase.optimize import BFGS, FIRE2, LBFGS
from ase.optimize.optimize import Optimizer
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ponita_ff.files import write_atomically, write_text
from ponita_ff.outputs import claim_folder
from ponita_ff.progress import progress_bar
from ponita_ff.simulate.plots import COLOURS, formula_text, picture

__all__ = ["FILES", "OPTIMISERS", "Relaxation", "optimise", "plot_relaxation", "relax_structure"]

#: Optimisers by name; the first is the default.
OPTIMISERS: dict[str, type[Optimizer]] = {"BFGS": BFGS, "LBFGS": LBFGS, "FIRE2": FIRE2}

#: In the folder of a relaxation.
TRAJECTORY_FILE, STRUCTURE_FILE, LOG_FILE, PICTURE_FILE = "relax.traj", "relaxed.xyz", "log.csv", "relax.png"
FILES = (TRAJECTORY_FILE, STRUCTURE_FILE, LOG_FILE, PICTURE_FILE)


@dataclass(frozen=True)
class Relaxation:
    """What a relaxation did.

    Attributes:
        energy: eV, at the start and after every step, shape (steps + 1,).
        fmax: Largest force on an atom, or on the cell where that relaxes too, eV/Å, shape (steps + 1,).
        volume: Å³, shape (steps + 1,); all 0 where the cell does not relax.
        converged: Whether the forces came below the limit.
    """

    energy: NDArray[np.float64]
    fmax: NDArray[np.float64]
    volume: NDArray[np.float64]
    converged: bool

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.energy) - 1


def optimise(
    atoms: Atoms,
    optimiser: type[Optimizer],
    fmax: float,
    steps: int,
    trajectory: Path,
    cell: bool = False,
    pressure: float = 0.0,
    name: str = "relaxing",
    progress: bool = True,
) -> Relaxation:
    """Relax a structure and save it after every step.

    Args:
        atoms: With a calculator; they move.
        optimiser: Any of ASE's.
        fmax: Largest force to reach, eV/Å; with ``cell`` also that of ASE's cell coordinates.
        steps: After which to give up.
        trajectory: File for the structures.
        cell: Whether the cell relaxes too; it must be periodic in all directions.
        pressure: On the cell, GPa.
        name: For the progress bar.
        progress: Whether to show one.

    Raises:
        ValueError: For a cell that cannot relax, or a structure that the potential cannot calculate.
    """
    if cell and not atoms.pbc.all():
        raise ValueError(f"only a cell that is periodic in all directions can relax, but pbc is {atoms.pbc.tolist()}")
    system: Any = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa) if cell else atoms
    rows: list[tuple[float, float, float]] = []
    converged = False
    with (
        TrajectoryWriter(trajectory, "w", atoms) as frames,
        optimiser(system, logfile=None) as dynamics,
        progress_bar(progress, total=steps, desc=name, unit="step") as bar,
    ):
        dynamics.attach(frames)
        for done in dynamics.irun(fmax=fmax, steps=steps):
            converged = bool(done)
            largest = np.linalg.norm(system.get_forces(), axis=1).max()
            rows.append((atoms.get_potential_energy(), largest, atoms.get_volume() if cell else 0.0))
            bar.update(dynamics.nsteps - bar.n)
            bar.set_postfix_str(f"fmax {rows[-1][1]:.4f} eV/Å", refresh=False)
    energy, force, volume = np.array(rows, dtype=np.float64).T
    return Relaxation(energy, force, volume, converged)


def relax_structure(
    atoms: Atoms,
    out: Path,
    optimiser: str = "BFGS",
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    pressure: float = 0.0,
    progress: bool = True,
) -> Relaxation:
    """Relax a structure; ``out`` gets ``relaxed.xyz``, ``relax.traj``, ``log.csv`` and ``relax.png``.

    Args:
        atoms: With a calculator, best in float64: near a minimum the energy changes by less than float32 resolves.
        out: Folder for the files.
        optimiser: One of :data:`OPTIMISERS`.
        fmax, steps, cell, pressure, progress: See :func:`optimise`.

    Raises:
        ValueError: As :func:`optimise`.
        LockedError: If another run is using the folder.
        OSError: For files that cannot be written.
    """
    title = f"Relaxation of {formula_text(atoms.get_chemical_formula())} with {optimiser}"
    with claim_folder(out, FILES) as lock:
        done = optimise(
            atoms, OPTIMISERS[optimiser], fmax, steps, out / TRAJECTORY_FILE, cell, pressure, progress=progress
        )
        lock.check()
        write_atomically(out / STRUCTURE_FILE, lambda path: ase.io.write(path, atoms, format="extxyz"))
        write_text(out / LOG_FILE, _table(done, cell))
        plot_relaxation(done, fmax, out / PICTURE_FILE, title)
    return done


def _table(done: Relaxation, cell: bool) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "energy_eV", "fmax_eV_per_A", *(["volume_A3"] if cell else [])])
    columns = [done.energy, done.fmax, *([done.volume] if cell else [])]
    rows.writerows([step, *map(float, values)] for step, values in enumerate(zip(*columns, strict=True)))
    return text.getvalue()


def plot_relaxation(done: Relaxation, fmax: float, path: Path, title: str = "") -> None:
    """Energy above the last one, and largest force, against the step; logarithmic.

    Args:
        done: What to show.
        fmax: The force that was wanted, eV/Å.
        path: PNG file.
        title: Of the picture.
    """
    with picture(path, rows=2, size=(7, 5.5)) as (top, bottom):
        top.set_title(title)
        # The last energy is the zero and has no logarithm.
        above = 1e3 * np.abs(done.energy[:-1] - done.energy[-1])
        shown = np.flatnonzero(above)
        top.plot(shown, above[shown], "o-", markersize=3, color=COLOURS[0])
        top.set_ylabel("energy above that of\nthe last step (meV)")
        bottom.plot(done.fmax, "o-", markersize=3, color=COLOURS[1])
        bottom.axhline(fmax, color="0.3", linestyle="--", linewidth=1, label=f"wanted: {fmax:g} eV/Å")
        bottom.set_ylabel("largest force (eV/Å)")
        bottom.set_xlabel("optimisation step")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        bottom.legend(loc="upper right")
        if len(shown):
            top.set_yscale("log")
        if np.all(done.fmax > 0):
            bottom.set_yscale("log")
