"""The kernels for GPUs against the torch version; without a GPU by Triton's interpreter."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from message_sums import form, make_edges, make_inputs
from torch import Tensor

from ponita_ff.kernels import messages
from ponita_ff.kernels.messages import Edges, convolve
from ponita_ff.structure.graph import build_graph
from ponita_ff.training.config import LossConfig
from ponita_ff.training.step import TrainingStep

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

#: Compiled where there is a GPU, else interpreted (conftest.py).
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels() -> ModuleType:
    """The module."""
    return importlib.import_module("ponita_ff.kernels.triton_messages")


def problem(atoms: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Edges and A, R, f, g on the device."""
    edges = make_edges(atoms, seed)
    inputs = make_inputs(edges, shape, dtype)  # type: ignore[arg-type]
    return Edges(*(value.to(DEVICE) for value in edges)), [value.to(DEVICE) for value in inputs]


@pytest.fixture
def in_use(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The operators call these kernels for all tensors."""
    monkeypatch.setattr(messages, "_triton_for", lambda features: kernels)
    return kernels


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value; infinite where anything is not a number."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return float(error) if bool(found.isfinite().all()) else float("inf")


def expected_of(edges: Edges, angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor) -> list[Tensor]:
    """What :func:`found_by` computes, by torch."""
    other = (angular.flip(0), radial.flip(0))
    return [
        messages._sum_by_torch(angular, radial, None, None, features, edges, False),
        messages._sum_by_torch(angular, radial, *other, receivers, edges, True),
        *messages._edge_slopes_by_torch(angular, radial, features, receivers, edges.neighbours, edges.active),
    ]


def found_by(
    kernels: ModuleType, edges: Edges, angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor
) -> list[Tensor]:
    """A sum, an adjoint sum of two products, and slopes: each takes the interpreter a quarter of a second."""
    other = (angular.flip(0), radial.flip(0))
    return [
        kernels.sum_messages(angular, radial, None, None, features, *edges, False),
        kernels.sum_messages(angular, radial, *other, receivers, *edges, True),
        *kernels.edge_slopes(angular, radial, features, receivers, edges.neighbours, edges.active),
    ]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 5), torch.float32), ((3, 6, 9), torch.float32), ((2, 4, 3), torch.float64)], ids=str
)
def test_both_operators(kernels: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Degrees, orientations and channels that fill a block and that do not."""
    edges, inputs = problem(4, shape, dtype, seed=2)
    expected = expected_of(edges, *(value.double() for value in inputs))
    for found, reference in zip(found_by(kernels, edges, *inputs), expected, strict=True):
        assert relative_error(found, reference.to(dtype)) < (1e-5 if dtype == torch.float32 else 1e-13)


def test_more_orientations_and_channels_than_a_block_holds(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, inputs = problem(4, (1, 3, 5), seed=2)
    expected = expected_of(edges, *inputs)
    monkeypatch.setattr(kernels, "_SUM_BLOCK", (2, 4))
    monkeypatch.setattr(kernels, "_LARGEST_BLOCK", 4)
    monkeypatch.setattr(kernels, "_SLOPES_BLOCK", 4)
    for found, reference in zip(found_by(kernels, edges, *inputs), expected, strict=True):
        assert relative_error(found, reference) < 1e-5


def test_empty_rows_masked_slots_and_any_layout(kernels: ModuleType) -> None:
    """An atom that sees nobody and that nobody sees; what stands in masked slots is never read."""
    edges, inputs = problem(6, (2, 3, 5))
    lonely = (torch.arange(len(edges.active), device=DEVICE) == 0)[:, None] | (edges.neighbours == 0)
    edges = edges._replace(active=edges.active & ~lonely)
    assert 0 < int(edges.active.sum()) < edges.active.numel()
    expected = expected_of(edges, *inputs)
    unread = ~edges.active & ~edges.active.flip(0)  # the second product is the first, its rows turned round
    assert unread.any()
    for value in inputs[:2]:
        value[unread] = float("nan")
    for value in inputs[2:]:
        value[0] = float("nan")
    strided = [value.movedim(0, -1).contiguous().movedim(-1, 0) for value in inputs]
    shuffled = Edges(*(value.T.contiguous().T for value in edges))
    for found, reference in zip(found_by(kernels, shuffled, *strided), expected, strict=True):
        assert relative_error(found, reference) < 1e-5
        assert not found[0].any()


def test_first_and_second_derivatives(in_use: ModuleType) -> None:
    """As a loss of forces needs them."""
    edges, inputs = problem(4, (1, 2, 3), torch.float64, seed=2)
    for value in inputs[:3]:
        value.requires_grad_(True)

    def derivatives(value: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(value**2, inputs[:3], create_graph=True)
        norm = torch.stack([(gradient**2).sum() for gradient in first]).sum()
        return *first, *torch.autograd.grad(norm, inputs[:3])

    found = derivatives((convolve(*inputs[:3], edges) * inputs[3]).sum())
    for value, reference in zip(found, derivatives(form(*inputs, edges)), strict=True):
        assert relative_error(value.detach(), reference.detach()) < 1e-12


def test_a_training_step_equals_the_torch_version(
    in_use: ModuleType, monkeypatch: pytest.MonkeyPatch, make_potential: Callable[..., Any], make_system: Callable
) -> None:
    potential = make_potential(dtype=torch.float32, channels=4, num_layers=2, num_ori=6, l_max=1, widening=1).to(DEVICE)
    potential.requires_grad_(True)
    atoms = make_system("molecule")[:3]
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    graph.energy = torch.tensor([1.0], dtype=torch.float64)
    graph.forces = torch.ones_like(graph.positions)
    step = TrainingStep(potential, LossConfig(), "eager")

    def gradient() -> Tensor:
        step(graph.to(DEVICE))
        return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]).clone()

    found = gradient()
    monkeypatch.setattr(messages, "_triton_for", lambda features: None)
    monkeypatch.setattr(messages, "_kernels", lambda dtype: None)
    assert relative_error(found, gradient()) < 1e-5


def test_without_triton_torch_goes_on_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "ponita_ff.kernels.triton_messages", raising=False)
    monkeypatch.delattr("ponita_ff.kernels.triton_messages", raising=False)
    messages._triton.cache_clear()
    with caplog.at_level(logging.WARNING):
        on_gpu = torch.empty(2, 2, 2, device="meta")
        assert messages._triton_for(on_gpu) is None
        assert not caplog.text
        assert messages._triton() is None
        assert messages._triton() is None
    messages._triton.cache_clear()
    assert caplog.text.count("Triton cannot be imported") == 1
