"""Orientation grids as quadratures and as orbits of a group; rotations to average over."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ponita_ff.network.config import GRID_SIZES
from ponita_ff.network.orientations import (
    averaging_rotations,
    even_rotations,
    grid_residual,
    orientation_grid,
    quotients,
    random_rotations,
    rotation_group,
)

every_grid = pytest.mark.parametrize("num_ori", GRID_SIZES)


def double_factorial(n: int) -> int:
    """n!!, with (−1)!! = 1."""
    return math.prod(range(n, 0, -2))


def sphere_mean(powers: tuple[int, int, int]) -> float:
    """Mean of x^a y^b z^c over the unit sphere, in closed form."""
    if any(power % 2 for power in powers):
        return 0.0
    return math.prod(double_factorial(power - 1) for power in powers) / double_factorial(sum(powers) + 1)


def largest_error(num_ori: int, degree: int) -> float:
    """Largest quadrature error over all monomials of a degree."""
    grid = orientation_grid(num_ori)
    errors = []
    for powers in itertools.product(range(degree + 1), repeat=3):
        if sum(powers) == degree:
            value = grid.weights @ np.prod(grid.orientations ** np.array(powers), axis=1)
            errors.append(abs(value - sphere_mean(powers)))
    return max(errors)


@every_grid
def test_unit_vectors_and_positive_weights_that_sum_to_one(num_ori: int) -> None:
    grid = orientation_grid(num_ori)
    assert grid.orientations.shape == (num_ori, 3)
    assert grid.weights.shape == (num_ori,)
    assert np.abs(np.linalg.norm(grid.orientations, axis=1) - 1.0).max() < 1e-14
    assert grid.weights.min() > 0.0
    assert grid.weights.sum() == pytest.approx(1.0, abs=1e-14)
    distances = np.linalg.norm(grid.orientations[:, None] - grid.orientations, axis=-1)
    assert distances[~np.eye(num_ori, dtype=bool)].min() > 0.3


@every_grid
def test_exact_up_to_its_degree_and_no_further(num_ori: int) -> None:
    degree = orientation_grid(num_ori).degree
    assert all(largest_error(num_ori, d) < 1e-14 for d in range(degree + 1))
    assert degree % 2 == 1  # every grid holds −n with n, so that odd degrees are always exact
    assert largest_error(num_ori, degree + 1) > 1e-4


@every_grid
def test_its_group_maps_it_onto_itself_weights_and_all(num_ori: int) -> None:
    grid = orientation_grid(num_ori)
    for rotation in rotation_group(grid.group):
        distances = np.linalg.norm((grid.orientations @ rotation.T)[:, None] - grid.orientations, axis=-1)
        image = distances.argmin(axis=1)
        assert distances.min(axis=1).max() < 1e-13
        assert sorted(image) == list(range(num_ori))
        assert np.abs(grid.weights[image] - grid.weights).max() < 1e-15


@every_grid
def test_holds_the_inverse_of_every_orientation(num_ori: int) -> None:
    points = orientation_grid(num_ori).orientations
    assert np.linalg.norm(-points[:, None] - points, axis=-1).min(axis=1).max() < 1e-13


def test_is_the_same_when_made_again() -> None:
    first = orientation_grid(62)
    orientation_grid.cache_clear()
    rotation_group.cache_clear()
    again = orientation_grid(62)
    assert np.array_equal(first.orientations, again.orientations)
    assert np.array_equal(first.weights, again.weights)


def test_the_numbers_are_those_of_the_first_release() -> None:
    """Of a file that stores num_ori only, another grid would make another potential."""
    vertex = np.array([0.0, 1.0, (1 + 5**0.5) / 2])
    assert orientation_grid(12).orientations[0] == pytest.approx(vertex / np.linalg.norm(vertex), abs=1e-15)
    # McLaren's 32-point rule, Math. Comp. 17, 361 (1963): weights 5/168 of the vertices and 27/840 of the faces.
    assert orientation_grid(32).weights == pytest.approx([5 / 168] * 12 + [27 / 840] * 20, abs=1e-14)


@pytest.mark.parametrize(("name", "order"), [("icosahedral", 60), ("octahedral", 24)])
def test_group_is_a_group_of_rotations(name: str, order: int) -> None:
    group = rotation_group(name)
    assert group.shape == (order, 3, 3)
    assert np.array_equal(group[0], np.eye(3))
    assert np.abs(group @ np.swapaxes(group, 1, 2) - np.eye(3)).max() < 1e-13
    assert np.abs(np.linalg.det(group) - 1.0).max() < 1e-13
    products = (group[:, None] @ group[None]).reshape(-1, 1, 9)
    assert np.abs(products - group.reshape(1, -1, 9)).max(axis=-1).min(axis=1).max() < 1e-12


def test_unknown_group_is_named() -> None:
    with pytest.raises(ValueError, match="'cyclic'"):
        rotation_group("cyclic")


@pytest.mark.parametrize("num_ori", [-12, 1, 7, 13, 1000])
def test_unknown_grid_is_refused_with_the_choices(num_ori: int) -> None:
    with pytest.raises(ValueError, match=rf"num_ori={num_ori}.*6, 8, 12, 20, 32, 62"):
        orientation_grid(num_ori)


def test_even_rotations_are_rotations_the_identity_first() -> None:
    rotations = even_rotations(50)
    assert rotations.dtype == torch.float64
    assert torch.equal(rotations[0], torch.eye(3, dtype=torch.float64))
    assert float((rotations @ rotations.mT - torch.eye(3, dtype=torch.float64)).abs().max()) < 1e-14
    assert float((torch.linalg.det(rotations) - 1.0).abs().max()) < 1e-14
    assert torch.equal(rotations, even_rotations(50))


def test_even_rotations_are_spread_over_all_rotations() -> None:
    """Over all rotations R averages to zero, and (trace R)² to one: the Wigner matrices of l = 1 and 2."""
    numbers = (4, 16, 64, 256, 1024)
    first = [float(even_rotations(n).mean(0).norm()) for n in numbers]
    second = [abs(float(torch.einsum("nii->n", even_rotations(n)).square().mean()) - 1.0) for n in numbers]
    bounds = [2.0 / n**0.5 for n in numbers]
    assert all(value < bound for value, bound in zip(first, bounds, strict=True)), first
    assert all(value < 2 * bound for value, bound in zip(second, bounds, strict=True)), second
    assert first[-1] < 0.01


def test_grid_residual_of_known_sets() -> None:
    alone = np.eye(3)[None]
    for degree in (6, 10, 12):
        assert grid_residual(alone, degree) == pytest.approx(1.0)
        # The grid does not see its own symmetries ...
        assert grid_residual(rotation_group("icosahedral"), degree) == pytest.approx(1.0)
        # ... and rotations that know nothing of each other leave 1/n.
        assert 0.3 < 120 * grid_residual(random_rotations(120, (0,)), degree) < 3.0


@pytest.mark.parametrize(("number", "bound"), [(2, 0.35), (3, 0.14), (4, 0.05), (5, 0.005), (6, 1e-3)])
def test_averaging_rotations_cancel_the_leading_error(number: int, bound: float) -> None:
    rotations = averaging_rotations(number, "icosahedral")
    assert rotations.shape == (number, 3, 3)
    assert torch.equal(rotations[0], torch.eye(3, dtype=torch.float64))
    assert float((rotations @ rotations.mT - torch.eye(3, dtype=torch.float64)).abs().max()) < 1e-14
    assert float((torch.linalg.det(rotations) - 1.0).abs().max()) < 1e-14
    assert grid_residual(rotations.numpy(), 6) < min(bound, grid_residual(even_rotations(number).numpy(), 6))


@pytest.mark.parametrize(("number", "group"), [(1, "icosahedral"), (7, "icosahedral"), (3, "octahedral"), (3, "")])
def test_other_averages_are_even(number: int, group: str) -> None:
    assert torch.equal(averaging_rotations(number, group), even_rotations(number))


@pytest.mark.parametrize(("name", "order"), [("trivial", 1), ("tetrahedral", 12), ("octahedral", 24)])
def test_quotients_of_a_group(name: str, order: int) -> None:
    elements, table = rotation_group(name), quotients(name)
    assert elements.shape == (order, 3, 3)
    assert np.allclose(elements[0], np.eye(3))
    assert np.abs(elements[:, None].swapaxes(-1, -2) @ elements[None] - elements[table]).max() < 1e-12
