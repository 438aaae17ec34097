"""How well is energy conserved? The same start at constant energy with two time steps.

    python md_examples/nve.py
    python md_examples/nve.py --ps 20 --timestep 0.25

Velocity Verlet makes an error of second order: with forces that are the exact gradient of a
smooth energy, half the time step makes the fluctuation of the total energy four times smaller.
Forces that do not fit the energy would leave a fluctuation that no time step makes smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet

from ponita_ff.simulate.md import draw_momenta, hold_centre, steps_of
from ponita_ff.simulate.plots import COLOURS
from ponita_ff.simulate.statistics import energy_drift
from ponita_ff.structure.bonds import find_bonds


def start(calculator: Calculator, temperature: float) -> Atoms:
    """Ethanol with velocities: the same at every call."""
    atoms = common.ethanol()
    atoms.calc = calculator
    hold_centre(atoms)
    draw_momenta(atoms, temperature, np.random.default_rng(common.SEED))
    # The molecule is near its minimum: half of this kinetic energy soon turns into potential energy.
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(2 * temperature / atoms.get_temperature()))
    return atoms


def plot(records: dict[float, common.Record], path: Path) -> None:
    """Temperature with the smaller time step, and the total energy with each."""
    with common.picture(path, rows=2, size=(8, 5.5)) as (top, bottom):
        last = list(records.values())[-1]
        top.plot(last.time_ps, last.temperature, color="0.35", linewidth=0.8)
        top.set_ylabel("temperature (K)")
        top.set_ylim(bottom=0)
        peak = 0.0
        for (timestep, record), colour in zip(records.items(), COLOURS, strict=False):
            change = 1e3 * (record.energy - record.energy.mean())
            bottom.plot(record.time_ps, change, color=colour, linewidth=0.8, label=f"{timestep:g} fs steps")
            peak = max(peak, change.max())
        bottom.set_ylabel("total energy − mean (meV)")
        bottom.set_xlabel("time (ps)")
        bottom.set_ylim(top=1.4 * peak)
        bottom.legend(loc="upper right", ncols=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with both time steps, report, plot."""
    parser = common.dynamics_options(__doc__, "nve")
    parser.add_argument("--ps", type=common.positive, default=2.0, help="length of each run in ps (2)")
    args = parser.parse_args(argv)
    ps = 0.02 if args.fast else args.ps

    calculator = common.make_calculator(args)
    print(f"Running {ps:g} ps at constant energy, twice from the same start near {args.temperature:g} K")
    records, fluctuations = {}, []
    intact: list[bool] = []
    for timestep in (args.timestep, args.timestep / 2):
        atoms = start(calculator, args.temperature)
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        path = args.out / f"nve-{timestep:g}fs.traj"
        name = f"NVE, {timestep:g} fs"
        record = common.run(dynamics, steps_of(ps, timestep), path, name, find_bonds(atoms))
        drift = energy_drift(record.time_ps, record.energy, len(atoms))
        print(f"Results with steps of {timestep:g} fs ({path}):")
        common.say_temperature("temperature", record)
        common.say_drift(drift, len(atoms))
        intact.append(common.say_intact(record))
        common.say_speed(record, timestep)
        records[timestep] = record
        fluctuations.append(drift.rms)
    print("Half the time step:")
    common.say("fluctuation smaller by", f"{fluctuations[0] / fluctuations[1]:.2f} times (ideal: 4)")
    plot(records, args.out / "nve.png")
    common.require_intact(args, *intact)


if __name__ == "__main__":
    main()
