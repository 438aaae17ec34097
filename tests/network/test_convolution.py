"""The separable convolution against its formula, written out as loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ponita_ff.kernels.messages import Edges, convolve
from ponita_ff.network.convolution import SeparableConvolution, fibre_convolution, sum_over_neighbours
from ponita_ff.network.orientations import orientation_grid


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


def test_fibre_convolution_is_the_same_either_way() -> None:
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
