"""Frames of molecules whose scaffolds are held out, to label by PySCF and compare potentials on.

    python holdout.py conformers --molecules FOLDER --out conformers.xyz
    python holdout.py scaffolds --tests tests/shard_0000.npz --out scaffolds.xyz
    ponita-ff label conformers.xyz --method wb97x/6-31g*/cartesian/density-fitting --out conformers_dft.xyz

``conformers.xyz.gz`` and ``scaffolds.xyz.gz`` beside this file are the labelled frames.

Conformers: ten molecules of six to eight heavy atoms with two rotatable bonds or more, drawn from
``nagl2_fragments.smi``; RDKit's conformers, relaxed by GFN2-xTB, those that are alike once, five of each (needs
ponita_ff with RDKit and tblite). Scaffolds: of every molecule of up to nine heavy atoms in a shard of
``frames.py --plan tests``, two frames of dynamics. ``benchmarks/general.py zero-shot --holdout NAME=FILE`` reads the
labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from ase.optimize import BFGS
from molecules import read, usable
from rdkit.Chem import rdMolDescriptors
from tblite.ase import TBLite

from ponita_ff.sample.geometry import conformers

MOLECULES, EACH, HEAVY, ROTATABLE = 10, 5, (6, 8), 2

#: Heavy atoms of a molecule of the held-out scaffolds at most, and its frames.
SCAFFOLD_HEAVY, SCAFFOLD_FRAMES = 9, 2

#: Minima whose energies are nearer than this are one, eV.
ALIKE = 0.005


def minima(smiles: str) -> list[Atoms]:
    """Return relaxed conformers in the order of their energies."""
    found: list[tuple[float, Atoms]] = []
    for atoms in conformers(smiles, 4 * EACH, 0):
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        with BFGS(atoms, logfile=None) as optimiser:
            optimiser.run(fmax=0.02, steps=300)
        energy = atoms.get_potential_energy()
        if all(abs(energy - other) > ALIKE for other, _ in found):
            found.append((energy, Atoms(atoms.numbers, atoms.positions, info={"smiles": smiles})))
    return [atoms for _, atoms in sorted(found, key=lambda pair: pair[0])]


def flexible_molecules(folder: Path) -> list[Atoms]:
    """Return the conformers; prints each molecule.

    Args:
        folder: Holds ``nagl2_fragments.smi``.
    """
    mols = usable(read(folder / "nagl2_fragments.smi"), HEAVY[1], tests=True)
    flexible = [
        smiles
        for smiles, mol in mols.items()
        if mol.GetNumHeavyAtoms() >= HEAVY[0] and rdMolDescriptors.CalcNumRotatableBonds(mol) >= ROTATABLE
    ]
    chosen: list[Atoms] = []
    number = 0
    for index in np.random.default_rng(0).permutation(len(flexible)):
        found = minima(flexible[index])[:EACH]
        if len(found) < EACH:
            continue
        chosen += found
        number += 1
        print(number, flexible[index], flush=True)
        if number == MOLECULES:
            break
    return chosen


def frames_of_dynamics(shard: Path) -> list[Atoms]:
    """Return frames of dynamics of each molecule of a shard that is not too large."""
    with np.load(shard) as file:
        data = {key: file[key] for key in file.files}
    ends, rng, chosen = np.cumsum(data["size"].astype(int)), np.random.default_rng(0), []
    for smiles in sorted(set(data["smiles"].tolist())):
        rows = np.flatnonzero((data["smiles"] == smiles) & (data["kind"] == "md"))
        for row in rng.permutation(rows)[:SCAFFOLD_FRAMES]:
            atoms = slice(ends[row] - int(data["size"][row]), ends[row])
            numbers = data["numbers"][atoms]
            positions = np.round(data["positions"][atoms].astype(float), 4)
            if np.count_nonzero(numbers > 1) <= SCAFFOLD_HEAVY:
                chosen.append(Atoms(numbers, positions, info={"smiles": smiles}))
    return chosen


def main() -> None:
    """Write the frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["conformers", "scaffolds"])
    parser.add_argument("--molecules", type=Path, help="folder of the SMILES files")
    parser.add_argument("--tests", type=Path, help="shard of held-out scaffolds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    source = args.molecules if args.kind == "conformers" else args.tests
    if source is None:
        parser.error("conformers need --molecules, scaffolds --tests")
    frames = flexible_molecules(source) if args.kind == "conformers" else frames_of_dynamics(source)
    write(args.out, frames, format="extxyz")


if __name__ == "__main__":
    main()
