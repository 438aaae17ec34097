"""Molecular dynamics with trajectory, log and picture, that goes on where it was interrupted."""

from __future__ import annotations

import csv
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ase.io
import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.io.trajectory import TrajectoryWriter
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray
from pydantic import Field

from ponita_ff.files import write_atomically
from ponita_ff.locks import Lock
from ponita_ff.outputs import claim_folder
from ponita_ff.progress import progress_bar
from ponita_ff.provenance import weights_hash
from ponita_ff.settings import Section
from ponita_ff.simulate.frames import as_traj_keeps_it, spread_of, with_results
from ponita_ff.simulate.md_plot import plot_md
from ponita_ff.simulate.plots import formula_text
from ponita_ff.simulate.restart import FileMark, RestartError, State, dynamics_variables, set_dynamics_variables
from ponita_ff.simulate.statistics import Drift, energy_drift
from ponita_ff.structure.bonds import BOND_CHANGE_LIMIT, Bonds, find_bonds
from ponita_ff.uncertainty import UncertainForces, UncertaintyMonitor

__all__ = [
    "MdResult",
    "MdSettings",
    "SimulationError",
    "draw_momenta",
    "hold_centre",
    "is_started",
    "langevin",
    "make_dynamics",
    "read_log",
    "run_files",
    "run_md",
    "steps_of",
]

logger = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0)]

#: In the folder of a run.
STATE_FILE, LOG_FILE, PICTURE_FILE, FINAL_FILE = "state.npz", "log.csv", "md.png", "final.xyz"

#: Settings that may change when a run goes on: they shape nothing that it has done so far.
_FREE = {"steps", "bond_limit", "uncertainty_warning", "uncertainty_limit"}


class SimulationError(ValueError):
    """A run that cannot be done or that has ended badly; the message says why and what can be done."""


class MdSettings(Section):
    """How to run molecular dynamics.

    Attributes:
        ensemble: ``nve`` (velocity Verlet), ``nvt``, or ``npt`` for cells that are periodic in all directions
            (Martyna-Tobias-Klein barostat with Nosé-Hoover chains).
        thermostat: Of ``nvt``: ``langevin`` acts on every atom, ``bussi`` scales all velocities by one random number.
        temperature: K.
        timestep: fs.
        steps: Length of the run.
        seed: Of velocities and thermostat.
        velocities: ``thermal`` draws them from the Maxwell-Boltzmann distribution, scaled to the temperature; ``keep``
            takes those of the structure.
        thermostat_time: Time constant of the thermostat, fs; Langevin friction is its inverse.
        pressure: Of ``npt``, GPa.
        barostat_time: Time constant of the barostat, fs.
        flexible_cell: Whether ``npt`` changes lengths and angles of the cell one by one, not only its volume.
        log_every: fs between rows of the log, checks of the bonds and of a committee's uncertainty.
        frame_every: fs between frames of the trajectory.
        state_every: fs between states that an interrupted run goes on from.
        trajectory: ``traj`` (ASE's, small and exact) or ``xyz`` (extended XYZ, text).
        bond_limit: Å by which a bond may differ from its length at the start before the run ends as broken; None for no
            limit.
        uncertainty_warning: Of a committee: a warning is logged from this standard deviation of an atom's force on,
            eV/Å; None for no warning.
        uncertainty_limit: Of a committee: the run ends from here on, eV/Å; None for no limit.
    """

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    thermostat: Literal["langevin", "bussi"] = "langevin"
    temperature: Positive = 300.0
    timestep: Positive = 0.5
    steps: Annotated[int, Field(ge=1)] = 20_000
    seed: Annotated[int, Field(ge=0)] = 0
    velocities: Literal["thermal", "keep"] = "thermal"
    thermostat_time: Positive = 100.0
    pressure: float = 1e-4
    barostat_time: Positive = 1000.0
    flexible_cell: bool = False
    log_every: Positive = 5.0
    frame_every: Positive = 10.0
    state_every: Positive = 250.0
    trajectory: Literal["traj", "xyz"] = "traj"
    bond_limit: Positive | None = BOND_CHANGE_LIMIT
    uncertainty_warning: Positive | None = 0.2
    uncertainty_limit: Positive | None = None

    def interval(self, femtoseconds: float) -> int:
        """Steps between two things that happen every so many fs."""
        return max(1, round(femtoseconds / self.timestep))


@dataclass(frozen=True)
class MdResult:
    """What a finished run has left.

    Attributes:
        steps: Done in all, over all its parts.
        log: Columns of the log by name, each of shape (rows,).
        drift: Of the total energy, for ``nve`` with enough rows.
        continued_from: Step that this call went on from; 0 for a new run.
        steps_per_second: Of this call; None where nothing was left to do.
        out: The folder with all files.
    """

    steps: int
    log: dict[str, NDArray[np.float64]]
    drift: Drift | None
    continued_from: int
    steps_per_second: float | None
    out: Path


# ------------------------------------------------------------------------------------- parts of a run


def steps_of(picoseconds: float, timestep: float) -> int:
    """How many steps of so many fs a time in ps takes, at least one."""
    return max(1, round(1000 * picoseconds / timestep))


def draw_momenta(atoms: Atoms, temperature: float, generator: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution at a temperature in K; constraints are respected."""
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(width[:, None] * generator.standard_normal((len(atoms), 3)))


def hold_centre(atoms: Atoms) -> None:
    """Hold the centre of mass: overall translation is not thermal motion."""
    atoms.set_constraint(FixCom())


def langevin(
    atoms: Atoms, timestep: float, temperature: float, generator: np.random.Generator, time_constant: float
) -> Langevin:
    """Langevin dynamics (Vanden-Eijnden and Ciccotti 2006, doi:10.1016/j.cplett.2006.07.086).

    Args:
        atoms: Their centre of mass is held by a constraint, if at all (see :func:`hold_centre`).
        timestep: fs.
        temperature: K.
        generator: Source of the random forces.
        time_constant: Inverse of the friction, fs.
    """
    friction = 1.0 / (time_constant * units.fs)
    return Langevin(
        atoms, timestep * units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=generator
    )


def make_dynamics(atoms: Atoms, settings: MdSettings, generator: np.random.Generator) -> MolecularDynamics:
    """The integrator that the settings ask for.

    Args:
        atoms: With calculator, constraints and momenta.
        settings: See :class:`MdSettings`.
        generator: For thermostats that draw random numbers.
    """
    step, time_constant = settings.timestep * units.fs, settings.thermostat_time * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if settings.ensemble == "npt":
        # Martyna, Tobias and Klein 1994, doi:10.1063/1.467468. ASE's chains hold the kinetic energy at 3n k T'/2, but
        # the centre of mass is at rest: 3n T' = (3n − 3) T makes it canonical at T.
        corrected = settings.temperature * (len(atoms) - 1) / len(atoms)
        kind = MTKNPT if settings.flexible_cell else IsotropicMTKNPT
        pressure, barostat_time = settings.pressure * units.GPa, settings.barostat_time * units.fs
        return kind(
            atoms, step, temperature_K=corrected, pressure_au=pressure, tdamp=time_constant, pdamp=barostat_time
        )
    if settings.thermostat == "bussi":
        # Bussi, Donadio and Parrinello 2007, doi:10.1063/1.2408420.
        return Bussi(atoms, step, temperature_K=settings.temperature, taut=time_constant, rng=generator)
    return langevin(atoms, settings.timestep, settings.temperature, generator, settings.thermostat_time)


def _degrees_of_freedom(atoms: Atoms, settings: MdSettings) -> int:
    """Thermal degrees of freedom; ``npt`` has no constraint, but its centre of mass is at rest."""
    return int(atoms.get_number_of_degrees_of_freedom()) - (3 if settings.ensemble == "npt" else 0)


def _check(atoms: Atoms, settings: MdSettings) -> None:
    """Refuse what cannot be run."""
    if len(atoms) < 2:
        raise SimulationError("molecular dynamics needs two atoms or more: one alone has no temperature")
    if settings.ensemble == "npt":
        if not atoms.pbc.all():
            raise SimulationError(
                f"npt needs a cell that is periodic in all directions, but pbc is {atoms.pbc.tolist()}: "
                "choose nve or nvt"
            )
        if atoms.constraints:
            raise SimulationError("npt cannot hold constrained atoms: remove the constraints, or choose nve or nvt")
    if settings.velocities == "keep" and not np.any(atoms.get_momenta()):
        raise SimulationError("the structure has no velocities: leave out --keep-velocities")


def _prepare(atoms: Atoms, settings: MdSettings, generator: np.random.Generator) -> None:
    """Constraints and first momenta."""
    if settings.ensemble != "npt" and not atoms.constraints:
        hold_centre(atoms)
    if settings.velocities == "keep":
        atoms.set_momenta(atoms.get_momenta())  # as far as the constraints allow
        return
    draw_momenta(atoms, settings.temperature, generator)
    if settings.ensemble == "npt":
        Stationary(atoms, preserve_temperature=False)
    found = 2 * atoms.get_kinetic_energy() / (units.kB * _degrees_of_freedom(atoms, settings))
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(settings.temperature / found))


def read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a run's log by name, each of shape (rows,)."""
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return dict(zip(names, values.T, strict=True))


# ------------------------------------------------------------------------------------------- a run


def run_md(atoms: Atoms, settings: MdSettings, out: Path, progress: bool = True) -> MdResult:
    """Run molecular dynamics, or go on with an interrupted run in the same folder.

    A state is saved at the start and every ``state_every`` fs: positions, momenta, cell, step, thermostat, barostat and
    random-number generator, in double precision. A run that was killed goes on from the last one; what trajectory and
    log hold beyond it is cut off. At each state the calculator discards its neighbour list, so that on the same machine
    with the same number of threads the continued run is the uninterrupted one to the last bit, in every ensemble. On a
    GPU, or with another backend or number of threads, sums may be rounded differently and the two part slowly.

    Args:
        atoms: The start, with a calculator; it moves. Its constraints are kept; without any, the centre of mass is
            held.
        settings: See :class:`MdSettings`. Those of an interrupted run must be the same, but for a longer run and other
            limits.
        out: Folder; it gets ``trajectory.traj`` or ``.xyz``, ``log.csv``, ``md.png``, ``final.xyz`` and ``state.npz``.
        progress: Whether to show a progress bar.

    Raises:
        SimulationError: For what cannot be run, and for a run that ended before its time: a broken bond, forces that
            are not finite, a committee beyond its limit. The files then show what led there.
        RestartError: Where ``out`` holds a run of something else, or damaged files.
        LockedError: If another run is using the folder.
        OSError: For files that cannot be written.
    """
    run = _Run(atoms, settings, out)
    with claim_folder(out, run_files(settings)) as lock:
        return run.run(progress, lock)


def is_started(out: Path) -> bool:
    """Whether a folder holds a run that can go on."""
    return (out / STATE_FILE).is_file()


def run_files(settings: MdSettings) -> tuple[str, ...]:
    """Names of the files that a run writes into its folder."""
    return (f"trajectory.{settings.trajectory}", LOG_FILE, PICTURE_FILE, FINAL_FILE, STATE_FILE)


class _Run:
    """One run in its folder: files, what is looked at, and the loop over steps."""

    def __init__(self, atoms: Atoms, settings: MdSettings, out: Path) -> None:
        _check(atoms, settings)
        self.atoms, self.settings, self.out = atoms, settings, out
        self.trajectory = out / f"trajectory.{settings.trajectory}"
        self.log = out / LOG_FILE
        self.bonds: Bonds = find_bonds(atoms)
        self.constraints = list(atoms.constraints)
        self.start, self.start_cell = atoms.positions.copy(), atoms.cell.array.copy()
        self.generator = np.random.default_rng(settings.seed)
        self.monitor: UncertaintyMonitor | None = None
        if len(getattr(atoms.calc, "potentials", ())) > 1:
            self.monitor = UncertaintyMonitor(atoms, settings.uncertainty_warning, settings.uncertainty_limit)
        self.step = 0
        self.open_files: list[Any] = []

    def run(self, progress: bool, lock: Lock) -> MdResult:
        """All that is left to do; the lock is that of the folder."""
        self.lock = lock
        out, settings = self.out, self.settings
        state = State.load(out / STATE_FILE) if (out / STATE_FILE).exists() else None
        if state is not None:
            self._check_same(state)
        _prepare(self.atoms, settings, self.generator)
        self.dynamics: Any = make_dynamics(self.atoms, settings, self.generator)
        self.degrees_of_freedom = _degrees_of_freedom(self.atoms, settings)
        try:
            if state is None:
                self._begin()
            else:
                self._restore(state)
            first, began = self.step, time.perf_counter()
            self._loop(progress)
        except SimulationError:
            self._close()
            self._plot()  # it shows what led to the end
            raise
        finally:
            self._close()
        self._plot()
        speed = None
        if self.step > first:
            speed = (self.step - first) / (time.perf_counter() - began)
            write_atomically(out / FINAL_FILE, lambda path: ase.io.write(path, self._frame(), format="extxyz"))
        log = read_log(self.log)
        return MdResult(self.step, log, self._drift(log), first, speed, out)

    def _identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        potentials = [weights_hash(potential.state_dict()) for potential in getattr(self.atoms.calc, "potentials", ())]
        return {**self.settings.model_dump(mode="json", exclude=_FREE), "potentials": potentials}

    def _check_same(self, state: State) -> None:
        """Refuse to go on with a run of something else."""
        before, now = state.identity, self._identity()
        wrong = [name for name in now if now[name] != before.get(name)]
        if "potentials" in wrong:
            raise RestartError(
                f"{self.out} holds a run with another potential or dtype: give the same one, or another folder (--out)"
            )
        if wrong:
            kept = ", ".join(f"{name}: {before.get(name)}" for name in wrong)
            raise RestartError(
                f"{self.out} holds a run with other settings: go on with {kept}, or give another folder (--out)"
            )
        same = np.array_equal(state.numbers, self.atoms.numbers) and np.array_equal(state.start, self.start)
        if not (same and np.array_equal(state.start_cell, self.start_cell)):
            raise RestartError(
                f"{self.out} holds a run from another structure: give the same one, or another folder (--out)"
            )

    def _begin(self) -> None:
        """First row of the log, first frame, first state."""
        row = self._observe()  # atoms that cannot be calculated are refused before any file is made
        self.out.mkdir(parents=True, exist_ok=True)
        self._open("w")
        self.rows.writerow(row)
        self.rows.writerow(row.values())
        self._write_frame()
        self._save()

    def _restore(self, state: State) -> None:
        """Go back to a saved state."""
        for name, mark in state.marks.items():
            mark.cut_back(self.out / name)
        self.atoms.set_cell(state.cell, scale_atoms=False, apply_constraint=False)
        self.atoms.set_positions(state.positions, apply_constraint=False)
        self.atoms.set_momenta(state.momenta, apply_constraint=False)
        self.generator.bit_generator.state = state.generator
        set_dynamics_variables(self.dynamics, state.variables)
        self.step = self.dynamics.nsteps = state.step
        self._observe()  # as the run before had done: the calculator computes stress always once it was asked for
        self._open("a")

    def _loop(self, progress: bool) -> None:
        """Steps until the end, looking at the run and writing on the way."""
        settings, total = self.settings, self.settings.steps
        log_every, frame_every = settings.interval(settings.log_every), settings.interval(settings.frame_every)
        state_every = settings.interval(settings.state_every)
        name = settings.ensemble.upper()
        show = progress and self.step < total
        with progress_bar(show, total=total, initial=min(self.step, total), desc=name, unit="step") as bar:
            while self.step < total:
                ahead = min(
                    total, *(every * (self.step // every + 1) for every in (log_every, frame_every, state_every))
                )
                self._advance(ahead - self.step)
                if self.step % log_every == 0 or self.step == total:
                    row = self._observe()
                    self.rows.writerow(row.values())
                    self._check_run(row)
                    bar.set_postfix_str(f"{row['temperature_K']:.0f} K", refresh=False)
                if self.step % frame_every == 0:
                    self._write_frame()
                if self.step % state_every == 0 or self.step == total:
                    self._save()
                bar.update(self.step - bar.n)

    def _advance(self, steps: int) -> None:
        """So many steps."""
        try:
            with np.errstate(all="ignore"):  # atoms that fly apart overflow; the calculator then says so
                for _ in range(steps):
                    self.dynamics.step()
                    self.dynamics.nsteps += 1
                    self.step += 1
        except ValueError as error:
            raise SimulationError(f"the run ended after {self._time():.3f} ps: {error}") from error

    def _time(self) -> float:
        """ps."""
        return self.step * self.settings.timestep / 1000

    def _observe(self) -> dict[str, float]:
        """A row of the log."""
        atoms = self.atoms
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        row = {
            "step": self.step,
            "time_ps": self._time(),
            "potential_eV": float(potential),
            "kinetic_eV": float(kinetic),
            "total_eV": float(potential + kinetic),
            "temperature_K": float(2 * kinetic / (units.kB * self.degrees_of_freedom)),
            "bond_change_A": self.bonds.largest_change(atoms),
        }
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False, include_ideal_gas=True, apply_constraint=False)
            row["pressure_GPa"] = float(-np.trace(stress) / 3 / units.GPa)
            row["volume_A3"] = float(atoms.get_volume())
        if self.monitor is not None:
            spread = atoms.calc.results["forces_std"]
            row["forces_std_eV_per_A"] = float(np.linalg.norm(spread, axis=1).max())
        return row

    def _check_run(self, row: dict[str, float]) -> None:
        """End a run with a broken bond or too high an uncertainty: write a last frame, keep the previous state."""
        limit = self.settings.bond_limit
        try:
            if self.monitor is not None:
                self.monitor()
        except UncertainForces as error:
            self._write_frame()
            raise SimulationError(f"the run ended after {self._time():.3f} ps: {error}") from error
        if limit is not None and not row["bond_change_A"] <= limit:
            self._write_frame()
            raise SimulationError(
                f"broken after {self._time():.3f} ps: {self.bonds.describe_largest_change(self.atoms)}, more than the "
                f"limit of {limit:g} Å; --allow-broken goes on"
            )

    # ---------------------------------------------------------------------------------------- files

    def _open(self, mode: Literal["w", "a"]) -> None:
        log = self.log.open(mode, newline="", encoding="utf-8")
        self.open_files.append(log)
        self.rows = csv.writer(log)
        binary = self.settings.trajectory == "traj"
        self.frames: Any = (
            TrajectoryWriter(self.trajectory, mode) if binary else self.trajectory.open(mode, encoding="utf-8")
        )
        self.open_files.append(self.frames)

    def _close(self) -> None:
        while self.open_files:
            self.open_files.pop().close()

    def _frame(self) -> Atoms:
        """The present structure with its energy, forces and, where there are any, stress and spread."""
        atoms = self.atoms
        values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(apply_constraint=False)}
        if atoms.pbc.all():
            values["stress"] = atoms.get_stress(apply_constraint=False)
        frame = with_results(atoms, {**values, **spread_of(atoms.calc)})
        frame.set_constraint(self.constraints)
        frame.info["time_ps"] = self._time()
        return frame

    def _write_frame(self) -> None:
        if self.settings.trajectory == "traj":
            self.frames.write(as_traj_keeps_it(self._frame()))
        else:
            ase.io.write(self.frames, self._frame(), format="extxyz")

    def _save(self) -> None:
        """Put all files on the disk, then the state that marks how far they go."""
        self.lock.check()
        self._close()
        State(
            identity=self._identity(),
            numbers=self.atoms.numbers,
            start=self.start,
            start_cell=self.start_cell,
            step=self.step,
            positions=self.atoms.positions,
            momenta=self.atoms.get_momenta(),
            cell=self.atoms.cell.array,
            generator=dict(self.generator.bit_generator.state),
            variables=dynamics_variables(self.dynamics),
            marks={path.name: FileMark.of(path) for path in (self.trajectory, self.log)},
        ).save(self.out / STATE_FILE)
        self._open("a")
        if hasattr(self.atoms.calc, "discard_state"):
            self.atoms.calc.discard_state()

    def _plot(self) -> None:
        log = read_log(self.log)
        if len(log["step"]) > 1:
            limit = self.settings.bond_limit if len(self.bonds) else None
            target = None if self.settings.ensemble == "nve" else self.settings.temperature
            plot_md(log, self._title(), self.out / PICTURE_FILE, target, limit, self._drift(log))

    def _title(self) -> str:
        settings = self.settings
        name = settings.ensemble.upper() + (f" ({settings.thermostat.title()})" if settings.ensemble == "nvt" else "")
        wanted = "" if settings.ensemble == "nve" else f", {settings.temperature:g} K"
        if settings.ensemble == "npt":
            wanted += f", {settings.pressure:g} GPa"
        return f"{formula_text(self.atoms.get_chemical_formula())}, {name}{wanted}, steps of {settings.timestep:g} fs"

    def _drift(self, log: dict[str, NDArray[np.float64]]) -> Drift | None:
        if self.settings.ensemble != "nve" or len(log["step"]) < 20:
            return None
        return energy_drift(log["time_ps"], log["total_eV"], len(self.atoms))
