"""Quantum nuclei: the O–H distance of ethanol by path integrals in i-PI. Needs pip install '.[ipi]'.

    python md_examples/path_integral.py
    python md_examples/path_integral.py --beads 48 --ps 10

Runs ethanol twice at the same temperature, with classical nuclei (one bead) and with quantum ones (a ring of beads, all
of them one evaluation). Zero-point motion makes the distribution of the distance several times as wide, and its mean
longer, because the bond is anharmonic. A frequency ω needs more beads than ħω/kT: 18 for O–H at 300 K.

The folders of results hold i-PI's own input files: ``i-pi input.xml`` runs them without this script.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from ase.io import write

from ponita_ff.progress import progress_bar
from ponita_ff.simulate.md import steps_of
from ponita_ff.simulate.plots import COLOURS

STRIDE = 10  # steps between looks at the distance
TAU_FS = 50  # of the thermostat

INPUT = """<simulation verbosity='quiet'>
  <output prefix='run'>
    <properties filename='out' stride='10'> [ step, conserved, temperature, kinetic_cv ] </properties>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  {driver}
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz' units='angstrom'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>{temperature:g}</velocities>
      <cell mode='abc' units='angstrom'>[30, 30, 30]</cell>
    </initialize>
    <forces><force forcefield='ponita'/></forces>
    <ensemble><temperature units='kelvin'>{temperature:g}</temperature></ensemble>
    <motion mode='dynamics'>
      <fixcom>True</fixcom>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>{timestep:g}</timestep>
        <thermostat mode='pile_l'><tau units='femtosecond'>{tau:g}</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def run(folder: Path, name: str, steps: int, settings: dict[str, object]) -> tuple[common.Array, float]:
    """Run i-PI in a folder.

    Returns:
        O–H distance of each bead at each look after the first quarter of the run, Å; and seconds a step.
    """
    from ipi.scripting import InteractiveSimulation
    from ipi.utils.units import unit_to_user

    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "start.xyz", common.ethanol(), format="xyz")
    text = INPUT.format(steps=steps, seed=common.SEED, tau=TAU_FS, **settings)
    (folder / "input.xml").write_text(text, encoding="utf-8")
    here = Path.cwd()
    os.chdir(folder)  # where i-PI looks for files and writes its own
    try:
        simulation = InteractiveSimulation(text)
        looks = []
        began = time.perf_counter()
        with progress_bar(True, total=steps, desc=name, unit="step") as bar:
            for _ in range(steps // STRIDE):
                simulation.run(STRIDE)
                beads = simulation.syslist[0].beads.q.reshape(-1, 9, 3)
                bond = beads[:, common.HYDROXYL_H] - beads[:, common.OXYGEN]
                looks.append(unit_to_user("length", "angstrom", np.linalg.norm(bond, axis=1)))
                bar.update(STRIDE)
        seconds = (time.perf_counter() - began) / steps
        simulation.stop()
    finally:
        os.chdir(here)
    return np.array(looks[len(looks) // 4 :]), seconds


def plot(distances: dict[str, common.Array], path: Path) -> None:
    """Distributions of the O–H distance."""
    with common.picture(path, size=(7, 4)) as (axes,):
        edges = np.arange(0.7, 1.4, 0.01)
        for colour, (name, values) in zip(COLOURS, distances.items(), strict=False):
            axes.stairs(np.histogram(values, edges, density=True)[0], edges, color=colour, label=name)
        axes.set_xlabel("O–H distance (Å)")
        axes.set_ylabel("probability density (1/Å)")
        axes.legend()


def main(argv: Sequence[str] | None = None) -> None:
    """Run both, report, plot."""
    parser = common.options(__doc__, "path-integral")
    parser.add_argument("--temperature", type=common.positive, default=300.0, help="K (300)")
    parser.add_argument("--timestep", type=common.positive, default=0.25, help="fs (0.25)")
    parser.add_argument("--beads", type=int, default=32, help="of the quantum run (32)")
    parser.add_argument("--ps", type=common.positive, default=0.5, help="length of each run in ps (0.5)")
    args = parser.parse_args(argv)
    try:
        import ipi  # noqa: F401
    except ImportError:
        raise SystemExit("this example needs i-PI: pip install '.[ipi]'") from None
    from ponita_ff.hosts.ipi_driver import ffdirect

    beads, ps = (4, 0.02) if args.fast else (args.beads, args.ps)
    common.make_calculator(args)  # says what is wrong with the options, and makes the folder
    potential = str(Path(args.potential).resolve()) if Path(args.potential).exists() else args.potential
    steps = max(4 * STRIDE, steps_of(ps, args.timestep))
    print(f"Running {steps * args.timestep / 1000:g} ps at {args.temperature:g} K with 1 bead, then with {beads}")
    distances = {}
    for name, number in (("classical", 1), ("quantum", beads)):
        driver = ffdirect("start.xyz", potential, number, device=args.device)
        settings = {"driver": driver, "beads": number, "temperature": args.temperature, "timestep": args.timestep}
        distances[name], seconds = run(args.out / name, name, steps, settings)
        print(f"Results, {name} ({args.out / name}/):")
        common.say("O–H distance", f"{distances[name].mean():.4f} Å, standard deviation {distances[name].std():.4f} Å")
        common.say("time", f"{1e3 * seconds:.1f} ms a step, {1e3 * seconds / number:.2f} ms a bead")
    plot(distances, args.out / "path_integral.png")
    common.require_intact(args, *(bool((values < 1.6).all()) for values in distances.values()))


if __name__ == "__main__":
    main()
