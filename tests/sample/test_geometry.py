"""Geometry of molecules: contacts, bonds that must hold, what may be turned, conformers."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data.vdw_alvarez import vdw_radii

from ponita_ff.sample.geometry import (
    Connectivity,
    closest_ratio,
    conformers,
    placed,
    random_rotation,
    rotation_about,
    single_bonds_outside_rings,
    without_radius,
)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.7])
def test_the_closest_atoms_of_two_molecules_are_at_the_distance_asked_for(factor: float) -> None:
    parts = [molecule("C6H6"), molecule("CH3OH"), molecule("H2O")]
    for seed in range(5):
        cluster = placed(parts, factor, np.random.default_rng(seed))
        assert cluster.numbers.tolist() == [number for part in parts for number in part.numbers]
        owner = np.repeat(range(3), [len(part) for part in parts])
        ratios = cluster.get_all_distances() / (vdw_radii[cluster.numbers][:, None] + vdw_radii[cluster.numbers])
        for last in (1, 2):  # each against all before it
            between = ratios[np.ix_(owner == last, owner < last)]
            assert between.min() == pytest.approx(factor)
        for index, part in enumerate(parts):
            inside = cluster[owner == index].get_all_distances()
            np.testing.assert_allclose(inside, part.get_all_distances(), atol=1e-12)


def test_rotations() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        matrix = random_rotation(generator)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1.0)
    turned = rotation_about(np.array([0.0, 0.0, 2.0]), np.pi / 2) @ [1.0, 0.0, 5.0]
    np.testing.assert_allclose(turned, [0.0, 1.0, 5.0], atol=1e-12)


def test_random_rotations_are_uniform() -> None:
    generator = np.random.default_rng(1)
    vectors = np.array([random_rotation(generator) @ [0.0, 0.0, 1.0] for _ in range(2000)])
    np.testing.assert_allclose(vectors.mean(0), 0.0, atol=0.06)
    np.testing.assert_allclose(vectors.T @ vectors / 2000, np.eye(3) / 3, atol=0.04)


def test_broken_bonds_and_new_ones() -> None:
    ethanol = molecule("CH3CH2OH")
    whole = Connectivity.of(ethanol)
    assert whole.problem(ethanol) is None
    moved = ethanol.copy()
    moved.rattle(0.05, seed=1)
    assert whole.problem(moved) is None
    moved.positions[3] += 1.5  # the hydroxyl's hydrogen
    assert "the bond O2–H3 has changed from 0.97 to" in str(whole.problem(moved))
    closed = Connectivity.of(Atoms("H2", [[0, 0, 0], [0, 0, 3.0]]))
    assert "a new bond H0–H1 of 0.60 Å" in str(closed.problem(Atoms("H2", [[0, 0, 0], [0, 0, 0.6]])))


def test_bonds_of_molecules_side_by_side() -> None:
    parts = [molecule("CH3OH"), molecule("H2O")]
    joined = placed(parts, 1.0, np.random.default_rng(0))
    found = Connectivity.of_parts(parts)
    assert len(found.bonds) == 5 + 2 and found.problem(joined) is None
    hydrogen = next(index for index in range(len(joined)) if joined.numbers[index] == 1 and index >= 6)
    oxygen = joined.symbols.indices()["O"][0]
    direction = joined.positions[hydrogen] - joined.positions[oxygen]
    joined.positions[6:] -= direction * (1 - 1.0 / np.linalg.norm(direction))
    assert "a new bond" in str(found.problem(joined))


def test_a_crystal_keeps_its_bonds_across_the_boundary() -> None:
    diamond = bulk("C", cubic=True)
    found = Connectivity.of(diamond)
    diamond.rattle(0.02, seed=0)
    assert found.problem(diamond) is None
    diamond.positions[0] += [0.9, 0.0, 0.0]
    assert found.problem(diamond) is not None


def test_what_may_be_turned() -> None:
    butane = molecule("trans-butane")
    torsions = single_bonds_outside_rings(butane, Connectivity.of(butane))
    assert len(torsions) == 3
    carbons = [torsion for torsion in torsions if all(butane.numbers[list(torsion[1:3])] == 6)]
    assert len(carbons) == 3
    for name in ("C2H4", "C2H2", "C6H6", "CH4", "H2O"):  # double, triple, ring; nothing to turn
        atoms = molecule(name)
        assert single_bonds_outside_rings(atoms, Connectivity.of(atoms)) == []
    ethanol = molecule("CH3CH2OH")
    assert len(single_bonds_outside_rings(ethanol, Connectivity.of(ethanol))) == 2


def test_bonds_outside_rings_have_the_larger_side_first() -> None:
    toluene = molecule("C6H6")
    found = Connectivity.of(toluene).outside_rings()
    assert len(found) == 6  # C–H only
    assert all((toluene.numbers[first], toluene.numbers[second]) == (6, 1) for first, second in found)
    assert Connectivity.of(toluene).side(*found[0]) == [found[0][1]]


def test_conformers_are_the_same_for_the_same_seed() -> None:
    pytest.importorskip("rdkit")
    one, other, third = (conformers("CCCCO", 3, seed) for seed in (5, 5, 6))
    assert len(one) == len(third) == 3
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert not np.allclose(one[0].positions, third[0].positions)
    assert one[0].get_chemical_formula() == "C4H10O"
    assert len(conformers("C", 3, 1)) == 1  # all alike
    assert len(conformers("CCCCO", 3, 0)) == len(conformers("CCCCO", 3, 1)) == 3


def test_a_molecule_that_does_not_embed() -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(ValueError, match="RDKit does not embed"):
        conformers("O[C@H]1[C@@H]2C[C@H]1C2", 1, 1)


@pytest.mark.parametrize("smiles", ["C1CC", "ethanol", ""])
def test_what_is_no_smiles(smiles: str) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(ValueError, match="RDKit cannot read"):
        conformers(smiles, 1, 1)


def test_closest_atoms() -> None:
    assert closest_ratio(Atoms("H2", [[0, 0, 0], [0, 0, 0.31]])) == pytest.approx(0.5)
    assert closest_ratio(Atoms("H2", [[0, 0, 0], [0, 0, 5]])) == np.inf
    assert closest_ratio(Atoms("H2", [[0, 0, 0], [0, 0, 0]])) == 0.0


def test_elements_without_a_radius() -> None:
    assert without_radius([1, 6, 8]) is None
    assert without_radius([1, 85]) == "At"
