"""Choosing frames that differ."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff.explore.select import descriptor, select_farthest


def bent(angle: float) -> Atoms:
    """Water with another angle, turned and moved at random."""
    atoms = molecule("H2O")
    atoms.set_angle(1, 0, 2, angle)
    generator = np.random.default_rng(int(angle))
    atoms.rotate(360 * generator.random(), generator.normal(size=3))
    atoms.translate(generator.normal(size=3))
    return atoms


def test_descriptor_sees_shape_only() -> None:
    one, same, other = bent(100.0), bent(100.0), bent(110.0)
    same.rotate(77.0, (1, 2, 3))
    same.translate((4, 5, 6))
    np.testing.assert_allclose(descriptor(one), descriptor(same), atol=1e-12)
    assert np.abs(descriptor(one) - descriptor(other)).max() > 1e-3


def test_descriptor_of_crystals_takes_nearest_images() -> None:
    crystal = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    moved = crystal.copy()
    moved.translate((2.0, 0.3, 0.1))
    moved.wrap()
    np.testing.assert_allclose(descriptor(crystal), descriptor(moved), atol=1e-10)


def test_ends_come_before_the_middle() -> None:
    frames = [bent(angle) for angle in (104, 90, 120, 105, 103)]
    assert select_farthest(frames, [], 3)[0] == 0  # all alike: the first
    assert set(select_farthest(frames, [], 3)) == {0, 1, 2}
    assert set(select_farthest(frames, [bent(104)], 2)) == {1, 2}


def test_what_is_known_is_not_chosen_again() -> None:
    frames = [bent(angle) for angle in (90, 120, 104)]
    assert select_farthest(frames, [bent(90), bent(104)], 1) == [1]


def test_other_molecules_are_no_neighbours() -> None:
    """Of two kinds both are taken, however alike the frames of each."""
    frames = [bent(104), bent(105), molecule("CH4"), bent(106)]
    assert 2 in select_farthest(frames, [], 2)
    assert select_farthest(frames, [bent(90)], 1) == [2]


def test_weights_count() -> None:
    frames = [bent(90), bent(118)]
    assert select_farthest(frames, [bent(104)], 1) == [0]
    assert select_farthest(frames, [bent(104)], 1, np.array([1.0, 5.0])) == [1]


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (2, 2), (9, 3)])
def test_never_more_than_there_are(number: int, expected: int) -> None:
    chosen = select_farthest([bent(a) for a in (90, 100, 110)], [], number)
    assert len(chosen) == len(set(chosen)) == expected
