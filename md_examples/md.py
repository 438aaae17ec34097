"""Molecular dynamics of ethanol: equilibration at constant temperature, then constant energy.

    python md_examples/md.py                      # or: make md
    python md_examples/md.py --nve-ps 100 --temperature 400

Langevin dynamics brings every vibration of the molecule to the wanted temperature; then the
thermostat is switched off. What happens to the total energy from there on shows how well the
forces fit the energy: it must neither drift nor jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet

from ponita_ff.simulate.md import draw_momenta, hold_centre, steps_of
from ponita_ff.simulate.plots import COLOURS, plot_with_mean
from ponita_ff.simulate.statistics import Drift, energy_drift
from ponita_ff.structure.bonds import find_bonds


def plot(nvt: common.Record, nve: common.Record, drift: Drift, temperature: float, path: Path) -> None:
    """Temperature of both parts, and the total energy of the constant-energy part."""
    blue, orange = COLOURS[:2]
    switch = nvt.time_ps[-1]
    with common.picture(path, rows=2, size=(8, 5.5)) as (top, bottom):
        plot_with_mean(top, nvt.time_ps, nvt.temperature, orange, "NVT (Langevin)")
        plot_with_mean(top, switch + nve.time_ps, nve.temperature, blue, "NVE")
        top.axhline(temperature, color="black", linestyle="--", linewidth=1, label=f"{temperature:g} K")
        top.set_ylabel("temperature (K)")
        top.set_ylim(0, 1.3 * max(nvt.temperature.max(), nve.temperature.max()))
        top.legend(ncols=3, loc="upper right")
        start = drift.line[0]
        energy = 1e3 * (nve.energy - start)
        plot_with_mean(bottom, switch + nve.time_ps, energy, blue, "NVE (bold: running mean)")
        bottom.plot(switch + nve.time_ps, 1e3 * (drift.line - start), color="black", label="linear fit", zorder=4)
        bottom.set_ylabel("change of total energy (meV)")
        bottom.set_xlabel("time (ps)")
        bottom.set_ylim(top=1.35 * energy.max())
        bottom.legend(ncols=2, loc="upper right")


def main(argv: Sequence[str] | None = None) -> None:
    """Run both parts, report, plot."""
    parser = common.dynamics_options(__doc__, "md")
    parser.add_argument("--nvt-ps", type=common.positive, default=1.0, help="equilibration in ps (1)")
    parser.add_argument("--nve-ps", type=common.positive, default=4.0, help="constant energy in ps (4)")
    args = parser.parse_args(argv)
    nvt_ps, nve_ps = (0.01, 0.02) if args.fast else (args.nvt_ps, args.nve_ps)

    atoms = common.ethanol()
    atoms.calc = common.make_calculator(args)
    rng = np.random.default_rng(common.SEED)
    trajectory = args.out / "md.traj"
    hold_centre(atoms)
    draw_momenta(atoms, args.temperature, rng)

    print(f"Equilibrating {nvt_ps:g} ps at {args.temperature:g} K (Langevin), then {nve_ps:g} ps at constant energy")
    start = find_bonds(atoms)
    thermostat = common.langevin(atoms, args.timestep, args.temperature, rng)
    nvt = common.run(thermostat, steps_of(nvt_ps, args.timestep), trajectory, "NVT", start)
    free = VelocityVerlet(atoms, args.timestep * units.fs)
    nve = common.run(free, steps_of(nve_ps, args.timestep), trajectory, "NVE", start, append=True)
    drift = energy_drift(nve.time_ps, nve.energy, len(atoms))

    print("Results:")
    common.say_temperature("temperature (NVT)", nvt)
    common.say_temperature("temperature (NVE)", nve)
    common.say_drift(drift, len(atoms))
    intact = common.say_intact(nvt, nve)
    common.say_speed(nve, args.timestep)
    print(f"Trajectory: {trajectory} (look at it with: ase gui {trajectory})")
    plot(nvt, nve, drift, args.temperature, args.out / "md.png")
    common.require_intact(args, intact)


if __name__ == "__main__":
    main()
