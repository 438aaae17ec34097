"""Normal modes of ethanol: frequencies, imaginary ones flagged, and the zero-point energy.

    python md_examples/vibrations.py
    python md_examples/vibrations.py --finite-differences

The second derivatives come from differentiating the network twice, or, as for any calculator of
ASE, from finite differences of the forces. Three translations and three rotations leave the
energy as it is: their frequencies should be zero, and what is left of them shows how much the
potential depends on how the molecule is turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import numpy as np
from ase import Atoms, units
from ase.optimize import BFGS
from ase.vibrations import Vibrations, VibrationsData

from ponita_ff.simulate.plots import COLOURS
from ponita_ff.simulate.relax import optimise

#: Half width of the broadened lines in cm⁻¹.
WIDTH = 15.0


def second_derivatives(atoms: Atoms, finite_differences: bool) -> VibrationsData:
    """The Hessian by differentiation, or by finite differences of the forces."""
    if not finite_differences:
        return VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms))
    # In a new folder: ASE would take up what an earlier run, maybe of another potential, left there.
    with TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=folder, delta=0.005)
        vibrations.run()
        return vibrations.get_vibrations()


def rigid_share(atoms: Atoms, modes: common.Array) -> common.Array:
    """How much of each mode is translation and rotation, 0 to 1.

    Args:
        atoms: The molecule, not linear.
        modes: Orthonormal in mass-weighted coordinates, shape (modes, 3 atoms).
    """
    arms = atoms.positions - atoms.get_center_of_mass()
    motions = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)] + [np.cross(axis, arms) for axis in np.eye(3)]
    weighted = np.array(motions) * np.sqrt(atoms.get_masses())[:, None]
    basis = np.linalg.qr(weighted.reshape(6, -1).T)[0]
    return np.sum((modes @ basis) ** 2, axis=1)


def frequencies(atoms: Atoms, data: VibrationsData) -> tuple[common.Array, common.Array]:
    """Frequencies in cm⁻¹ of the 3n − 6 vibrations and of the 6 rigid motions; negative means imaginary."""
    energies, modes = data.get_energies_and_modes()
    signed = (energies.real - energies.imag) / units.invcm
    weighted = (modes * np.sqrt(atoms.get_masses())[:, None]).reshape(len(modes), -1)
    order = np.argsort(rigid_share(atoms, weighted))
    return np.sort(signed[order[:-6]]), np.sort(signed[order[-6:]])


def report(vibrations: common.Array, rigid: common.Array) -> None:
    """The frequencies as a table, imaginary ones flagged, and the zero-point energy."""
    print("Vibrations (cm⁻¹):")
    for number, value in enumerate(vibrations, start=1):
        print(f"  {number:3d}  " + (f"{value:9.1f}" if value >= 0 else f"{-value:9.1f}i  IMAGINARY"))
    imaginary = int(np.count_nonzero(vibrations < 0))
    print("Results:")
    common.say("imaginary frequencies", "none: a minimum" if not imaginary else f"{imaginary}: NOT a minimum")
    common.say("rigid motions", f"{np.abs(rigid).max():.2f} cm^-1 at most (ideal: 0)")
    zero_point = 0.5 * vibrations[vibrations > 0].sum() * units.invcm
    common.say("zero-point energy", f"{zero_point:.4f} eV, {zero_point * units.mol / units.kcal:.2f} kcal/mol")


def plot(vibrations: common.Array, path: Path) -> None:
    """One stick per vibration, and the sum of the broadened lines."""
    shown = vibrations[vibrations > 0]
    grid = np.linspace(0, max(3900.0, 1.05 * shown.max(initial=0.0)), 4000)
    lines = WIDTH**2 / ((grid[:, None] - shown) ** 2 + WIDTH**2)
    with common.picture(path, size=(8, 3.8)) as (panel,):
        panel.fill_between(grid, lines.sum(axis=1), color=COLOURS[0], alpha=0.2, linewidth=0)
        panel.plot(grid, lines.sum(axis=1), color=COLOURS[0], label=f"broadened by {WIDTH:g} cm$^{{-1}}$")
        panel.vlines(shown, 0, 1, color=COLOURS[1], linewidth=1.2, label="normal modes")
        panel.set(xlabel="frequency (cm$^{-1}$)", ylabel="density of modes (arb. units)", xlim=(0, grid[-1]))
        panel.set_ylim(bottom=0)
        panel.set_yticks([])
        panel.legend(loc="upper center", bbox_to_anchor=(0.6, 1.0))


def main(argv: Sequence[str] | None = None) -> None:
    """Relax, differentiate, report, plot."""
    parser = common.options(__doc__, "vibrations")
    parser.add_argument("--finite-differences", action="store_true", help="of forces, instead of differentiation")
    parser.add_argument("--fmax", type=common.positive, default=1e-4, help="force to relax to in eV/Å (0.0001)")
    args = parser.parse_args(argv)

    atoms = common.ethanol()
    # Float32 would leave errors of many cm⁻¹ in the low frequencies.
    atoms.calc = common.make_calculator(args, dtype="float64")
    print(f"Relaxing to {args.fmax:g} eV/Å, then second derivatives of the energy")
    trajectory = args.out / "relax.traj"
    done = optimise(atoms, BFGS, args.fmax, 5 if args.fast else 500, trajectory)
    common.say("largest force", f"{done.fmax[-1]:.2g} eV/Å after {done.steps} steps")
    if not done.converged:
        common.say("warning", "not at a stationary point: these frequencies mean little")
    data = second_derivatives(atoms, args.finite_differences)
    vibrations, rigid = frequencies(atoms, data)
    report(vibrations, rigid)
    data.write(args.out / "vibrations.json")
    print(f"Hessian and structure: {args.out / 'vibrations.json'} (ase.vibrations.VibrationsData.read)")
    plot(vibrations, args.out / "vibrations.png")


if __name__ == "__main__":
    main()
