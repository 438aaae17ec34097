"""Geometry optimisation: ethanol is shaken, then finds its way back to a minimum.

python md_examples/relax.py
python md_examples/relax.py --optimiser BFGS --rattle 0.15 --fmax 0.0001
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ase.optimize
import common
import numpy as np
from ase import Atoms
from ase.io import write
from common import HYDROXYL_H, METHYL_C, METHYLENE_C, OXYGEN

from ponita_ff.simulate.relax import Relaxation, optimise, plot_relaxation

MEASURES: tuple[tuple[str, str, Callable[[Atoms], float]], ...] = (
    ("C–C", "Å", lambda atoms: atoms.get_distance(METHYL_C, METHYLENE_C)),
    ("C–O", "Å", lambda atoms: atoms.get_distance(METHYLENE_C, OXYGEN)),
    ("O–H", "Å", lambda atoms: atoms.get_distance(OXYGEN, HYDROXYL_H)),
    ("C–C–O", "°", lambda atoms: atoms.get_angle(METHYL_C, METHYLENE_C, OXYGEN)),
    ("C–O–H", "°", lambda atoms: atoms.get_angle(METHYLENE_C, OXYGEN, HYDROXYL_H)),
    ("H–O–C–C torsion", "°", lambda atoms: abs(common.torsion(atoms))),
)


def report(shaken: Atoms, relaxed: Atoms, done: Relaxation) -> None:
    """Energy and force of the steps, then bond lengths and angles before and after."""
    print("  step   energy − last (meV)   largest force (eV/Å)")
    # The whole list for a short run, every so many steps of a long one, always the last.
    every = max(1, len(done.energy) // 20)
    for step, (energy, force) in enumerate(zip(done.energy, done.fmax, strict=True)):
        if step % every == 0 or step == done.steps:
            print(f"  {step:4d}   {1e3 * (energy - done.energy[-1]):19.3f}   {force:20.5f}")
    print("Geometry:                     shaken     relaxed")
    for name, unit, measure in MEASURES:
        common.say(name, f"{measure(shaken):8.3f}    {measure(relaxed):8.3f} {unit}")


def main(argv: Sequence[str] | None = None) -> None:
    """Shake, relax, report, plot."""
    parser = common.options(__doc__, "relax")
    parser.add_argument("--optimiser", choices=("FIRE2", "BFGS", "LBFGS"), default="FIRE2", help="(FIRE2)")
    parser.add_argument("--rattle", type=common.positive, default=0.1, help="width of the random shifts in Å (0.1)")
    parser.add_argument("--fmax", type=common.positive, default=1e-3, help="force to reach in eV/Å (0.001)")
    args = parser.parse_args(argv)

    atoms = common.ethanol()
    # Near a minimum the energy changes by less than float32 resolves.
    atoms.calc = common.make_calculator(args, dtype="float64")
    atoms.rattle(args.rattle, rng=np.random.default_rng(common.SEED))
    shaken = atoms.copy()
    print(f"Relaxing from random shifts of {args.rattle:g} Å with {args.optimiser}, to {args.fmax:g} eV/Å")
    optimiser = getattr(ase.optimize, args.optimiser)
    trajectory = args.out / "relax.traj"
    done = optimise(atoms, optimiser, args.fmax, 5 if args.fast else 1000, trajectory)

    print("Results:")
    report(shaken, atoms, done)
    common.say("energy", f"{done.energy[-1]:.6f} eV")
    common.say("largest force", f"{done.fmax[-1]:.6f} eV/Å")
    common.say("converged", f"{'yes' if done.converged else 'NO'}, after {done.steps} steps")
    write(args.out / "relaxed.xyz", atoms, format="extxyz")
    print(f"Structure: {args.out / 'relaxed.xyz'}; trajectory: {trajectory}")
    plot_relaxation(done, args.fmax, args.out / "relax.png")
    print(f"Picture: {args.out / 'relax.png'}")


if __name__ == "__main__":
    main()
