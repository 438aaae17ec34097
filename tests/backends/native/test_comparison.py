"""Kernels that compute something else than torch are noticed when they are set up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ponita_ff import PonitaCalculator
from ponita_ff.backends.native import comparison
from ponita_ff.backends.native.engine import NativeNetwork
from ponita_ff.backends.native.training import NativeDifferentiation
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.network import grid
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph
from ponita_ff.training.config import LossConfig
from ponita_ff.training.step import TrainingStep

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

Make = Callable[..., Potential]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def another_envelope(distance: Tensor, cutoff: float) -> Tensor:
    """Almost the same."""
    u = (distance / cutoff).clamp(max=1.0)
    return (1.0 - u).square() * (1.0 + 2.0 * u)


def plant_in_forward(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the class itself, which no list of classes notices."""
    forward = Ponita.forward
    monkeypatch.setattr(Ponita, "forward", lambda *args, **options: 1.001 * forward(*args, **options))


def plant_activation(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.network.block.gelu", torch.nn.functional.silu)


def plant_legendre(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the eager side alone: the kernels have their own."""
    original = grid.legendre
    monkeypatch.setattr(grid, "legendre", lambda cosine, l_max: original(cosine, l_max) * 1.01)


PLANTED = pytest.mark.parametrize("plant", [plant_in_forward, plant_activation, plant_legendre])


@DTYPES
@PLANTED
def test_other_mathematics_is_refused(
    plant: Callable[[Potential, pytest.MonkeyPatch], None],
    dtype: torch.dtype,
    make_potential: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    potential = make_potential(dtype=dtype)
    plant(potential, monkeypatch)
    with pytest.raises(KernelError, match="energies, forces and stress of a small test graph differ by up to"):
        NativeNetwork(potential.network)
    with pytest.raises(KernelError, match="gradients of a loss of a small test graph differ by up to"):
        NativeDifferentiation(potential)


def test_another_envelope_is_refused_by_the_training_kernels(
    make_potential: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of the engine are made of the network's own radial functions, so that it follows."""
    monkeypatch.setattr("ponita_ff.network.radial.envelope", another_envelope)
    NativeNetwork(make_potential().network)
    with pytest.raises(KernelError, match="differ by up to"):
        NativeDifferentiation(make_potential())


@pytest.mark.parametrize("wrong", [0, 1, 2], ids=["energies", "gradient", "strain"])
@DTYPES
def test_every_result_of_the_engine_is_compared(
    wrong: int, dtype: torch.dtype, make_potential: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = NativeNetwork.__call__

    def changed(engine: NativeNetwork, graph: Graph, species: Tensor) -> tuple[Tensor, ...]:
        found = list(call(engine, graph, species))
        found[wrong] = found[wrong] * torch.linspace(1.0, 1.01, found[wrong].numel()).view(found[wrong].shape)
        return tuple(found)

    monkeypatch.setattr(NativeNetwork, "__call__", changed)
    with pytest.raises(KernelError, match="differ by up to"):
        NativeNetwork(make_potential(dtype=dtype).network)


@DTYPES
def test_every_gradient_of_the_training_kernels_is_compared(
    dtype: torch.dtype, make_potential: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = NativeDifferentiation.backward
    potential = make_potential(dtype=dtype, channels=4)
    for name in dict(potential.named_parameters()):

        def changed(self: NativeDifferentiation, *args: object, name: str = name) -> dict[str, Tensor]:
            gradients = backward(self, *args)
            gradients[name].mul_(1.01)
            return gradients

        monkeypatch.setattr(NativeDifferentiation, "backward", changed)
        with pytest.raises(KernelError, match="differ by up to"):
            NativeDifferentiation(potential)


def test_the_calculator_goes_on_with_torch_and_says_so(
    make_potential: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    potential = make_potential(dtype=torch.float32)
    plant_in_forward(potential, monkeypatch)
    with caplog.at_level(logging.INFO):
        assert PonitaCalculator(potential).backend == "eager"
    assert (
        "native kernels are not used: the native kernels do not compute what torch does with this network"
        in caplog.text
    )


def test_training_goes_on_with_torch_and_says_so(
    make_potential: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    potential = make_potential(dtype=torch.float32).requires_grad_(True)
    plant_activation(potential, monkeypatch)
    assert TrainingStep(potential, LossConfig(), "native").backend == "eager"
    assert "training without native kernels: the native kernels do not compute what torch does" in caplog.text


@DTYPES
@pytest.mark.parametrize("factor", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_weights_are_accepted(factor: float, seed: int, dtype: torch.dtype, make_potential: Make) -> None:
    potential = make_potential(dtype=dtype, seed=seed)
    with torch.no_grad():
        for name, parameter in potential.network.named_parameters():
            if not name.startswith("radial_basis"):  # there tables may be too rough for the engine
                parameter.mul_(factor)
    NativeNetwork(potential.network)
    NativeDifferentiation(potential)


@DTYPES
def test_ill_conditioned_and_constant_networks_are_accepted(dtype: torch.dtype, make_potential: Make) -> None:
    potential = make_potential(dtype=dtype)
    with torch.no_grad():
        for layer in potential.network.layers:
            layer.expand.weight.mul_(100.0)
            layer.contract.weight.mul_(100.0)
    NativeNetwork(potential.network)
    NativeDifferentiation(potential)
    with torch.no_grad():
        for readout in potential.network.readouts:
            readout.bias.fill_(1000.0)
            readout.weight.zero_()
    NativeNetwork(potential.network)
    NativeDifferentiation(potential)


def test_results_that_are_not_finite_are_refused(make_potential: Make) -> None:
    potential = make_potential(dtype=torch.float32)
    with torch.no_grad():
        for readout in potential.network.readouts:
            readout.weight.fill_(3e38)
    for kernels in (lambda: NativeNetwork(potential.network), lambda: NativeDifferentiation(potential)):
        with pytest.raises(KernelError, match="not finite"):
            kernels()


def test_inference_mode(make_potential: Make) -> None:
    """A network made outside of it, and one made inside; the test graph must serve afterwards, too."""
    outside = make_potential(dtype=torch.float32)
    comparison._graph_of_cutoff.cache_clear()
    with torch.inference_mode():
        NativeNetwork(outside.network)
        NativeNetwork(make_potential(dtype=torch.float32).network)
    NativeDifferentiation(outside)


def test_average_over_rotations_and_frozen_weights(make_potential: Make) -> None:
    """The comparison leaves the potential as it is."""
    potential = make_potential()
    frozen = potential.network.embedding.weight.requires_grad_(False)
    trained = potential.network.readouts[0].weight.requires_grad_(True)
    NativeDifferentiation(potential)
    assert (frozen.requires_grad, trained.requires_grad) == (False, True)
    assert frozen.grad is None
    assert trained.grad is None
    potential.average_rotations(3)
    NativeNetwork(potential.network)


def test_graph_has_all_kinds_of_atoms(make_potential: Make) -> None:
    potential = make_potential()
    graph = comparison._test_graph(potential)
    vectors = graph.positions[graph.neighbours] - graph.positions[:, None] + graph.offsets
    within = (vectors.norm(dim=-1) < potential.cutoff) & graph.used
    assert len(graph.cell) == 2
    assert len(set(within.sum(1).tolist())) >= 4
    assert int(within.sum(1).min()) > 0
    assert int(within.sum()) < int(graph.used.sum()) < graph.used.numel()
    assert set(graph.atomic_numbers.tolist()) == {1, 6, 8}
    own_images = (graph.neighbours == torch.arange(len(graph.neighbours))[:, None]) & within
    assert own_images.any()


def test_it_takes_milliseconds(make_potential: Make) -> None:
    network = make_potential(dtype=torch.float32).network
    engine = NativeNetwork(network)
    start = time.process_time()
    for _ in range(5):
        comparison.compare_inference(network, engine, 1e-6)
    assert (time.process_time() - start) / 5 < 0.1
