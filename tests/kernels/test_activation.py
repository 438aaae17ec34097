"""GELU and its derivatives against torch's own."""

from __future__ import annotations

import pytest
import torch

from ponita_ff.kernels import activation
from ponita_ff.kernels.activation import gelu
from ponita_ff.kernels.build import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")


def points(dtype: torch.dtype) -> torch.Tensor:
    """All that matters, tails included, in a number that fills no vector."""
    return torch.cat(
        (torch.linspace(-14, 14, 20_001, dtype=dtype), torch.tensor([0.0, -0.0, 60.0, -60.0], dtype=dtype))
    )


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_value_and_derivative(dtype: torch.dtype, tolerance: float) -> None:
    x = points(torch.float64).to(dtype)
    value, derivative = activation._gelu(x)
    exact = x.double().requires_grad_(True)
    expected = torch.nn.functional.gelu(exact)
    (expected_derivative,) = torch.autograd.grad(expected.sum(), exact)
    scale = exact.detach().abs().clamp(min=1.0)
    assert float(((value.double() - expected.detach()).abs() / scale).max()) < tolerance
    assert float((derivative.double() - expected_derivative).abs().max()) < 4 * tolerance


@needs_compiler
def test_first_to_third_derivatives() -> None:
    x = torch.linspace(-4, 4, 23, dtype=torch.float64, requires_grad=True)
    y = torch.linspace(-4, 4, 23, dtype=torch.float64, requires_grad=True)
    found, expected = gelu(x), torch.nn.functional.gelu(y)
    for _ in range(3):
        (found,) = torch.autograd.grad((found**2).sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad((expected**2).sum(), y, create_graph=True)
        assert found.detach() == pytest.approx(expected.detach(), rel=1e-9, abs=1e-12)


@needs_compiler
def test_any_layout() -> None:
    x = points(torch.float32)[:20_000].view(100, 200).T
    assert torch.equal(gelu(x), gelu(x.contiguous()))


def test_torch_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_library", lambda: None)
    x = points(torch.float32)
    assert torch.equal(gelu(x), torch.nn.functional.gelu(x))


def test_other_types_are_left_to_torch() -> None:
    x = points(torch.float32).to(torch.bfloat16)
    assert torch.equal(gelu(x), torch.nn.functional.gelu(x))
