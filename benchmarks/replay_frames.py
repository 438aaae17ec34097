"""Write replay frames of a base potential, labelled by itself, which keep fine-tuning from forgetting.

    python benchmarks/replay_frames.py potentials/organic-rmd17 potentials/*-rmd17/structure.xyz
    python benchmarks/replay_frames.py potentials/organic-wb97x data/teacher.h5 --frames 400

Runs Langevin dynamics of each structure with the base, and takes frames of the second half; of a file of training data
(HDF5) it draws frames at random. They go, with the base's own energies and forces, into ``replay.xyz`` beside the base,
where ``ponita-ff finetune`` finds them.
"""

from __future__ import annotations

import os
from pathlib import Path

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from tqdm import tqdm

from ponita_ff import PonitaCalculator
from ponita_ff.audit.dynamics import thermal_momenta
from ponita_ff.data import read_frames
from ponita_ff.files import write_atomically
from ponita_ff.potential.file import read_header
from ponita_ff.training.finetune import REPLAY_FILE

FILE = "potential.safetensors"


def sample(
    start: Atoms, calculator: PonitaCalculator, number: int, temperature: float, picoseconds: float, seed: int
) -> list[Atoms]:
    """Return labelled frames, evenly spaced over the second half of a run with 0.5 fs."""
    atoms = Atoms(start.numbers, start.positions, calculator=calculator)
    generator = np.random.default_rng(seed)
    thermal_momenta(atoms, temperature, generator)
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=generator, fixcm=False
    )
    steps = round(1000 * picoseconds / 0.5)
    dynamics.run(steps // 2)
    frames = []
    for _ in range(number):
        dynamics.run(max(1, steps // 2 // number))
        labels = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(Atoms(atoms.numbers, atoms.positions, calculator=labels))
    return frames


def drawn(path: Path, calculator: PonitaCalculator, number: int) -> list[Atoms]:
    """Return random frames of a file, with labels of the calculator."""
    frames = read_frames(path)
    chosen = np.random.default_rng(0).choice(len(frames), min(number, len(frames)), replace=False)
    found = []
    for index in np.sort(chosen):
        atoms = Atoms(frames[int(index)].numbers, frames[int(index)].positions, calculator=calculator)
        labels = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        found.append(Atoms(atoms.numbers, atoms.positions, calculator=labels))
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("structures", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--frames", default=30, show_default=True, help="Of each structure or file.")
@click.option("--temperature", default=500.0, show_default=True, help="K.")
@click.option("--ps", default=3.0, show_default=True, help="Length of each run.")
def main(folder: Path, structures: tuple[Path, ...], frames: int, temperature: float, ps: float) -> None:
    """Write FOLDER/replay.xyz."""
    path = folder / FILE
    made_by = f"{folder.name}, weights {read_header(path)['weights_sha256'][:12]}"
    calculator, found = PonitaCalculator(path, device="cpu"), []
    for seed, structure in enumerate(tqdm(structures, desc="dynamics")):
        if structure.suffix == ".h5":
            chosen, origin = drawn(structure, calculator, frames), structure.name
        else:
            start = read(structure)
            assert isinstance(start, Atoms)
            chosen = sample(start, calculator, frames, temperature, ps, seed)
            origin = f"Langevin at {temperature:g} K"
        for atoms in chosen:
            atoms.info |= {"labels": f"{made_by}, {origin}", "energy_unit": "eV", "length_unit": "Angstrom"}
            found.append(atoms)
    write_atomically(folder / REPLAY_FILE, lambda temporary: write(temporary, found, format="extxyz"))
    click.echo(f"{len(found)} frames of {len(structures)} structures: {folder / REPLAY_FILE}")


if __name__ == "__main__":
    main()
