"""Checks: molecular dynamics conserves the energy (NVE) and keeps the bonds (NVT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import AuditTarget
from ponita_ff.progress import progress_bar
from ponita_ff.structure.bonds import Bonds

__all__ = [
    "EnergyDrift",
    "NveRun",
    "NvtRun",
    "degrees_of_freedom",
    "energy_drift",
    "kinetic_temperature",
    "nve_drift",
    "nvt_stability",
    "run_nve",
    "run_nvt",
    "thermal_momenta",
]

#: Number of blocks whose means the standard error of a drift is estimated from.
BLOCKS = 10

#: Time between records, fs, and the smallest number of records of an NVE run.
_RECORD_INTERVAL, _MIN_RECORDS = 5.0, 200

#: Largest number of snapshots of an NVT run.
_SNAPSHOTS = 200


@dataclass
class NveRun:
    """Records of an NVE run, equally spaced in time.

    Attributes:
        time: Time, ps.
        energy: Total energy, meV/atom.
        temperature: Kinetic temperature, K.
        bond_change: Largest change of a bond length since the start, Å; 0 if there are no bonds.
    """

    time: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    bond_change: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class EnergyDrift:
    """Drift of the total energy by linear regression.

    Attributes:
        slope: Drift, meV/atom/ns.
        standard_error: Standard error of the drift from block means, meV/atom/ns.
        fluctuation: Root mean square deviation from the regression line, meV/atom.
    """

    slope: float
    standard_error: float
    fluctuation: float


def degrees_of_freedom(atoms: Atoms) -> int:
    """Return the degrees of freedom without overall motion.

    3n − 3 for periodic structures; 3n − 6 for molecules, 3n − 5 for two atoms; 3 for a single atom.
    """
    if len(atoms) == 1:
        return 3
    return 3 * len(atoms) - (3 if atoms.pbc.any() else min(6, 3 + len(atoms)))


def kinetic_temperature(atoms: Atoms) -> float:
    """Return the kinetic temperature of atoms without overall translation and rotation, K."""
    return float(2 * atoms.get_kinetic_energy() / (units.kB * degrees_of_freedom(atoms)))


def thermal_momenta(atoms: Atoms, temperature: float, generator: np.random.Generator) -> None:
    """Set momenta from the Maxwell–Boltzmann distribution, scaled to exactly the given temperature.

    Overall translation and, for molecules, rotation are removed; a single atom keeps its momentum.

    Args:
        atoms: Atoms whose momenta are set.
        temperature: Kinetic temperature, K; see `degrees_of_freedom`.
        generator: Source of the random numbers.
    """
    # ASE 3.29 deprecates its function for this, and earlier versions do not have the new one.
    width = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(width * generator.normal(size=(len(atoms), 3)))
    if len(atoms) > 1:
        Stationary(atoms)
        if not atoms.pbc.any():
            with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 about the axis of a linear one, not used
                ZeroRotation(atoms)
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / kinetic_temperature(atoms)))


def run_nve(
    atoms: Atoms,
    timestep: float,
    picoseconds: float,
    bonds: Bonds | None = None,
    every: int = 10,
    progress: Callable[[NveRun], None] | None = None,
) -> NveRun:
    """Run velocity Verlet dynamics from the given momenta.

    Args:
        atoms: Atoms with a calculator and momenta; they are moved.
        timestep: Time step, fs.
        picoseconds: Length of the run, ps.
        bonds: Bonds whose change is recorded, or None.
        every: Steps between records.
        progress: Called after every record with the run so far.
    """
    dynamics, run = VelocityVerlet(atoms, timestep * units.fs), NveRun()

    def record() -> None:
        run.time.append(dynamics.get_time() / (1000 * units.fs))
        run.energy.append(1e3 * atoms.get_total_energy() / len(atoms))
        run.temperature.append(kinetic_temperature(atoms))
        run.bond_change.append(bonds.largest_change(atoms) if bonds is not None and len(bonds) else 0.0)
        if progress is not None:
            progress(run)

    dynamics.attach(record, interval=every)
    dynamics.run(max(1, round(1000 * picoseconds / timestep)))
    return run


def energy_drift(run: NveRun) -> EnergyDrift:
    """Return the drift of the total energy by linear regression on time.

    The standard error is that of a regression through the means of 10 blocks. Energies of neighbouring steps are
    correlated, so that the usual standard error would be far too small; means of blocks longer than the correlation
    time are nearly independent (Flyvbjerg and Petersen 1989, doi:10.1063/1.457480).

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
    return EnergyDrift(1e3 * float(slope), 1e3 * float(error), float(np.std(energy - slope * time - offset)))


def nve_drift(target: AuditTarget) -> CheckResult:
    """Measure the drift of the total energy at several time steps.

    Runs start from the relaxed structure with momenta of twice the temperature: half of the kinetic energy becomes
    potential energy, so that the run is near the temperature of the settings.

    The energy of velocity Verlet differs from the conserved one by a term of second order in the time step, which comes
    from the fast vibrations. While these exchange energy with slow ones, in the first picoseconds, the total energy
    changes by about its own fluctuation. A run does not fail for a change of that size: the standard error is then at
    least the fluctuation divided by the length of the run.

    Returns:
        One mapping of arrays per time step: ``time`` (k,), ps; ``energy`` (k,), meV/atom, relative to the first record;
        ``temperature`` (k,), K.
    """
    settings = target.settings.nve
    measurements, arrays, notes = [], {}, []
    for timestep in settings.timesteps:
        run = _thermal_nve(target, timestep)
        drift = energy_drift(run)
        limit = settings.limit if timestep <= settings.max_assessed_timestep else None
        name = f"NVE drift at {timestep:g} fs"
        measurement = Measurement(name, drift.slope, "meV/atom/ns", limit, standard_error=drift.standard_error)
        if measurement.verdict == "fail":
            at_least = 1e3 * drift.fluctuation / run.time[-1]
            measurement = replace(measurement, standard_error=max(drift.standard_error, at_least))
        if measurement.verdict == "inconclusive":
            measurement = replace(measurement, note="the run is too short to tell (nve.picoseconds)")
        measurements.append(measurement)
        energy, temperature = np.array(run.energy), np.array(run.temperature)
        arrays[f"{timestep:g} fs"] = {
            "time": np.array(run.time),
            "energy": energy - energy[0],
            "temperature": temperature,
        }
        notes.append(f"{timestep:g} fs: fluctuation {drift.fluctuation:.3g} meV/atom, mean {temperature.mean():.0f} K.")
    return CheckResult(measurements, arrays, notes)


def _thermal_nve(target: AuditTarget, timestep: float) -> NveRun:
    """Run one NVE simulation with a progress bar and at least 200 records."""
    picoseconds = target.settings.nve.picoseconds
    atoms = target.attach(target.relaxed.atoms)
    thermal_momenta(atoms, 2 * target.settings.temperature, target.generator(6))
    total = max(1, round(1000 * picoseconds / timestep))
    every = max(1, min(round(_RECORD_INTERVAL / timestep), total // _MIN_RECORDS))
    name = f"NVE {timestep:g} fs"
    with progress_bar(target.progress, total=total, desc=name, unit="step", leave=False) as bar:

        def progress(run: NveRun) -> None:
            bar.update(round(1000 * run.time[-1] / timestep) - bar.n)

        return run_nve(atoms, timestep, picoseconds, None, every, progress)


@dataclass
class NvtRun:
    """Records of a Langevin run up to its end or until a bond breaks.

    Attributes:
        time: Time, ps, equally spaced.
        bond_change: Largest change of a bond from its length in the given structure, Å.
        temperature: Kinetic temperature, K.
        snapshots: Geometries, equally spaced in time.
        broken_at: Time at which a bond broke or the calculator failed, ps; None for a stable run.
        error: Exception raised by the calculator, as text; empty if there was none.
    """

    time: list[float] = field(default_factory=list)
    bond_change: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    snapshots: list[Atoms] = field(default_factory=list)
    broken_at: float | None = None
    error: str = ""


def run_nvt(target: AuditTarget, temperature: float) -> NvtRun:
    """Run Langevin dynamics from the relaxed structure until a bond breaks, or to the end; tested every 5 fs.

    Args:
        target: Calculator, structure and settings (``nvt``).
        temperature: Temperature of the thermostat, K.
    """
    settings = target.settings.nvt
    generator = target.generator(7, round(temperature))
    atoms = target.attach(target.relaxed.atoms)
    thermal_momenta(atoms, temperature, generator)
    if not target.periodic and len(atoms) > 1:
        atoms.set_constraint(FixCom())  # the drift of a molecule in vacuum is no heat
    dynamics = Langevin(
        atoms,
        settings.timestep * units.fs,
        temperature_K=temperature,
        friction=1.0 / (settings.relaxation_time * units.fs),
        fixcm=False,
        rng=generator,
    )
    run, every = NvtRun(), max(1, round(_RECORD_INTERVAL / settings.timestep))
    records = max(1, round(1000 * settings.picoseconds / settings.timestep / every))
    keep = max(1, records // _SNAPSHOTS)
    name = f"NVT {temperature:g} K"
    bar = progress_bar(target.progress, iterable=range(records), desc=name, unit="5 fs", leave=False)
    for record in bar:
        time = (record + 1) * every * settings.timestep / 1000
        try:
            with np.errstate(all="ignore"):  # positions of a molecule that falls apart may overflow
                dynamics.run(every)
        except Exception as error:  # any calculator may raise anything at unphysical geometries
            run.broken_at, run.error = time, f"{type(error).__name__}: {error}"
            break
        run.time.append(time)
        run.bond_change.append(target.bonds.largest_change(atoms))
        run.temperature.append(atoms.get_temperature())
        if not run.bond_change[-1] <= settings.bond_change_limit:  # true for NaN, too
            run.broken_at = time
            break
        if record % keep == 0:
            run.snapshots.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    bar.close()
    return run


def nvt_stability(target: AuditTarget) -> CheckResult:
    """Measure the time until a bond differs by more than 0.5 Å from its length in the given structure.

    The criterion is that of Fu et al., "Forces are not enough", arXiv:2210.07237.

    Returns:
        One mapping of arrays per temperature: ``time`` (k,), ps; ``bond_change`` (k,), Å; ``temperature`` (k,), K; and
        the ``limit`` of the bond change, Å.

    Raises:
        CheckSkipped: If the structure has no bonds.
    """
    settings = target.settings.nvt
    if len(target.bonds) == 0:
        raise CheckSkipped("the structure has no bonds (no pair within 1.2 times the sum of covalent radii)")
    measurements, arrays, notes = [], {}, []
    for factor in settings.temperature_factors:
        temperature = factor * target.settings.temperature
        run = run_nvt(target, temperature)
        target.snapshots[temperature] = run.snapshots
        if run.broken_at is None:
            stable_time = settings.picoseconds
            largest, mean = max(run.bond_change), np.mean(run.temperature)
            notes.append(f"{temperature:g} K: no bond changed by more than {largest:.2f} Å; mean {mean:.0f} K.")
        else:
            # Below the required time even where rounding makes them equal: a broken run fails.
            stable_time = min(run.broken_at, float(np.nextafter(settings.picoseconds, 0.0)))
            notes.append(f"{temperature:g} K: broken at {run.broken_at:.3f} ps. {run.error}".strip())
        name = f"stable time at {temperature:g} K"
        measurements.append(Measurement(name, stable_time, "ps", settings.picoseconds, "minimum"))
        arrays[f"{temperature:g} K"] = {
            "time": np.array(run.time),
            "bond_change": np.array(run.bond_change),
            "temperature": np.array(run.temperature),
            "limit": settings.bond_change_limit,
        }
    return CheckResult(measurements, arrays, notes)
