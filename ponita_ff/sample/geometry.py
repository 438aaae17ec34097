"""Geometry of molecules and clusters: conformers, rotations, contacts, and what of it may be turned or stretched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.vdw_alvarez import vdw_radii
from numpy.typing import NDArray

from ponita_ff.structure.bonds import BOND_CHANGE_LIMIT, Bonds, bond_fragment, find_bonds

__all__ = [
    "Connectivity",
    "closest_ratio",
    "conformers",
    "placed",
    "random_rotation",
    "rotation_about",
    "single_bonds_outside_rings",
    "without_radius",
]

Array = NDArray[np.float64]

#: Two atoms that were not bonded are, where they are nearer than this many sums of their covalent radii.
_NEW_BOND = 1.1
#: Embeddings for each conformer that is wanted.
_EMBEDDINGS = 4
#: RDKit multiplies the seed by the conformer's number: with 0 all conformers are the same.
_FOR_SEED_0 = 2**30 - 1
#: A bond longer than this many sums of covalent radii is no double or triple bond.
_SINGLE_BOND = 0.93


@dataclass(frozen=True)
class Connectivity:
    """The bonds that a structure must have.

    Attributes:
        bonds: With their lengths where they were found.
    """

    bonds: Bonds

    @classmethod
    def of(cls, atoms: Atoms) -> Connectivity:
        """That of a whole structure."""
        return cls(find_bonds(atoms))

    @classmethod
    def of_parts(cls, parts: Sequence[Atoms]) -> Connectivity:
        """That of molecules side by side, one after the other in the list of atoms, without bonds between them."""
        found = [find_bonds(part) for part in parts]
        offsets = np.cumsum([0, *(len(part) for part in parts[:-1])])
        pairs = [bonds.pairs + offset for bonds, offset in zip(found, offsets, strict=True)]
        return cls(
            Bonds(
                np.concatenate(pairs),
                np.concatenate([bonds.lengths for bonds in found]),
                np.concatenate([bonds.shifts for bonds in found]),
            )
        )

    def problem(self, atoms: Atoms) -> str | None:
        """What is broken in another geometry of the same atoms, in words; None if nothing is."""
        if self.bonds.largest_change(atoms) > BOND_CHANGE_LIMIT:
            return self.bonds.describe_largest_change(atoms)
        near = find_bonds(atoms)
        radii = covalent_radii[atoms.numbers]
        known = set(map(tuple, np.hstack([self.bonds.pairs, self.bonds.shifts]).tolist()))
        for (i, j), length, shift in zip(near.pairs.tolist(), near.lengths, near.shifts.tolist(), strict=True):
            if length < _NEW_BOND * (radii[i] + radii[j]) and (i, j, *shift) not in known:
                return f"a new bond {atoms.symbols[i]}{i}–{atoms.symbols[j]}{j} of {length:.2f} Å"
        return None

    def side(self, first: int, second: int) -> list[int]:
        """Atoms on the second atom's side of a bond, with it; only that atom if the bond is in a ring."""
        return sorted(bond_fragment(self.bonds.pairs, first, second))

    def outside_rings(self) -> list[tuple[int, int]]:
        """Bonds that are in no ring, each with the end first that has more atoms behind it."""
        found = []
        for first, second in self.bonds.pairs.tolist():
            behind_second, behind_first = self.side(first, second), self.side(second, first)
            if len(behind_first) + len(behind_second) == self._connected(first):
                found.append((first, second) if len(behind_second) <= len(behind_first) else (second, first))
        return found

    def neighbours(self, atom: int) -> list[int]:
        """Atoms bonded to an atom."""
        pairs = self.bonds.pairs
        return sorted([*pairs[pairs[:, 0] == atom, 1].tolist(), *pairs[pairs[:, 1] == atom, 0].tolist()])

    def _connected(self, atom: int) -> int:
        """Number of atoms of the molecule that an atom belongs to."""
        seen, queue = {atom}, [atom]
        while queue:
            new = set(self.neighbours(queue.pop())) - seen
            seen |= new
            queue.extend(new)
        return len(seen)


def single_bonds_outside_rings(atoms: Atoms, connectivity: Connectivity) -> list[tuple[int, int, int, int]]:
    """Torsions of a molecule, one for each bond that turns easily: the bond's ends in the middle, a neighbour of each.

    A bond counts as single by its length, in which the lengths of C–C 1.54 and C=C 1.34 Å, C–N 1.47 and C=N 1.28 Å
    differ. Ends that are part of a straight chain are left out.
    """
    found = []
    for first, second in connectivity.outside_rings():
        ends = [
            [other for other in connectivity.neighbours(end) if other not in (first, second)] for end in (first, second)
        ]
        length = atoms.get_distance(first, second)
        radii = covalent_radii[atoms.numbers[[first, second]]].sum()
        if not all(ends) or length < _SINGLE_BOND * radii:
            continue
        before, after = ends[0][0], ends[1][0]
        angles = atoms.get_angle(before, first, second), atoms.get_angle(first, second, after)
        if max(angles) < 170:
            found.append((before, first, second, after))
    return found


def conformers(smiles: str, number: int, seed: int) -> list[Atoms]:
    """Conformers by RDKit's ETKDG (Wang et al. 2020, doi:10.1021/acs.jcim.0c00025), relaxed by MMFF94 or UFF.

    Args:
        smiles: A molecule.
        number: Largest number of conformers; those that are alike to 0.1 Å count once.
        seed: Of the embedding.

    Raises:
        ValueError: RDKit cannot read the SMILES, or does not embed the molecule.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        parsed = Chem.MolFromSmiles(smiles)
        if parsed is None or not parsed.GetNumAtoms():
            raise ValueError(f"RDKit cannot read {smiles!r} as the SMILES of a molecule")
        mol: Any = Chem.AddHs(parsed)
        parameters: Any = rdDistGeom.ETKDGv3()
        parameters.randomSeed, parameters.pruneRmsThresh, parameters.numThreads = seed or _FOR_SEED_0, 0.1, 1
        parameters.onlyHeavyAtomsForRMS = False
        # More than are wanted: those that are alike are removed.
        found = list(rdDistGeom.EmbedMultipleConfs(mol, _EMBEDDINGS * number, parameters))
        if not found:
            parameters.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(mol, _EMBEDDINGS * number, parameters))
        if not found:
            raise ValueError(f"RDKit does not embed {smiles}")
        for one in found[number:]:
            mol.RemoveConformer(one)
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, numThreads=1)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, numThreads=1)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    return [Atoms(numbers, one.GetPositions()) for one in mol.GetConformers()]


def rotation_about(axis: Array, angle: float) -> Array:
    """Matrix, shape (3, 3), of a rotation by an angle (radians) about an axis (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def random_rotation(generator: np.random.Generator) -> Array:
    """A uniformly distributed rotation matrix, shape (3, 3): Q of a random matrix, with R's diagonal positive."""
    q, r = np.linalg.qr(generator.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q if np.linalg.det(q) > 0 else -q)


def without_radius(numbers: Sequence[int]) -> str | None:
    """Symbol of an element without a van der Waals radius (Alvarez 2013, doi:10.1039/c3dt50599e), if there is one."""
    return next((chemical_symbols[number] for number in numbers if not np.isfinite(vdw_radii[number])), None)


def placed(parts: Sequence[Atoms], contact: float, generator: np.random.Generator) -> Atoms:
    """A cluster of molecules at random orientations, each put against those before it.

    Args:
        parts: Molecules whose elements all have van der Waals radii.
        contact: Distance of the closest pair of atoms of a molecule and those before it, in sums of their radii.
        generator: Source of random numbers.

    Returns:
        All atoms, in the order of the parts.
    """
    cluster = parts[0].copy()
    for part in parts[1:]:
        for one in (cluster, turned := part.copy()):
            one.positions = (one.positions - one.positions.mean(0)) @ random_rotation(generator).T
        radii = contact * (vdw_radii[cluster.numbers][:, None] + vdw_radii[turned.numbers])
        gap = turned.positions[None] - cluster.positions[:, None]
        lateral = (gap[..., :2] ** 2).sum(-1)
        # The second comes down along z until the first pair of atoms is at its distance.
        touching = lateral < radii**2
        height = np.sqrt(np.where(touching, radii**2 - lateral, 0.0)) - gap[..., 2]
        turned.positions[:, 2] += np.max(height, where=touching, initial=0.0)
        cluster += turned
    return cluster


def closest_ratio(atoms: Atoms) -> float:
    """Shortest distance of two atoms in sums of their covalent radii; infinite where none are near."""
    # Atoms nearer than 1.2 sums are all that counts; farther ones are not looked for.
    near = find_bonds(atoms)
    radii = covalent_radii[atoms.numbers]
    i, j = near.pairs.T
    return float((near.lengths / (radii[i] + radii[j])).min(initial=np.inf))
