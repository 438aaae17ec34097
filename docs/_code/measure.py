"""Compute what two pages of the site show, and write it to ``docs/data``.

    python docs/_code/measure.py turning       # energies of ethanol turned about an axis, by two potentials
    python docs/_code/measure.py trajectory    # dynamics with the committee of the general potential

Each file names the potentials with the hash of their weights; run it again when these change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from scipy.spatial.transform import Rotation

from ponita_ff import PonitaCalculator, load_potential
from ponita_ff.files import write_text
from ponita_ff.simulate.md import draw_momenta, hold_centre
from ponita_ff.uncertainty import hash_of_weights

_DATA = Path(__file__).resolve().parents[1] / "data"

_TURNED_BY, _POINTS = ("organic-rmd17", "ethanol-rmd17"), 121
_AXIS = np.array([0.3, 0.5, 0.81])

_SMILES, _COMMITTEE = "CC(=O)NCC#N", "organic-wb97x@committee"
_FRAMES, _STEPS_EACH, _TIMESTEP, _TEMPERATURE, _SEED = 120, 5, 0.5, 300.0, 1


def _rounded(values: np.ndarray, digits: int) -> Any:
    return np.round(values, digits).tolist()


def turning() -> dict[str, Any]:
    """Energies (meV, relative to their mean) over one turn about an axis."""
    atoms = molecule("CH3CH2OH")
    atoms.positions -= atoms.get_center_of_mass()
    degrees = np.linspace(0.0, 360.0, _POINTS)
    axis = _AXIS / np.linalg.norm(_AXIS)
    turned = [
        Atoms(atoms.numbers, atoms.positions @ Rotation.from_rotvec(np.radians(angle) * axis).as_matrix().T)
        for angle in degrees
    ]
    curves = []
    for name in _TURNED_BY:
        potential = load_potential(name)
        energies = 1e3 * potential.evaluate(turned, backend="eager").energies
        curves.append(
            {
                "potential": name,
                "orientations": potential.network.config.num_ori,
                "sha256": hash_of_weights(potential),
                "energies": _rounded(energies - energies.mean(), 3),
            }
        )
    return {
        "symbols": atoms.get_chemical_symbols(),
        "positions": _rounded(atoms.positions, 3),
        "axis": _rounded(axis, 4),
        "degrees": _rounded(degrees, 1),
        "curves": curves,
    }


def trajectory() -> dict[str, Any]:
    """Frames of Langevin dynamics with the uncertainty of each atom's force (norm over components, eV/Å)."""
    from ponita_ff.sample.geometry import conformers

    atoms = conformers(_SMILES, number=1, seed=_SEED)[0]
    atoms.calc = PonitaCalculator(_COMMITTEE, device="cpu")
    hold_centre(atoms)
    generator = np.random.default_rng(_SEED)
    draw_momenta(atoms, _TEMPERATURE, generator)
    friction = 0.01 / units.fs
    dynamics = Langevin(
        atoms, _TIMESTEP * units.fs, temperature_K=_TEMPERATURE, friction=friction, fixcm=False, rng=generator
    )
    frames = []
    for _ in range(_FRAMES):
        dynamics.run(_STEPS_EACH)
        spread = np.linalg.norm(atoms.calc.results["forces_std"], axis=1)
        frames.append(
            {"positions": _rounded(atoms.positions - atoms.get_center_of_mass(), 3), "spread": _rounded(spread, 3)}
        )
    return {
        "smiles": _SMILES,
        "potential": _COMMITTEE,
        "sha256": atoms.calc.parameters["sha256"],
        "femtoseconds": _STEPS_EACH * _TIMESTEP,
        "temperature": _TEMPERATURE,
        "symbols": atoms.get_chemical_symbols(),
        "frames": frames,
    }


@click.command()
@click.argument("which", type=click.Choice(["turning", "trajectory"]))
def main(which: str) -> None:
    """Compute and write one file."""
    values = {"turning": turning, "trajectory": trajectory}[which]()
    path = _DATA / f"{which}.json"
    write_text(path, json.dumps(values, separators=(",", ":")) + "\n")
    click.echo(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
