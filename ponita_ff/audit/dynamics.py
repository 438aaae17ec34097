"""Checks: molecular dynamics must keep the energy (NVE) and the molecule (NVT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.subject import Bonds, Subject

__all__ = ["Drift", "NveRun", "energy_drift", "nve_drift", "nvt_stability", "run_nve", "run_nvt", "thermal_momenta"]

#: Blocks whose means the error of a drift is estimated from.
BLOCKS = 10


@dataclass
class NveRun:
    """What a run recorded, equally spaced in time.

    Attributes:
        time: ps.
        energy: Total energy, meV/atom.
        temperature: K.
        bond_change: Largest change of a bond since the start, Å; 0 where there are no bonds.
    """

    time: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    bond_change: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Drift:
    """Drift of the total energy by linear regression.

    Attributes:
        slope: meV/atom/ns.
        error: Its standard error, from block means.
        rms: Root mean square of the fluctuation about the line, meV/atom.
    """

    slope: float
    error: float
    rms: float


def degrees_of_freedom(atoms: Atoms) -> int:
    """Of motion at rest as a whole: 3n − 3 for periodic structures, 3n − 6 for molecules (3n − 5 for two atoms)."""
    if len(atoms) == 1:
        return 3
    return 3 * len(atoms) - (3 if atoms.pbc.any() else min(6, 3 + len(atoms)))


def temperature_of(atoms: Atoms) -> float:
    """Kinetic temperature in K of atoms that are at rest as a whole and do not turn."""
    return float(2 * atoms.get_kinetic_energy() / (units.kB * degrees_of_freedom(atoms)))


def thermal_momenta(atoms: Atoms, temperature: float, generator: np.random.Generator) -> None:
    """Momenta drawn from the Maxwell–Boltzmann distribution and scaled to exactly K.

    At rest as a whole and, for molecules, not turning (one atom alone keeps its momentum).
    """
    width = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(width * generator.normal(size=(len(atoms), 3)))
    if len(atoms) > 1:
        Stationary(atoms)
        if not atoms.pbc.any():
            ZeroRotation(atoms)
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / temperature_of(atoms)))


def run_nve(
    atoms: Atoms,
    timestep: float,
    picoseconds: float,
    bonds: Bonds | None = None,
    every: int = 10,
    progress: Callable[[NveRun], None] | None = None,
) -> NveRun:
    """Velocity Verlet from the atoms' momenta.

    Args:
        atoms: With a calculator; they move.
        timestep: fs.
        picoseconds: Length.
        bonds: Whose change is recorded.
        every: Steps between records.
        progress: Called after every record with the run so far.
    """
    dynamics, run = VelocityVerlet(atoms, timestep * units.fs), NveRun()

    def record() -> None:
        run.time.append(dynamics.get_time() / (1000 * units.fs))
        run.energy.append(1e3 * atoms.get_total_energy() / len(atoms))
        run.temperature.append(temperature_of(atoms))
        run.bond_change.append(bonds.largest_change(atoms) if bonds is not None and len(bonds) else 0.0)
        if progress is not None:
            progress(run)

    dynamics.attach(record, interval=every)
    dynamics.run(max(1, round(1000 * picoseconds / timestep)))
    return run


def energy_drift(run: NveRun) -> Drift:
    """Linear regression of total energy on time; the error is that of a line through the means of 10 blocks.

    Energies of neighbouring steps go up and down together, so that the usual standard error would be far too small;
    means of blocks longer than the correlation time are nearly independent (Flyvbjerg and Petersen 1989,
    doi:10.1063/1.457480).

    Raises:
        ValueError: For fewer than two records per block.
    """
    time, energy = np.array(run.time), np.array(run.energy)
    size = len(time) // BLOCKS
    if size < 2:
        raise ValueError(f"{len(time)} records are too few for a drift: at least {2 * BLOCKS} are needed")
    slope, offset = np.polyfit(time, energy, 1)
    t, e = (values[: BLOCKS * size].reshape(BLOCKS, size).mean(axis=1) for values in (time, energy))
    residual = e - np.polyval(np.polyfit(t, e, 1), t)
    error = np.sqrt(np.sum(residual**2) / (BLOCKS - 2) / np.sum((t - t.mean()) ** 2))
    return Drift(1e3 * float(slope), 1e3 * float(error), float(np.std(energy - slope * time - offset)))


def nve_drift(subject: Subject) -> Outcome:
    """Drift of the total energy at several time steps, from the relaxed structure with twice the thermal energy.

    Half of it goes into the potential energy, so that the run is near the temperature of the settings. Verlet's total
    energy is off by a term in the time step squared that fast vibrations make; while they share their energy with slow
    ones, in the first picoseconds, it wanders by about its own fluctuation. No run is failed for a change of that size:
    the error is then at least the fluctuation over the run's length.

    Arrays: one mapping per time step with ``time`` (k,) ps, ``energy`` (k,) meV/atom from the first record,
    ``temperature`` (k,) K.
    """
    settings = subject.settings.nve
    measures, arrays, notes = [], {}, []
    for timestep in settings.timesteps:
        run = _thermal_nve(subject, timestep)
        drift = energy_drift(run)
        limit = settings.limit if timestep <= settings.judged else None
        name = f"NVE drift at {timestep:g} fs"
        measure = Measure(name, drift.slope, "meV/atom/ns", limit, error=drift.error)
        if measure.verdict == "fail":
            measure = replace(measure, error=max(drift.error, 1e3 * drift.rms / run.time[-1]))
        if measure.verdict == "not done":
            measure = replace(measure, note="the run is too short to tell (nve.picoseconds)")
        measures.append(measure)
        energy, temperature = np.array(run.energy), np.array(run.temperature)
        arrays[f"{timestep:g} fs"] = {
            "time": np.array(run.time),
            "energy": energy - energy[0],
            "temperature": temperature,
        }
        notes.append(f"{timestep:g} fs: fluctuation {drift.rms:.3g} meV/atom, mean {temperature.mean():.0f} K.")
    return Outcome(measures, arrays, notes)


def _thermal_nve(subject: Subject, timestep: float) -> NveRun:
    """One run under a progress bar, with at least 200 records."""
    picoseconds = subject.settings.nve.picoseconds
    atoms = subject.attach(subject.relaxed.atoms)
    thermal_momenta(atoms, 2 * subject.settings.temperature, subject.generator(6))
    total = max(1, round(1000 * picoseconds / timestep))
    every = max(1, min(round(5.0 / timestep), total // 200))
    name = f"NVE {timestep:g} fs"
    with tqdm(total=total, desc=name, unit="step", leave=False, disable=not subject.progress) as bar:

        def progress(run: NveRun) -> None:
            bar.update(round(1000 * run.time[-1] / timestep) - bar.n)

        return run_nve(atoms, timestep, picoseconds, None, every, progress)


@dataclass
class NvtRun:
    """A Langevin run up to its end or the loss of a bond.

    Attributes:
        time: ps, equally spaced.
        bond_change: Largest change of a bond from its reference length, Å.
        temperature: K.
        snapshots: Geometries on the way.
        broken_at: ps; None for a stable run.
        why: What ended it, where that was an error of the calculator.
    """

    time: list[float] = field(default_factory=list)
    bond_change: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    snapshots: list[Atoms] = field(default_factory=list)
    broken_at: float | None = None
    why: str = ""


def run_nvt(subject: Subject, temperature: float) -> NvtRun:
    """Langevin dynamics at K until a bond has moved too far, or to the end; every 5 fs is looked at."""
    settings = subject.settings.nvt
    generator = subject.generator(7, round(temperature))
    atoms = subject.attach(subject.relaxed.atoms)
    thermal_momenta(atoms, temperature, generator)
    if not subject.periodic and len(atoms) > 1:
        atoms.set_constraint(FixCom())  # a molecule in vacuum would drift away, and its drift is no heat of interest
    friction = 1.0 / (settings.friction_fs * units.fs)
    step = settings.timestep * units.fs
    dynamics = Langevin(atoms, step, temperature_K=temperature, friction=friction, fixcm=False, rng=generator)
    run, every = NvtRun(), max(1, round(5.0 / settings.timestep))
    parts = max(1, round(1000 * settings.picoseconds / settings.timestep / every))
    keep = max(1, parts // 200)
    bar = tqdm(range(parts), desc=f"NVT {temperature:g} K", unit="5 fs", leave=False, disable=not subject.progress)
    for part in bar:
        time = (part + 1) * every * settings.timestep / 1000
        try:
            with np.errstate(all="ignore"):  # atoms that fly apart overflow: that is what is looked for
                dynamics.run(every)
        except Exception as error:  # any calculator may raise anything at absurd geometries: the run has ended
            run.broken_at, run.why = time, f"{type(error).__name__}: {error}"
            break
        run.time.append(time)
        run.bond_change.append(subject.bonds.largest_change(atoms))
        run.temperature.append(atoms.get_temperature())
        if not run.bond_change[-1] <= settings.bond_change:  # NaN is broken too
            run.broken_at = time
            break
        if part % keep == 0:
            run.snapshots.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    bar.close()
    return run


def nvt_stability(subject: Subject) -> Outcome:
    """Time until a bond differs by more than 0.5 Å from its length in the given structure, at several temperatures.

    The criterion is that of Fu et al., "Forces are not enough", arXiv:2210.07237.

    Arrays: one mapping per temperature with ``time`` (k,) ps, ``bond_change`` (k,) Å, ``temperature`` (k,) K,
    and the ``limit`` in Å.
    """
    settings = subject.settings.nvt
    if len(subject.bonds) == 0:
        raise NotDone("the structure has no bonds (no pair within 1.2 times the sum of covalent radii)")
    measures, arrays, notes = [], {}, []
    for factor in settings.factors:
        temperature = factor * subject.settings.temperature
        run = run_nvt(subject, temperature)
        subject.snapshots[temperature] = run.snapshots
        stable = settings.picoseconds if run.broken_at is None else run.broken_at
        name = f"stable time at {temperature:g} K"
        # A run that broke has failed even where rounding puts its time at the whole length.
        value = stable if run.broken_at is None else min(stable, np.nextafter(settings.picoseconds, 0.0))
        measures.append(Measure(name, float(value), "ps", settings.picoseconds, "at least"))
        arrays[f"{temperature:g} K"] = {
            "time": np.array(run.time),
            "bond_change": np.array(run.bond_change),
            "temperature": np.array(run.temperature),
            "limit": settings.bond_change,
        }
        if run.broken_at is not None:
            notes.append(f"{temperature:g} K: broken at {run.broken_at:.3f} ps. {run.why}".strip())
        else:
            largest, mean = max(run.bond_change), np.mean(run.temperature)
            notes.append(f"{temperature:g} K: no bond moved by more than {largest:.2f} Å; mean {mean:.0f} K.")
    return Outcome(measures, arrays, notes)
