"""Relaxation of positions and cell, with trajectory, log and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
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
from ase.outputs import all_outputs
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ponita_ff.files import write_atomically, write_text
from ponita_ff.outputs import claim_folder
from ponita_ff.progress import progress_bar
from ponita_ff.simulate.frames import as_traj_keeps_it, spread_of, with_results
from ponita_ff.simulate.plots import COLOURS, formula_text, picture
from ponita_ff.structure.bonds import BOND_CHANGE_LIMIT, find_bonds
from ponita_ff.structure.rigid import FixRigidMotion

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
        fmax: Largest force on an atom, or on the cell where that relaxes too, eV/Å, shape (steps + 1,). Of a molecule
            whose overall motion was held: without net force and net torque.
        volume: Å³, shape (steps + 1,); all 0 where the cell does not relax.
        converged: Whether the forces came below the limit.
        unprojected_fmax: The largest force on an atom of the last structure with net force and net torque, which a
            potential has whose energy depends on how the molecule is turned, eV/Å. None where nothing was held.
        broken: Of a molecule, the bond that broke, in words; empty if none did.
    """

    energy: NDArray[np.float64]
    fmax: NDArray[np.float64]
    volume: NDArray[np.float64]
    converged: bool
    unprojected_fmax: float | None = None
    broken: str = ""

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
    hold_rigid_motion: bool = True,
) -> Relaxation:
    """Relax a structure and save it after every step.

    Translation and rotation of a molecule without periodicity and without constraints are held meanwhile
    (:class:`ponita_ff.FixRigidMotion`): the network's grid of orientations is finite, and turning the molecule would be
    the softest mode.

    Args:
        atoms: With a calculator; they move. Constraints are kept.
        optimiser: Any of ASE's.
        fmax: Largest force to reach, eV/Å; with ``cell`` also that of ASE's cell coordinates.
        steps: After which to give up.
        trajectory: File for the structures.
        cell: Whether the cell relaxes too; it must be periodic in all directions.
        pressure: On the cell, GPa.
        name: For the progress bar.
        progress: Whether to show one.
        hold_rigid_motion: False to leave a molecule free to turn, for energies that do depend on its orientation.

    Raises:
        ValueError: For a cell that cannot relax, or a structure that the potential cannot calculate.
    """
    if cell and not atoms.pbc.all():
        raise ValueError(f"only a cell that is periodic in all directions can relax, but pbc is {atoms.pbc.tolist()}")
    system: Any = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa) if cell else atoms
    rows: list[tuple[float, float, float]] = []
    converged, start = False, atoms.copy()
    free = hold_rigid_motion and not atoms.pbc.any() and not atoms.constraints
    with (
        TrajectoryWriter(trajectory, "w") as frames,
        _rigid_motion_held(atoms, free),
        optimiser(system, logfile=None) as dynamics,
        progress_bar(progress, total=steps, desc=name, unit="step") as bar,
    ):
        dynamics.attach(lambda: frames.write(as_traj_keeps_it(_frame(atoms, free))))
        for done in dynamics.irun(fmax=fmax, steps=steps):
            converged = bool(done)
            largest = np.linalg.norm(system.get_forces(), axis=1).max()
            rows.append((atoms.get_potential_energy(), largest, atoms.get_volume() if cell else 0.0))
            bar.update(dynamics.nsteps - bar.n)
            bar.set_postfix_str(f"fmax {rows[-1][1]:.4f} eV/Å", refresh=False)
    energy, force, volume = np.array(rows, dtype=np.float64).T
    residual = float(np.linalg.norm(atoms.get_forces(), axis=1).max()) if free else None
    return Relaxation(energy, force, volume, converged, residual, _broken_bond(start, atoms))


@contextmanager
def _rigid_motion_held(atoms: Atoms, hold: bool) -> Iterator[None]:
    """Hold translation and rotation for as long as the context lasts."""
    if not hold:
        yield
        return
    atoms.set_constraint(FixRigidMotion())
    try:
        yield
    finally:
        atoms.set_constraint()


def _frame(atoms: Atoms, held: bool = False) -> Atoms:
    """The present structure with all results, and without the constraint that holds it."""
    results = {name: value for name, value in atoms.calc.results.items() if name in all_outputs}
    frame = with_results(atoms, {**results, **spread_of(atoms.calc)})
    if held:
        frame.set_constraint()
    return frame


def _broken_bond(start: Atoms, atoms: Atoms) -> str:
    """Of a molecule, what happened to a bond that has changed too much to be one; else nothing."""
    if atoms.pbc.any():
        return ""
    bonds = find_bonds(start)
    return bonds.describe_largest_change(atoms) if bonds.largest_change(atoms) > BOND_CHANGE_LIMIT else ""


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
        write_atomically(out / STRUCTURE_FILE, lambda path: ase.io.write(path, _frame(atoms), format="extxyz"))
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
