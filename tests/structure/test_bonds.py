"""Covalent bonds and the changes of their lengths, of molecules and crystals."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff.structure.bonds import bond_fragment, find_bonds


def test_bonds_of_ethanol() -> None:
    atoms = molecule("CH3CH2OH")
    bonds = find_bonds(atoms)
    assert len(bonds) == 8
    assert bonds.largest_change(atoms) == 0.0
    first, second = bonds.pairs[0]
    atoms.positions[second] += 0.3 * (atoms.positions[second] - atoms.positions[first]) / bonds.lengths[0]
    assert bonds.changes(atoms)[0] == pytest.approx(0.3)


def test_fragments_of_a_bond() -> None:
    ethanol = molecule("CH3CH2OH")
    pairs = find_bonds(ethanol).pairs
    assert bond_fragment(pairs, 1, 2) == {2, 3}  # C–O: the hydroxyl group
    assert bond_fragment(pairs, 2, 3) == {3}
    benzene = find_bonds(molecule("C6H6")).pairs
    assert bond_fragment(benzene, 0, 1) == {1}  # in a ring there is no side


def test_bonds_across_a_periodic_boundary() -> None:
    atoms = bulk("C", cubic=True)
    bonds = find_bonds(atoms)
    assert len(bonds) == 16
    stretched = atoms.copy()
    stretched.set_cell(1.1 * atoms.cell.array, scale_atoms=True)
    np.testing.assert_allclose(bonds.changes(stretched), 0.1 * bonds.lengths, atol=1e-12)


def test_a_structure_without_bonds_never_breaks() -> None:
    atoms = Atoms("ArAr", [(0, 0, 0), (0, 0, 5)])
    assert find_bonds(atoms).largest_change(atoms) == 0.0


def test_vectors_follow_a_moved_atom() -> None:
    water = molecule("H2O")
    bonds = find_bonds(water)
    assert bonds.pairs.tolist() == [[0, 1], [0, 2]]
    stretched = water.copy()
    stretched.positions[2] += 0.3 * bonds.vectors(water)[1] / bonds.lengths[1]
    np.testing.assert_allclose(np.linalg.norm(bonds.vectors(stretched), axis=1), bonds.lengths + np.array([0.0, 0.3]))
    assert bonds.largest_change(stretched) == pytest.approx(0.3)
