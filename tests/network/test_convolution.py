"""Radial functions and the separable convolution against the formulas, written out as loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ponita_ff.kernels.messages import Edges, convolve
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.convolution import SeparableConvolution, fibre_convolution, sum_over_neighbours
from ponita_ff.network.invariants import bond_invariants, legendre
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.network.radial import RadialBasis, envelope
from ponita_ff.structure.graph import build_graph, edge_vectors

CUTOFF = 3.0


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Random weights, the same in every run, from a random state of the test's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def derivatives(function, x: float, order: int) -> list[float]:
    """Value and derivatives at x by autograd."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    values = [function(point)]
    for _ in range(order):
        values.append(torch.autograd.grad(values[-1], point, create_graph=True)[0])
    return [float(value.detach()) for value in values]


@pytest.mark.parametrize("power", [2, 6])
def test_envelope_goes_from_one_to_zero_with_two_continuous_derivatives(power: int) -> None:
    def u(r: Tensor) -> Tensor:
        return envelope(r, CUTOFF, power)

    assert derivatives(u, 0.0, 1) == [1.0, 0.0]
    inside, outside = derivatives(u, CUTOFF - 1e-7, 3), derivatives(u, CUTOFF + 1e-7, 2)
    assert outside == [0.0, 0.0, 0.0]
    assert max(abs(value) for value in inside[:3]) < 1e-5
    assert abs(inside[3]) > 0.1  # what is left of it is the third derivative
    r = torch.linspace(0, CUTOFF, 50, dtype=torch.float64)
    assert (torch.diff(u(r)) < 1e-12).all()


def test_envelope_value() -> None:
    # p = 6, u = 1/2: 1 − 28/2^6 + 48/2^7 − 21/2^8
    half = envelope(torch.tensor(CUTOFF / 2, dtype=torch.float64), CUTOFF)
    assert float(half) == pytest.approx(1 - 28 / 64 + 48 / 128 - 21 / 256, rel=1e-14)


def test_radial_basis_is_its_formula_and_zero_from_the_cutoff_on() -> None:
    basis = RadialBasis(CUTOFF, 5, 7, 4).double()
    r = 1.3
    bessel = np.array([math.sin(k * math.pi * r / CUTOFF) / r * CUTOFF for k in range(1, 6)])
    first, _, last, _ = basis.network

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    hidden = silu(first.weight.detach().numpy() @ bessel + first.bias.detach().numpy())
    expected = silu(last.weight.detach().numpy() @ hidden + last.bias.detach().numpy())
    expected *= float(envelope(torch.tensor(r, dtype=torch.float64), CUTOFF))
    assert basis(torch.tensor([r], dtype=torch.float64))[0].detach().numpy() == pytest.approx(expected, rel=1e-12)
    assert not basis(torch.tensor([CUTOFF, CUTOFF + 0.3, 1000.0], dtype=torch.float64)).any()


def test_radial_basis_does_not_depend_on_the_default_dtype_when_it_was_made() -> None:
    r = torch.linspace(0.5, 2.9, 7, dtype=torch.float64)
    basis = RadialBasis(CUTOFF, 5, 7, 4).double()
    torch.set_default_dtype(torch.float64)
    try:
        other = RadialBasis(CUTOFF, 5, 7, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    other.load_state_dict(basis.state_dict())
    assert torch.equal(basis(r), other(r))
    assert torch.equal(basis.float()(r.float()), other.float()(r.float()))


@pytest.fixture
def geometry() -> dict[str, Any]:
    """What a convolution takes of a small periodic system, except the features."""
    positions = np.random.default_rng(0).uniform(0, 4, (4, 3))
    graph = build_graph(np.ones(4, dtype=np.int64), positions, CUTOFF, 5.0 * np.eye(3), True)
    grid = orientation_grid(6)
    points, weights = torch.from_numpy(grid.orientations), torch.from_numpy(grid.weights)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    distance, cosine = bond_invariants(vectors, points)
    basis = torch.randn(*distance.shape, 5, dtype=torch.float64) * envelope(distance, CUTOFF).unsqueeze(-1)
    fibre = legendre(points @ points.T, 2).transpose(0, 1) * weights[:, None]
    return {
        "basis": basis,
        "angular": legendre(cosine, 2),
        "fibre_angular": fibre,
        "edges": Edges(graph.neighbours, graph.reverse, distance < CUTOFF),
    }


@pytest.mark.parametrize("for_compile", [False, True])
def test_convolution_against_loops(geometry: dict[str, Any], for_compile: bool) -> None:
    module = SeparableConvolution(3, 2, 5, 6.0, fibre=True).double()
    torch.nn.init.normal_(module.self_weight)
    features = torch.randn(4, 6, 3, dtype=torch.float64)
    result = module(features, *geometry.values(), for_compile=for_compile).detach().numpy()

    grid = orientation_grid(6)
    radial = module.radial.weight.detach().numpy().reshape(3, 3, 5)  # degree, channel, basis
    fibre, bias = module.fibre.detach().numpy(), module.bias.detach().numpy()
    f, basis, angular = features.numpy(), geometry["basis"].numpy(), geometry["angular"].numpy()
    spatial = module.self_weight.detach().numpy() * f
    for i in range(4):
        for m, j in enumerate(geometry["edges"].neighbours[i].tolist()):
            for o in range(6):
                kernel = sum(angular[i, m, degree, o] * radial[degree] @ basis[i, m] for degree in range(3))
                spatial[i, o] += kernel * f[j, o]
    expected = np.zeros((4, 6, 3))
    for o in range(6):
        for p in range(6):
            cosine = grid.orientations[o] @ grid.orientations[p]
            polynomials = [1.0, cosine, 1.5 * cosine**2 - 0.5]
            kernel = sum(value * fibre[degree] for degree, value in enumerate(polynomials))
            expected[:, o] += grid.weights[p] * kernel * spatial[:, p]
    assert result == pytest.approx(expected + bias, rel=1e-10, abs=1e-12)


def test_the_fast_sum_over_neighbours_is_the_plain_one(geometry: dict[str, Any]) -> None:
    features = torch.randn(4, 6, 3, dtype=torch.float64)
    radial = torch.randn(*geometry["basis"].shape[:2], 3, 3, dtype=torch.float64)
    plain = sum_over_neighbours(geometry["angular"], radial, features, geometry["edges"])
    fast = convolve(geometry["angular"], radial, features, geometry["edges"])
    assert plain.abs().max() > 1.0
    assert torch.allclose(fast, plain, rtol=0, atol=1e-12)


def test_over_orientations_is_the_same_either_way() -> None:
    features = torch.randn(3, 5, 4, dtype=torch.float64)
    kernel = torch.randn(5, 5, 4, dtype=torch.float64)
    expected = torch.einsum("npc,poc->noc", features, kernel)
    for for_compile in (False, True):
        assert torch.allclose(fibre_convolution(features, kernel, for_compile), expected, rtol=0, atol=1e-13)


def test_without_neighbours_and_itself_only_the_bias_is_left(geometry: dict[str, Any]) -> None:
    module = SeparableConvolution(3, 2, 5, 6.0, fibre=True).double()
    torch.nn.init.normal_(module.bias)
    torch.nn.init.zeros_(module.self_weight)
    result = module(torch.randn(4, 6, 3, dtype=torch.float64), *{**geometry, "basis": 0 * geometry["basis"]}.values())
    assert torch.equal(result, module.bias.expand(4, 6, 3))


def test_spatial_sum_starts_at_about_unit_scale_whatever_the_number_of_neighbours() -> None:
    for number in (4, 64):
        module = SeparableConvolution(64, 0, 32, float(number), fibre=False).double()
        torch.nn.init.zeros_(module.self_weight)
        neighbours = torch.randint(number, (200, number))
        basis = torch.randn(200, number, 32, dtype=torch.float64)
        angular = torch.ones(200, number, 1, 1, dtype=torch.float64)
        features = torch.randn(200, 1, 64, dtype=torch.float64)
        edges = Edges(neighbours, neighbours, torch.ones_like(neighbours, dtype=torch.bool))
        out = module(features, basis, angular, angular[0, 0], edges)
        assert float(out.detach().std()) == pytest.approx(1.0, abs=0.1)


def test_block_is_residual(geometry: dict[str, Any]) -> None:
    block = ConvNeXt(SeparableConvolution(3, 2, 5, 6.0, fibre=True), 3, 2).double()
    features = torch.randn(4, 6, 3, dtype=torch.float64)
    hidden = block.norm(block.convolution(features, *geometry.values()))
    hidden = block.contract(torch.nn.functional.gelu(block.expand(hidden)))
    assert torch.allclose(block(features, *geometry.values()), features + hidden, rtol=0, atol=1e-13)
    torch.nn.init.zeros_(block.contract.weight)
    torch.nn.init.zeros_(block.contract.bias)
    assert torch.equal(block(features, *geometry.values()), features)
