"""Frames on a device: padded batches have the loss and the gradient of plain ones. Tried on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ponita_ff.data import Frame
from ponita_ff.network.orientations import random_rotations
from ponita_ff.structure.graph import batch_graphs
from ponita_ff.training import resident
from ponita_ff.training.config import LossConfig, TrainConfig
from ponita_ff.training.evaluate import frame_graph
from ponita_ff.training.resident import ResidentFrames, rotate_structures
from ponita_ff.training.step import _WEIGHTS, TrainingStep
from ponita_ff.training.trainer import Trainer, _FiniteWatch

SMALL = {"channels": 4, "num_layers": 1, "l_max": 1, "num_ori": 6, "widening": 1}


def make_frames(make_system: Callable, periodic: bool) -> list[Frame]:
    """Of several sizes and numbers of neighbours."""
    rng = np.random.default_rng(0)
    systems = [make_system("crystal"), make_system("two atoms in a tiny cell"), make_system("crystal")[:3]]
    if not periodic:
        systems = [make_system("molecule"), make_system("molecule")[:5], make_system("molecule")[:1]]
    frames = []
    for atoms in systems * 2:
        atoms.positions += 0.05 * rng.normal(size=(len(atoms), 3))
        labels = {"energy": float(rng.normal() - 100 * len(atoms)), "forces": rng.normal(size=(len(atoms), 3))}
        stress = rng.normal(size=(3, 3)) if periodic else None
        stress = None if stress is None else stress + stress.T
        frames.append(
            Frame(atoms.numbers, atoms.positions.copy(), atoms.cell.array, atoms.pbc, **labels, stress=stress)
        )
    return frames


def gradient(step: TrainingStep, potential: Any, graph: Any) -> tuple[list[float], Tensor]:
    terms = step(graph)
    found = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]).clone()
    return [float(terms.loss), float(terms.energy_mae), float(terms.forces_mae)], found


@pytest.mark.parametrize("kind", ["mae", "mse"])
@pytest.mark.parametrize("periodic", [False, True])
def test_loss_and_gradient_are_those_of_a_plain_batch(
    kind: Any, periodic: bool, make_potential: Callable, make_system: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_CHUNK", 4)
    potential = make_potential(zbl_cutoff=1.0, **SMALL).requires_grad_(True)
    frames = make_frames(make_system, periodic)
    there = ResidentFrames(frames, potential)
    step = TrainingStep(potential, LossConfig(kind=kind, stress=1.0 if periodic else 0.0), "eager")
    shapes = set()
    for indices in ([0, 1, 2], [5, 3], [4]):
        rotations = random_rotations(len(indices), (7,))
        plain = batch_graphs([frame_graph(frames[i], potential.cutoff) for i in indices])
        rotate_structures(plain, torch.from_numpy(rotations))
        padded = there.batch(indices, rotations)
        shapes.add(tuple(padded.neighbours.shape))
        for found, expected in zip(gradient(step, potential, padded), gradient(step, potential, plain), strict=True):
            assert np.asarray(found) == pytest.approx(np.asarray(expected), rel=1e-9, abs=1e-11)
    assert all(size % 4 == 0 for shape in shapes for size in shape)


@pytest.mark.parametrize("periodic", [False, True])
def test_nothing_in_a_step_depends_on_values(periodic: bool, make_potential: Callable, make_system: Callable) -> None:
    """Loss and gradient trace with tensors that have no values: nothing waits for the device, so it can be recorded."""
    potential = make_potential(zbl_cutoff=1.0, **SMALL).requires_grad_(True)
    there = ResidentFrames(make_frames(make_system, periodic), potential)
    step = TrainingStep(potential, LossConfig(stress=float(periodic)), "eager")
    weights = [p.detach() for p in step._parameters.values()]

    def tensors_of(indices: list[int]) -> list[Tensor]:
        graph = there.batch(indices, random_rotations(len(indices), (7,)))
        return [*(graph[name] for name in (*step._fields, *_WEIGHTS)), step._fractions[1]]

    def function(parameters: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return step._loss_and_gradients(parameters, tensors, for_compile=False)

    first, second = tensors_of([0, 1]), tensors_of([3, 4])
    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(weights, first)
    for found, expected in zip(traced(weights, second), function(weights, second), strict=True):
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-11)


def test_a_run_on_resident_frames(make_potential: Callable, make_system: Callable, tmp_path: Path) -> None:
    """The same steps as from batches made on the host."""
    frames = make_frames(make_system, False)
    weights = []
    for place in ("host", "device"):
        potential = make_potential(**SMALL).requires_grad_(True)
        settings: dict[str, Any] = {
            "data": {"path": "frames.xyz"},
            "backend": "eager",
            "dtype": "float64",
            "optimiser": {"steps": 4, "batch_size": 3, "warmup_steps": 1, "validate_every": 2},
        }
        trainer = Trainer(
            potential, TrainConfig.model_validate(settings), frames, frames[:2], tmp_path / place, progress=False
        )
        assert trainer._resident is None
        if place == "device":
            trainer._resident = ResidentFrames(frames, potential)
            trainer._watch = _FiniteWatch(potential.device, tmp_path, 50)
        before = trainer.optimiser.weights.values.clone()
        trainer.run()
        assert not torch.equal(trainer.optimiser.weights.values, before)
        weights.append(trainer.optimiser.weights.values.clone())
    assert weights[1].numpy() == pytest.approx(weights[0].numpy(), rel=1e-6, abs=1e-8)


def test_a_loss_that_is_not_finite_is_found_later(tmp_path: Path) -> None:
    watch = _FiniteWatch(torch.device("cpu"), tmp_path, 3)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 4:"):
        for step in range(20):
            watch.see(torch.tensor(float("nan") if step in (4, 5) else 1.0), step)
    assert step == 8
    watch = _FiniteWatch(torch.device("cpu"), tmp_path, 50)
    watch.see(torch.tensor(1.0), 0)
    watch.check()
    watch.see(torch.tensor(float("inf")), 1)
    with pytest.raises(FloatingPointError, match="the loss became inf at step 1:"):
        watch.check()
