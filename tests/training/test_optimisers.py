"""Muon, and all weights in one piece of memory."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.training.optimisers import FlatWeights, Muon, Optimiser, layer_matrices, orthogonalise


@pytest.fixture
def network() -> Ponita:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Ponita(PonitaConfig(cutoff=3.0, channels=6, num_layers=2, num_ori=6, l_max=2), 2)


def random_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.copy_(gradient)


@pytest.mark.parametrize("shape", [(2, 5, 9), (3, 9, 5), (1, 4, 4)])
def test_orthogonalised_keeps_directions_and_evens_out_singular_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalise(matrices) @ vh.mT
    found = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(found), rtol=0, atol=1e-10)
    large = s > 0.05 * s[:, :1]
    assert ((found > 0.6) & (found < 1.3))[large].all()


def test_orthogonalised_is_the_published_iteration() -> None:
    matrix = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalise(matrix), x, rtol=1e-10, atol=1e-10)


def test_orthogonalised_zero_is_zero() -> None:
    assert not orthogonalise(torch.zeros(1, 3, 4)).any()


def test_muon_is_torch_s(network: Ponita) -> None:
    """Against torch's own, which works in bfloat16, for one matrix over a few steps."""
    start = network.layers[0].expand.weight.detach().clone()
    ours, theirs = nn.Parameter(start[None].clone()), nn.Parameter(start.clone())
    muon = Muon([ours], lr=0.01, momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.01, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        theirs.grad = torch.randn(start.shape, generator=generator)
        ours.grad = theirs.grad[None].clone()
        muon.step()
        reference.step()
    moved, expected = ours.detach()[0] - start, theirs.detach() - start
    assert float((moved - expected).norm() / expected.norm()) < 0.03


def test_which_matrices_are_muon_s(network: Ponita) -> None:
    expected = {f"layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("expand", "contract")}
    assert layer_matrices(network) == expected


def test_flat_weights_are_the_same_memory(network: Ponita) -> None:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat = FlatWeights(network, layer_matrices(network))
    assert [tuple(stack.shape) for stack in flat.stacks] == [(2, 24, 6), (2, 6, 24)]
    assert flat.values.numel() == sum(p.numel() for p in before.values())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
    random_gradients(network, 0)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    flat.values.sub_(flat.gradients)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name] - gradients[name])
    assert torch.equal(flat.stacks[1][1], network.layers[1].contract.weight)


def test_frozen_weights_are_left_out(network: Ponita) -> None:
    network.embedding.weight.requires_grad_(False)
    optimiser = Optimiser(network, "muon", 0.0)
    frozen = network.embedding.weight.detach().clone()
    optimiser.weights.gradients.normal_(generator=torch.Generator().manual_seed(0))
    optimiser.step(0.1, 1.0)
    assert torch.equal(network.embedding.weight, frozen)


def test_adam_is_torch_s(network: Ponita) -> None:
    """One step over flat memory, cut to a norm, is the same as torch's tensor by tensor."""
    other = copy.deepcopy(network)
    optimiser = Optimiser(network, "adam", 0.01)
    reference = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=0.01)
    for step in range(3):
        random_gradients(network, step)
        random_gradients(other, step)
        optimiser.step(0.02, 2.0)
        torch.nn.utils.clip_grad_norm_(other.parameters(), 2.0)
        reference.step()
    for one, expected in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, expected)


def test_threads_are_left_as_they_were(network: Ponita) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Optimiser(network, "muon", 0.0).step(0.01, 1.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["muon", "adam"])
def test_state_goes_on_where_it_stood(kind: Literal["muon", "adam"], network: Ponita) -> None:
    other = copy.deepcopy(network)
    first = Optimiser(network, kind, 0.0)
    random_gradients(network, 0)
    first.step(0.01, 10.0)
    other.load_state_dict(network.state_dict())
    second = Optimiser(other, kind, 0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for module, optimiser in ((network, first), (other, second)):
        random_gradients(module, 1)
        optimiser.step(0.01, 10.0)
    assert torch.equal(first.weights.values, second.weights.values)


def test_muon_lr_multiplier_multiplies_the_rate_of_matrices_alone(network: Ponita) -> None:
    twin = copy.deepcopy(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for module, rate in ((network, 3.0), (twin, 1.0)):
        optimiser = Optimiser(module, "muon", 0.0, muon_lr_multiplier=rate)
        random_gradients(module, 0)
        optimiser.step(0.01, 1e9)
    for (name, one), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        factor = 3.0 if name in layer_matrices(network) else 1.0
        torch.testing.assert_close(one - before[name], factor * (other - before[name]), rtol=1e-4, atol=1e-6)


def test_multipliers_scale_the_change_of_a_step(network: Ponita) -> None:
    """Frozen weights stay the same to the last bit; half the learning rate is half the change."""
    twin = copy.deepcopy(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    chosen = dict.fromkeys(before, 0.0) | {"layers.1.expand.weight": 0.5, "readouts.0.weight": 1.0}
    for module, given in ((network, chosen), (twin, None)):
        optimiser = Optimiser(module, "muon", 0.0, given)
        random_gradients(module, 0)
        optimiser.step(0.01, 1e9)
    whole = dict(twin.named_parameters())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, torch.lerp(before[name], whole[name], chosen[name]))
        assert chosen[name] or torch.equal(parameter, before[name])


def test_low_rank_changes(network: Ponita) -> None:
    """Of the layers' matrices have the rank asked for, and bring a loss down."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    goal = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(7)) for name, p in before.items()}
    optimiser = Optimiser(network, "muon", 0.0, rank=2)
    distances = []
    for _ in range(60):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(parameter.detach() - goal[name])
        distances.append(sum(float((p.detach() - goal[n]).square().sum()) for n, p in network.named_parameters()))
        optimiser.step(0.02, 1e9)
    assert distances[-1] < 0.8 * distances[0]
    for name in layer_matrices(network):
        change = network.get_parameter(name).detach() - before[name]
        singular = torch.linalg.svdvals(change)
        assert singular[1] > 1e-2
        assert float(singular[2:].max()) < 1e-5


def test_low_rank_goes_on_where_it_stood(network: Ponita) -> None:
    other = copy.deepcopy(network)
    first = Optimiser(network, "muon", 0.0, rank=1)
    random_gradients(network, 0)
    first.step(0.01, 10.0)
    other.load_state_dict(network.state_dict())
    second = Optimiser(other, "muon", 0.0, rank=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for module, optimiser in ((network, first), (other, second)):
        random_gradients(module, 1)
        optimiser.step(0.01, 10.0)
    assert torch.equal(first.weights.values, second.weights.values)
