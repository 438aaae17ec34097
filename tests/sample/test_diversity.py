"""Frames that differ: a descriptor without symmetries, and the selection by it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff.sample.diversity import descriptors, farthest_first, shared_out
from ponita_ff.sample.geometry import random_rotation
from ponita_ff.sample.settings import SelectionSettings

SETTINGS = SelectionSettings()


def descriptor(atoms: Atoms) -> np.ndarray:
    return descriptors([atoms], SETTINGS)[0]


def test_the_descriptor_has_the_symmetries_of_the_energy() -> None:
    atoms = molecule("CH3CH2OH")
    generator = np.random.default_rng(0)
    order = generator.permutation(len(atoms))
    turned = Atoms(atoms.numbers[order], (atoms.positions @ random_rotation(generator).T + 3.0)[order])
    first, second = descriptor(atoms), descriptor(turned)
    np.testing.assert_allclose(first, second, atol=1e-9)
    turned.positions[0] += 0.2
    assert np.linalg.norm(first - descriptor(turned)) > 0.02


def test_many_structures_at_once_in_any_order_of_atoms() -> None:
    generator = np.random.default_rng(0)
    ethanol, frames = molecule("CH3CH2OH"), []
    for _ in range(300):
        atoms = ethanol[generator.permutation(len(ethanol))]
        atoms.rattle(0.1, rng=generator)
        frames.append(atoms)
    found = descriptors(frames, SETTINGS)
    assert found.shape == (300, 9 * 3 * SETTINGS.functions)
    for index in (0, 150, 299):
        np.testing.assert_allclose(found[index], descriptor(frames[index]), atol=1e-12)
    assert descriptors([], SETTINGS).shape[0] == 0


def test_its_norm_is_of_an_atom_whatever_their_number() -> None:
    one, two = bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1)
    lengths = []
    for crystal in (one, two):
        wider = crystal.copy()
        wider.set_cell(1.03 * crystal.cell, scale_atoms=True)
        lengths.append(np.linalg.norm(descriptor(wider) - descriptor(crystal)))
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-9) and lengths[0] > 0


def test_a_single_atom() -> None:
    assert not descriptor(Atoms("He")).any()


def test_the_farthest_comes_next_and_the_near_ones_are_left_out() -> None:
    points = np.array([[0.0], [1.0], [10.0], [4.0], [10.05], [0.0]])
    order, gaps = farthest_first(points, 0.0)
    assert order == [0, 4, 3, 1, 2, 5]
    assert gaps == pytest.approx([np.inf, 10.05, 4.0, 1.0, 0.05, 0.0])
    assert farthest_first(points, 0.1)[0] == [0, 4, 3, 1]
    assert farthest_first(points[:0], 0.1) == ([], [])


def test_shares() -> None:
    assert shared_out([5, 2, 9], None) == [5, 2, 9]
    assert shared_out([5, 2, 9], 100) == [5, 2, 9]
    assert shared_out([5, 2, 9], 9) == [4, 2, 3]
    assert shared_out([5, 2, 9], 2) == [1, 1, 0]
    assert sum(shared_out([1, 30, 2, 0, 7], 17)) == 17
