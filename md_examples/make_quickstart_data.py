"""Makes the project's own example data: methanol at 500 K, labelled with GFN2-xTB.

    pip install tblite
    python md_examples/make_quickstart_data.py

Several independent Langevin trajectories of CH3OH are run with GFN2-xTB, a frame is kept every
20 fs, and every kept frame is labelled again from scratch with a tighter self-consistent field.
Written are methanol_gfn2.xyz, isolated_atoms.xyz and a README.md that says how they were made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# One thread: sums in another order would differ by rounding, which chaotic dynamics amplify.
# This must be set before tblite is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ponita_ff.progress import progress_bar
from ponita_ff.simulate.md import draw_momenta, hold_centre, langevin

try:
    from tblite.ase import TBLite
except ImportError as error:
    raise SystemExit("this script needs tblite for its labels: pip install tblite") from error

METHOD = "GFN2-xTB"
TEMPERATURE_K = 500.0
TIMESTEP_FS = 0.5
RELAXATION_FS = 50.0  # of the Langevin thermostat
EQUILIBRATION_STEPS = 2000  # 1 ps, twenty times that
STEPS_PER_FRAME = 40  # 20 fs
TRAJECTORIES = 16
FIRST_SEED = 2024
SHUFFLE_SEED = 7
DECIMALS = 8  # of positions and forces in the file
LABEL_ACCURACY = 0.01  # tblite's scale of the SCF thresholds; 1 is its default
# Unpaired electrons follow the atoms' ground states: H doublet, C and O triplet.
ATOM_MULTIPLICITY = {"H": 2, "C": 3, "O": 3}
UNITS = {"energy_unit": "eV", "length_unit": "Angstrom"}


def trajectory(number: int, frames: int) -> Iterator[Atoms]:
    """Frames of one Langevin trajectory after its equilibration.

    Args:
        number: Which trajectory; its random numbers follow from it alone.
        frames: How many frames, 20 fs apart.
    """
    rng = np.random.default_rng(FIRST_SEED + number)
    atoms = molecule("CH3OH")
    atoms.calc = TBLite(method=METHOD, verbosity=0)
    hold_centre(atoms)
    draw_momenta(atoms, TEMPERATURE_K, rng)
    dynamics = langevin(atoms, TIMESTEP_FS, TEMPERATURE_K, rng, RELAXATION_FS)
    dynamics.run(EQUILIBRATION_STEPS)
    for _ in range(frames):
        dynamics.run(STEPS_PER_FRAME)
        yield atoms


def label(atoms: Atoms, number: int) -> Atoms:
    """A frame with energy and forces of exactly the positions that the file will hold.

    Args:
        atoms: The frame to copy and label.
        number: Trajectory that it comes from.
    """
    frame = Atoms(atoms.numbers, atoms.positions.round(DECIMALS))
    # A new calculator starts from no earlier density, so that labels do not depend on the order.
    frame.calc = TBLite(method=METHOD, accuracy=LABEL_ACCURACY, verbosity=0)
    energy, forces = frame.get_potential_energy(), frame.get_forces()
    frame.calc = SinglePointCalculator(frame, energy=round(energy, DECIMALS), forces=forces)
    frame.info = {"level_of_theory": METHOD, **UNITS, "trajectory": number}
    return frame


def make_frames(total: int) -> list[Atoms]:
    """``total`` labelled frames, shuffled so that any prefix of them is representative."""
    per_trajectory = -(-total // TRAJECTORIES)
    frames = [
        label(atoms, number)
        for number in progress_bar(True, iterable=range(TRAJECTORIES), unit="trajectory", desc=METHOD)
        for atoms in trajectory(number, per_trajectory)
    ]
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(frames))
    return [frames[i] for i in order[:total]]


def isolated_atoms() -> list[Atoms]:
    """The free atoms, one frame each, for the reference energies of a potential."""
    frames = []
    for symbol, multiplicity in ATOM_MULTIPLICITY.items():
        atom = Atoms(symbol)
        atom.calc = TBLite(method=METHOD, accuracy=LABEL_ACCURACY, multiplicity=multiplicity, verbosity=0)
        energy = atom.get_potential_energy()
        atom.calc = SinglePointCalculator(atom, energy=round(energy, DECIMALS))
        atom.info = {"level_of_theory": METHOD, **UNITS, "multiplicity": multiplicity}
        frames.append(atom)
    return frames


README = """\
# Methanol labelled with {method}

`methanol_gfn2.xyz`: {frames} frames of one methanol molecule (CH3OH) in extended XYZ, with the total
energy (eV) in the comment line and positions (Å) and forces (eV/Å) per atom. No cell.
`isolated_atoms.xyz`: the total energies (eV) of free H, C and O by the same method.

Both were made, and are made again, by `python md_examples/make_quickstart_data.py`: they are this
project's own and under its licence.

| | |
|---|---|
| method | {method}, tblite {tblite}, through ASE {ase} |
| start | `ase.build.molecule("CH3OH")`, thermal velocities |
| dynamics | Langevin at {temperature:g} K, {timestep:g} fs steps, relaxation time {relaxation:g} fs |
| sampling | {trajectories} trajectories, each {equilibration:g} ps equilibration, then a frame every {spacing:g} fs |
| seeds | {first_seed} to {last_seed} for the trajectories, {shuffle_seed} for the order of the frames |
| labels | of exactly the positions in the file, SCF accuracy {accuracy:g} |
| energies | mean {mean:.4f} eV, standard deviation {std:.4f} eV |
| forces | root mean square {rms:.4f} eV/Å, largest component {largest:.4f} eV/Å |
| isolated atoms | {atoms} |

The frames are in random order, so that the first *n* of them are a fair sample; `trajectory` in the
comment line tells which trajectory a frame comes from. Frames of one trajectory are correlated: for a
strict test hold out whole trajectories.

The isolated atoms have the spin multiplicity of their ground state, but GFN2-xTB without spin
polarisation hardly sees it: differences to these energies are no measured atomisation energies.

The labels of the stored positions can be had again anywhere. The positions themselves come from chaotic
dynamics: the same versions on the same kind of machine give the same ones, others need not.

SHA-256:

```
{checksums}
```
"""


def describe(frames: list[Atoms], atoms: list[Atoms], files: list[Path]) -> str:
    """The text of README.md for these frames, free atoms and written files."""
    energies = np.array([frame.get_potential_energy() for frame in frames])
    forces = np.array([frame.get_forces() for frame in frames])
    free = (f"{a.symbols[0]} {a.get_potential_energy():.8f} eV (multiplicity {a.info['multiplicity']})" for a in atoms)
    checksums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files)
    return README.format(
        method=METHOD,
        frames=len(frames),
        tblite=version("tblite"),
        ase=version("ase"),
        temperature=TEMPERATURE_K,
        timestep=TIMESTEP_FS,
        relaxation=RELAXATION_FS,
        trajectories=TRAJECTORIES,
        equilibration=EQUILIBRATION_STEPS * TIMESTEP_FS / 1000,
        spacing=STEPS_PER_FRAME * TIMESTEP_FS,
        first_seed=FIRST_SEED,
        last_seed=FIRST_SEED + TRAJECTORIES - 1,
        shuffle_seed=SHUFFLE_SEED,
        accuracy=LABEL_ACCURACY,
        mean=energies.mean(),
        std=energies.std(),
        rms=np.sqrt(np.mean(forces**2)),
        largest=np.abs(forces).max(),
        atoms=", ".join(free),
        checksums="\n".join(checksums),
    )


def main() -> None:
    """Make the frames and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=400, help="how many frames (default 400)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder for the files")
    args = parser.parse_args()
    if args.frames < 1:
        parser.error("--frames must be at least 1")
    frames, atoms = make_frames(args.frames), isolated_atoms()
    args.out.mkdir(parents=True, exist_ok=True)
    files = [args.out / "methanol_gfn2.xyz", args.out / "isolated_atoms.xyz"]
    for path, images in zip(files, (frames, atoms), strict=True):
        write(path, images, format="extxyz")
        print(f"{len(images)} frames: {path}")
    (args.out / "README.md").write_text(describe(frames, atoms, files), encoding="utf-8")


if __name__ == "__main__":
    main()
