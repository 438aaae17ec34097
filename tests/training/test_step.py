"""The loss and its gradient."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config

from ponita_ff.data import InMemoryFrames
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import LossConfig, TrainConfig
from ponita_ff.training.evaluate import frame_graph
from ponita_ff.training.step import TrainingStep

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")


@pytest.fixture
def potential(settings: dict[str, object], frames: InMemoryFrames) -> Potential:
    return build_potential(TrainConfig.from_mapping({**settings, "dtype": "float64"}), frames)


@pytest.fixture
def batch(frames: InMemoryFrames, potential: Potential) -> Graph:
    return batch_graphs([frame_graph(frames[i], potential.cutoff) for i in range(3)])


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_loss_is_what_its_definition_says(kind: str, potential: Potential, batch: Graph) -> None:
    terms = TrainingStep(potential, LossConfig(kind=kind, energy=2.0, forces=3.0))(batch)
    prediction = potential(batch)
    energy = (prediction.energy - batch.energy) / 6
    forces = prediction.forces - batch.forces
    if kind == "mae":
        expected = 2.0 * energy.abs().mean() + 3.0 * forces.norm(dim=1).mean()
    else:
        expected = 2.0 * energy.square().mean() + 3.0 * forces.square().mean()
    assert float(terms.loss) == pytest.approx(float(expected), rel=1e-9)
    assert float(terms.forces_mae) == pytest.approx(float(forces.abs().mean()), rel=1e-9)


def test_gradient_against_central_differences(potential: Potential, batch: Graph) -> None:
    step = TrainingStep(potential, LossConfig(kind="mse"))
    step(batch)
    parameter = potential.network.layers[0].expand.weight
    gradient = float(parameter.grad[1, 2])
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            parameter[1, 2] += shift
            values.append(float(step(batch).loss))
            parameter[1, 2] -= shift
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    assert gradient != 0.0


def test_forces_only_loss_has_a_gradient_for_every_weight(potential: Potential, batch: Graph) -> None:
    TrainingStep(potential, LossConfig(energy=0.0))(batch)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in potential.parameters())


def test_stress_loss(potential: Potential, frames: InMemoryFrames) -> None:
    graph = frame_graph(frames[0], potential.cutoff)
    graph.cell = 8.0 * torch.eye(3, dtype=torch.float64)[None]
    graph.stress = torch.zeros(1, 3, 3, dtype=torch.float64)
    terms = TrainingStep(potential, LossConfig(kind="mse", energy=0.0, forces=0.0, stress=1.0))(graph)
    stress = potential(graph, stress=True).stress
    assert float(terms.loss) == pytest.approx(float(stress.square().mean()), rel=1e-9)
    assert float(terms.loss) > 0


def assert_equals_eager(backend: str, potential: Potential, batch: Graph) -> None:
    """Loss and the gradient by every weight."""
    eager = TrainingStep(potential, LossConfig())
    loss = eager(batch).loss
    gradients = [p.grad.clone() for p in potential.parameters()]
    other = TrainingStep(potential, LossConfig(), backend)
    assert other.backend == backend
    assert float(other(batch).loss) == pytest.approx(float(loss), rel=1e-9)
    for p, gradient in zip(potential.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)


@needs_compiler
def test_native_step_equals_eager(potential: Potential, batch: Graph) -> None:
    assert_equals_eager("native", potential, batch)


def test_step_that_is_compiled_equals_eager(
    potential: Potential, batch: Graph, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is handed to the compiler, of a network with all parts; the compiler's own work is the next test's."""
    given: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **options: given.append(graph) or graph)
    assert_equals_eager("compiled", potential, batch)
    assert len(given) == 1 and isinstance(given[0], torch.fx.GraphModule)
    assert "could not compile" not in caplog.text


@needs_compiler
@inductor_config.patch(
    # One file with all kernels, each file takes seconds for its headers alone; code that need not be fast. Vectorised
    # code, with replaced operators, is compiled in tests/backends/test_compiled.py.
    {
        "cpp_wrapper": True,
        "cpp_cache_precompile_headers": False,
        "cpp.simdlen": 1,
        "cpp.vec_isa_ok": True,
        "aot_inductor.debug_compile": True,
        "pattern_matcher": False,
    }
)
def test_compiled_step_equals_eager(
    settings: dict[str, Any], frames: InMemoryFrames, caplog: pytest.LogCaptureFixture
) -> None:
    """Without orientations: compiling takes long enough."""
    model = {"cutoff": 4.0, "num_ori": 0, "channels": 4, "num_layers": 1, "widening": 1}
    small = build_potential(TrainConfig.from_mapping({**settings, "model": model, "dtype": "float64"}), frames)
    assert_equals_eager("compiled", small, batch_graphs([frame_graph(frames[i], small.cutoff) for i in range(2)]))
    assert "could not compile" not in caplog.text  # it did not fall back to eager


@pytest.mark.parametrize(
    ("backend", "dtype", "expected"),
    [
        ("auto", torch.float64, "eager"),
        ("eager", torch.float32, "eager"),
        pytest.param("auto", torch.float32, "native", marks=needs_compiler),
        pytest.param("native", torch.float64, "native", marks=needs_compiler),
    ],
)
def test_backend_chosen(backend: str, dtype: torch.dtype, expected: str, potential: Potential) -> None:
    assert TrainingStep(potential.to(dtype), LossConfig(), backend).backend == expected


@pytest.mark.parametrize(("backend", "level"), [("native", logging.WARNING), ("auto", logging.INFO)])
def test_without_kernels_it_goes_on_eagerly_and_says_so(
    backend: str,
    level: int,
    potential: Potential,
    batch: Graph,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(name: str) -> None:
        raise KernelError("there is no C++ compiler")

    monkeypatch.setattr("ponita_ff.kernels.loader.load", refuse)
    with caplog.at_level(logging.INFO):
        step = TrainingStep(potential.float(), LossConfig(), backend)
    assert step.backend == "eager"
    said = [(r.levelno, r.message) for r in caplog.records]
    assert said == [(level, "training without native kernels: there is no C++ compiler")]
    assert torch.isfinite(step(batch).loss)


def test_unknown_backend(potential: Potential) -> None:
    with pytest.raises(ValueError, match="one of auto, native, compiled, eager, got 'fast'"):
        TrainingStep(potential, LossConfig(), "fast")
