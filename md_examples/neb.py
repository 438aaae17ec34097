"""Nudged elastic band: the barrier of ethanol's hydroxyl torsion, from trans to gauche.

    python md_examples/neb.py
    python md_examples/neb.py --images 9 --fmax 0.005

Both conformers are relaxed, the hydroxyl hydrogen is turned from one to the other for a first
path, and the path then relaxes to the one of least energy, its highest image climbing to the
saddle point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedLine, FixedPlane
from ase.io import write
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.utils.forcecurve import fit_images
from common import HYDROXYL_H, METHYL_C, METHYLENE_C, OXYGEN

from ponita_ff.progress import progress_bar
from ponita_ff.simulate.plots import COLOURS
from ponita_ff.simulate.relax import optimise

GAUCHE = 60.0  # degrees, where the relaxation of the second conformer starts


def conformer(angle: float, calculator: Calculator, fmax: float, max_steps: int, path: Path) -> Atoms:
    """Ethanol relaxed from a given H–O–C–C angle in degrees."""
    atoms = common.ethanol()
    atoms.set_dihedral(*common.TORSION, angle, indices=[HYDROXYL_H])
    hold_frame(atoms)
    atoms.calc = calculator
    optimise(atoms, BFGS, fmax, max_steps, path, name=f"relaxing {path.stem}")
    return atoms


def hold_frame(atoms: Atoms) -> None:
    """Put the C–C bond on x and the oxygen into the xy plane, and hold them there.

    This takes away exactly the six rigid motions. They are no part of the path, but images that turned as a whole
    would stretch it, and the energy of a grid of orientations changes a little with them.
    """
    atoms.positions -= atoms.positions[METHYLENE_C]
    atoms.rotate(atoms.positions[METHYL_C], "x")
    _, y, z = atoms.positions[OXYGEN]
    atoms.rotate(-np.degrees(np.arctan2(z, y)), "x")
    atoms.set_constraint([FixAtoms([METHYLENE_C]), FixedLine(METHYL_C, [1, 0, 0]), FixedPlane(OXYGEN, [0, 0, 1])])


def first_path(trans: Atoms, gauche: Atoms, number: int) -> list[Atoms]:
    """Images from trans to gauche, both in the frame of `hold_frame`, with ``number`` between them.

    On a straight line the hydroxyl hydrogen would cut through the arc that it moves on, and come too close to the
    oxygen. So only the other atoms go straight; this one is put where its torsion, angle and distance belong.
    """
    first, second, oxygen, hydrogen = common.TORSION
    turn = (common.torsion(gauche) - common.torsion(trans) + 180) % 360 - 180
    images = []
    for share in np.linspace(0, 1, number + 2):
        image = trans.copy()
        image.positions += share * (gauche.positions - trans.positions)
        blend = (1 - share, share)
        distance = np.dot(blend, [a.get_distance(oxygen, hydrogen) for a in (trans, gauche)])
        angle = np.dot(blend, [a.get_angle(second, oxygen, hydrogen) for a in (trans, gauche)])
        image.set_distance(oxygen, hydrogen, distance, fix=0)
        image.set_angle(second, oxygen, hydrogen, angle, indices=[hydrogen])
        torsion = common.torsion(trans) + share * turn
        image.set_dihedral(first, second, oxygen, hydrogen, torsion, indices=[hydrogen])
        images.append(image)
    return images


def relax_path(images: list[Atoms], calculator: Calculator, fmax: float, max_steps: int) -> tuple[list[Atoms], bool]:
    """The path of least energy, and whether ``fmax`` was reached."""
    for image in images:
        image.calc = calculator
    band = NEB(images, method="improvedtangent", allow_shared_calculator=True)
    converged = False
    # The highest image climbs only once the path is roughly right: else it may climb elsewhere.
    for climb, limit in ((False, 5 * fmax), (True, fmax)):
        band.climb = climb
        with (
            FIRE(band, logfile=None) as optimiser,
            progress_bar(True, total=max_steps, desc="climbing" if climb else "NEB", unit="step") as bar,
        ):
            for done in optimiser.irun(fmax=limit, steps=max_steps):
                converged = bool(done)
                bar.update(optimiser.nsteps - bar.n)
    return [freeze(image) for image in images], converged


def freeze(image: Atoms) -> Atoms:
    """A copy that carries its own energy and forces: a shared calculator only knows its last image."""
    energy, forces = image.get_potential_energy(), image.get_forces()
    frozen = image.copy()
    frozen.calc = SinglePointCalculator(frozen, energy=energy, forces=forces)
    return frozen


def report(path: list[Atoms], converged: bool) -> None:
    """Barrier in both directions, difference of the conformers, angle at the saddle point."""
    energies = np.array([image.get_potential_energy() for image in path])
    top = int(energies.argmax())
    in_kcal = units.mol / units.kcal
    for name, value in (
        ("barrier trans → gauche", energies[top] - energies[0]),
        ("barrier gauche → trans", energies[top] - energies[-1]),
        ("gauche − trans", energies[-1] - energies[0]),
    ):
        common.say(name, f"{1e3 * value:.2f} meV, {value * in_kcal:.3f} kcal/mol")
    common.say("torsion, trans", f"{abs(common.torsion(path[0])):.1f}°")
    common.say("torsion, saddle point", f"{abs(common.torsion(path[top])):.1f}°")
    common.say("torsion, gauche", f"{abs(common.torsion(path[-1])):.1f}°")
    common.say("converged", "yes" if converged else "NO: give it more steps or a larger --fmax")
    if top in (0, len(path) - 1):
        common.say("warning", "the highest image is an end of the path: there is no barrier")


def plot(path: list[Atoms], file: Path) -> None:
    """Energy along the path against the torsion."""
    fit = fit_images(path)
    torsions = np.array([abs(common.torsion(image)) for image in path])
    with common.picture(file, size=(7, 4.5)) as (panel,):
        curve = np.interp(fit.fit_path, fit.path, torsions)
        panel.plot(curve, 1e3 * np.array(fit.fit_energies), color=COLOURS[0], label="fit to energies and forces")
        energies = 1e3 * np.array(fit.energies)
        panel.plot(torsions, energies, "o", color=COLOURS[1], label="images")
        top = int(energies.argmax())
        panel.annotate(
            f"{energies[top]:.1f} meV", (torsions[top], energies[top]), (0, 9), textcoords="offset points", ha="center"
        )
        panel.set(xlabel="H–O–C–C torsion (°)", ylabel="energy relative to trans (meV)")
        panel.margins(y=0.15)
        # Trans is the start: it belongs on the left.
        panel.invert_xaxis()
        panel.legend(loc="lower center")


def main(argv: Sequence[str] | None = None) -> None:
    """Relax both ends, find the path between them, report, plot."""
    parser = common.options(__doc__, "neb")
    parser.add_argument("--images", type=int, default=7, help="images between the ends (7)")
    parser.add_argument("--fmax", type=common.positive, default=0.01, help="force to reach in eV/Å (0.01)")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error("--images must be at least 1")
    number, max_steps = (3, 3) if args.fast else (args.images, 500)

    calculator = common.make_calculator(args, dtype="float64")
    print(f"Relaxing trans and gauche, then a path with {number} images between them")
    ends = [
        conformer(angle, calculator, args.fmax / 10, max_steps, args.out / f"{name}.traj")
        for name, angle in (("trans", 180.0), ("gauche", GAUCHE))
    ]
    path, converged = relax_path(first_path(ends[0], ends[1], number), calculator, args.fmax, max_steps)
    write(args.out / "neb.traj", path)
    print("Results:")
    report(path, converged)
    print(f"Path: {args.out / 'neb.traj'} (look at it with: ase gui {args.out / 'neb.traj'})")
    plot(path, args.out / "neb.png")


if __name__ == "__main__":
    main()
