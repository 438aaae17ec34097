"""Conformers of flexible molecules whose scaffolds are held out, to compare relative energies on.

    python conformers.py --molecules FOLDER --out conformers.xyz
    ponita-ff label conformers.xyz --method wb97x/6-31g*/cartesian/density-fitting --out conformers_dft.xyz

Needs ponita_ff with RDKit and tblite. Ten molecules of six to eight heavy atoms with two rotatable bonds or more, drawn
from ``nagl2_fragments.smi``; RDKit's conformers, relaxed by GFN2-xTB, those that are alike once, five of each molecule
at most. ``benchmarks/general.py zero-shot --holdout conformers=conformers_dft.xyz`` reads the labels.
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


def main() -> None:
    """Write the conformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=Path, required=True, help="folder of the SMILES files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mols = usable(read(args.molecules / "nagl2_fragments.smi"), HEAVY[1], tests=True)
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
    write(args.out, chosen, format="extxyz")


if __name__ == "__main__":
    main()
