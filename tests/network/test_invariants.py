"""Invariants of bonds and orientations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ponita_ff.network import invariants
from ponita_ff.network.invariants import bond_invariants, legendre, published_invariants
from ponita_ff.network.orientations import even_rotations, orientation_grid


@pytest.fixture
def orientations() -> Tensor:
    return torch.from_numpy(orientation_grid(20).orientations)


@pytest.fixture
def vectors() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(4, 5, 3)))


def test_bond_invariants_are_distance_and_cosine(vectors: Tensor, orientations: Tensor) -> None:
    distance, cosine = bond_invariants(vectors, orientations)
    assert distance.shape == (4, 5)
    assert cosine.shape == (4, 5, 20)
    x, n = vectors[1, 2].numpy(), orientations[7].numpy()
    assert float(distance[1, 2]) == pytest.approx(np.linalg.norm(x), rel=1e-14)
    assert float(cosine[1, 2, 7]) == pytest.approx(x @ n / np.linalg.norm(x), rel=1e-13)


@pytest.mark.parametrize("function", [bond_invariants, published_invariants])
def test_turning_bonds_and_orientations_together_changes_nothing(function, vectors: Tensor, orientations) -> None:
    rotation = even_rotations(3)[2]
    before = torch.cat([t.flatten() for t in function(vectors, orientations)])
    after = torch.cat([t.flatten() for t in function(vectors @ rotation.T, orientations @ rotation.T)])
    turned_alone = torch.cat([t.flatten() for t in function(vectors @ rotation.T, orientations)])
    assert torch.allclose(before, after, rtol=0, atol=1e-13)
    assert not torch.allclose(before, turned_alone, rtol=0, atol=0.1)


@pytest.mark.parametrize("l_max", [0, 1, 2, 5, 12])
def test_legendre_against_numpy(l_max: int) -> None:
    cosine = torch.linspace(-1, 1, 33, dtype=torch.float64).reshape(3, 11)
    values = legendre(cosine, l_max)
    assert values.shape == (3, l_max + 1, 11)
    for degree in range(l_max + 1):
        expected = np.polynomial.legendre.legval(cosine.numpy(), [0.0] * degree + [1.0])
        assert np.abs(values[:, degree].numpy() - expected).max() < 1e-13


def test_published_invariants_are_the_sides_of_a_triangle(vectors: Tensor, orientations: Tensor) -> None:
    along, across = published_invariants(vectors, orientations).unbind(-1)
    distance, cosine = bond_invariants(vectors, orientations)
    assert torch.allclose(along, distance.unsqueeze(-1) * cosine, rtol=0, atol=1e-14)
    assert torch.allclose(along.square() + across.square(), distance.square().unsqueeze(-1).expand_as(along))


def test_published_cusp_has_zero_derivatives_and_no_nan() -> None:
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    vector = torch.tensor([0.0, 0.0, 1.7], dtype=torch.float64, requires_grad=True)
    across = published_invariants(vector, axis)[0, 1]
    (first,) = torch.autograd.grad(across, vector, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), vector)
    assert across == 0.0
    assert torch.equal(first, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(second, torch.zeros(3, dtype=torch.float64))


def test_bond_invariants_are_smooth_where_the_published_pair_has_its_cusp() -> None:
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)

    def slopes(function, x: float) -> Tensor:
        vector = torch.tensor([x, 0.0, 1.7], dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(function(vector), vector)[0]

    def smooth(v: Tensor) -> Tensor:
        return bond_invariants(v, axis)[1].sum()

    def cusped(v: Tensor) -> Tensor:
        return published_invariants(v, axis)[..., 1].sum()

    assert float((slopes(smooth, 5e-7) - slopes(smooth, -5e-7)).abs().max()) < 1e-6
    assert float((slopes(cusped, 5e-7) - slopes(cusped, -5e-7)).abs().max()) > 1.0


def test_cosines_without_a_matrix_product(vectors: Tensor, orientations: Tensor) -> None:
    """As on a GPU."""
    units = torch.nn.functional.normalize(vectors, dim=-1)
    found = invariants._sum_of_products(units, orientations)
    assert torch.allclose(found, units @ orientations.T, rtol=0, atol=1e-15)
