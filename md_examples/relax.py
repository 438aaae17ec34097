"""Geometry optimisation: ethanol is shaken, then finds its way back to a minimum.

python md_examples/relax.py
python md_examples/relax.py --optimiser BFGS --rattle 0.15 --fmax 0.0001
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ase.optimize
import common
import numpy as np
from ase import Atoms
from ase.io import write
from common import HYDROXYL_H, METHYL_C, METHYLENE_C, OXYGEN

MEASURES: tuple[tuple[str, str, Callable[[Atoms], float]], ...] = (
    ("C–C", "Å", lambda atoms: atoms.get_distance(METHYL_C, METHYLENE_C)),
    ("C–O", "Å", lambda atoms: atoms.get_distance(METHYLENE_C, OXYGEN)),
    ("O–H", "Å", lambda atoms: atoms.get_distance(OXYGEN, HYDROXYL_H)),
    ("C–C–O", "°", lambda atoms: atoms.get_angle(METHYL_C, METHYLENE_C, OXYGEN)),
    ("C–O–H", "°", lambda atoms: atoms.get_angle(METHYLENE_C, OXYGEN, HYDROXYL_H)),
    ("H–O–C–C torsion", "°", lambda atoms: abs(common.torsion(atoms))),
)


def report(shaken: Atoms, relaxed: Atoms, history: common.Array) -> None:
    """Energy and force of the steps, then bond lengths and angles before and after."""
    print("  step   energy − last (meV)   largest force (eV/Å)")
    # The whole list for a short run, every so many steps of a long one, always the last.
    every = max(1, len(history) // 20)
    for step, (energy, force) in enumerate(history):
        if step % every == 0 or step == len(history) - 1:
            print(f"  {step:4d}   {1e3 * (energy - history[-1, 0]):19.3f}   {force:20.5f}")
    print("Geometry:                     shaken     relaxed")
    for name, unit, measure in MEASURES:
        common.say(name, f"{measure(shaken):8.3f}    {measure(relaxed):8.3f} {unit}")


def plot(history: common.Array, fmax: float, path: Path) -> None:
    """Energy above the last one and largest force against the step."""
    with common.picture(path, rows=2, size=(7, 5.5)) as (top, bottom):
        # The last energy is the zero and has no logarithm.
        top.semilogy(1e3 * np.abs(history[:-1, 0] - history[-1, 0]), "o-", markersize=3, color=common.COLOURS[0])
        top.set_ylabel("energy above that of\nthe last step (meV)")
        bottom.semilogy(history[:, 1], "o-", markersize=3, color=common.COLOURS[1])
        bottom.axhline(fmax, color="0.3", linestyle="--", linewidth=1, label=f"wanted: {fmax:g} eV/Å")
        bottom.set_ylabel("largest force (eV/Å)")
        bottom.set_xlabel("optimisation step")
        bottom.legend(loc="upper right")


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
    history, converged = common.relax(atoms, optimiser, args.fmax, 5 if args.fast else 1000, trajectory)

    print("Results:")
    report(shaken, atoms, history)
    common.say("energy", f"{history[-1, 0]:.6f} eV")
    common.say("largest force", f"{history[-1, 1]:.6f} eV/Å")
    common.say("converged", f"{'yes' if converged else 'NO'}, after {len(history) - 1} steps")
    write(args.out / "relaxed.xyz", atoms, format="extxyz")
    print(f"Structure: {args.out / 'relaxed.xyz'}; trajectory: {trajectory}")
    plot(history, args.fmax, args.out / "relax.png")


if __name__ == "__main__":
    main()
