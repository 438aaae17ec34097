"""Envelope and radial basis against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ponita_ff.network.radial import RadialBasis, envelope

CUTOFF = 3.0


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
