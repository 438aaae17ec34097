"""Constant temperature with two thermostats: does the kinetic energy have the right distribution?

    python md_examples/nvt.py
    python md_examples/nvt.py --thermostat bussi --ps 50 --temperature 500

Langevin dynamics acts on every atom and so reaches every vibration of a single molecule. Bussi's
stochastic rescaling multiplies all velocities by one number: it disturbs the motion less, but
heat must find its own way between the vibrations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.md import MolecularDynamics

from ponita_ff.simulate.md import draw_momenta, hold_centre, steps_of
from ponita_ff.simulate.plots import COLOURS, plot_with_mean
from ponita_ff.simulate.statistics import block_means
from ponita_ff.structure.bonds import find_bonds

#: Share of a run that is equilibration and is left out of the statistics.
EQUILIBRATION = 0.2


def thermostat(
    name: str, atoms: Atoms, timestep: float, temperature: float, rng: np.random.Generator
) -> MolecularDynamics:
    """Dynamics with the thermostat ``langevin`` or ``bussi``."""
    if name == "langevin":
        return common.langevin(atoms, timestep, temperature, rng)
    tau = common.TAU_FS * units.fs
    return Bussi(atoms, timestep * units.fs, temperature_K=temperature, taut=tau, rng=rng)


def plot(records: dict[str, common.Record], temperature: float, freedom: int, path: Path) -> None:
    """Temperature against time, and its histogram beside the exact distribution."""
    with common.picture(path, columns=2, size=(10, 4.2), widths=(1.7, 1)) as (left, right):
        for (name, record), colour in zip(records.items(), COLOURS, strict=False):
            plot_with_mean(left, record.time_ps, record.temperature, colour, name.title())
            density, edges = np.histogram(production(record), bins=30, density=True)
            right.stairs(1e3 * density, edges, color=colour, linewidth=1.5)
        left.axhline(temperature, color="black", linestyle="--", linewidth=1)
        left.set(xlabel="time (ps)", ylabel="temperature (K)")
        left.set_ylim(0, 1.25 * max(r.temperature.max() for r in records.values()))
        left.legend(loc="upper right", ncols=2)
        grid = np.linspace(1, left.get_ylim()[1], 300)
        exact = 1e3 * canonical(grid, temperature, freedom)
        right.plot(grid, exact, color="black", label="exact (canonical)")
        right.set(xlabel="temperature (K)", ylabel="probability density (10$^{-3}$/K)")
        right.set_ylim(0, 1.25 * right.get_ylim()[1])
        right.legend(loc="upper right")


def canonical(value: common.Array, temperature: float, freedom: int) -> common.Array:
    """Probability density (1/K) of the kinetic temperature in the canonical ensemble: a gamma distribution."""
    shape, scale = freedom / 2, 2 * temperature / freedom
    density: common.Array = np.exp((shape - 1) * np.log(value / scale) - value / scale - math.lgamma(shape)) / scale
    return density


def production(record: common.Record) -> common.Array:
    """Temperatures after equilibration."""
    return record.temperature[int(EQUILIBRATION * len(record.temperature)) :]


def main(argv: Sequence[str] | None = None) -> None:
    """Run each thermostat, report, plot."""
    parser = common.dynamics_options(__doc__, "nvt")
    parser.add_argument("--ps", type=common.positive, default=8.0, help="length of each run in ps (8)")
    parser.add_argument("--thermostat", choices=("langevin", "bussi", "both"), default="both", help="(both)")
    args = parser.parse_args(argv)
    ps = 0.02 if args.fast else args.ps
    names = ("langevin", "bussi") if args.thermostat == "both" else (args.thermostat,)

    calculator = common.make_calculator(args)
    records = {}
    intact: list[bool] = []
    for name in names:
        atoms = common.ethanol()
        atoms.calc = calculator
        rng = np.random.default_rng(common.SEED)
        hold_centre(atoms)
        draw_momenta(atoms, args.temperature, rng)
        dynamics = thermostat(name, atoms, args.timestep, args.temperature, rng)
        path = args.out / f"nvt-{name}.traj"
        print(f"Running {ps:g} ps at {args.temperature:g} K with the {name.title()} thermostat")
        record = common.run(dynamics, steps_of(ps, args.timestep), path, name, find_bonds(atoms))
        report(record, args.temperature, atoms.get_number_of_degrees_of_freedom())
        intact.append(common.say_intact(record))
        common.say_speed(record, args.timestep)
        print(f"Trajectory: {path}")
        records[name] = record
    plot(records, args.temperature, atoms.get_number_of_degrees_of_freedom(), args.out / "nvt.png")
    common.require_intact(args, *intact)


def report(record: common.Record, temperature: float, freedom: int) -> None:
    """Mean and standard deviation of the temperature beside what theory asks for."""
    values = production(record)
    means = block_means(values)
    error = means.std(ddof=1) / np.sqrt(len(means))
    print(f"Results after the first {EQUILIBRATION:.0%}:")
    common.say("mean temperature", f"{values.mean():.1f} ± {error:.1f} K (wanted: {temperature:g} K)")
    exact = temperature * np.sqrt(2 / freedom)
    common.say(
        "its standard deviation", f"{values.std():.1f} K (exact for {freedom} degrees of freedom: {exact:.1f} K)"
    )


if __name__ == "__main__":
    main()
