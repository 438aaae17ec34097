"""The published network from the authors' tensors: what they become, and each refusal with its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from published_cases import Hyper, State, expected, make_graph, make_grid, make_hyper, make_state, worst
from torch import Tensor

from ponita_ff.potential.import_published import load_published
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.weights import Hyperparameters, build_published, some_names


def test_layer_scale_multiplies_a_blocks_output() -> None:
    hyper, grid = make_hyper(7, layer_scale=1e-6), make_grid(7)
    state = make_state(hyper)
    for layer in range(2):
        state[f"interaction_layers.{layer}.layer_scale"] = torch.linspace(0.5, -1.5, 8, dtype=torch.float64)
    potential = load_published(state, hyper, grid)
    energy, forces = expected(state, hyper, grid, "CH3CH2OH")
    prediction = potential(make_graph(potential, "CH3CH2OH"))
    assert prediction.forces is not None
    assert abs(float(prediction.energy) - energy) <= 1e-9 * abs(energy)
    assert worst(prediction.forces, forces) <= 1e-9


def test_weights_are_copied_and_frozen() -> None:
    hyper = make_hyper(0)
    state = make_state(hyper)
    potential = load_published(state, hyper)
    graph = make_graph(potential, "CH3CH2OH")
    before = potential(graph).energy
    for value in state.values():
        value.zero_()
    assert torch.equal(potential(graph).energy, before)
    assert not potential.training and not any(p.requires_grad for p in potential.parameters())


def without(name: str) -> Callable[[State, Hyper], None]:
    return lambda state, _: state.__delitem__(name)


def put(name: str, value: Any) -> Callable[[State, Hyper], None]:
    return lambda state, _: state.update({name: value})


def hyper_put(**changes: Any) -> Callable[[State, Hyper], None]:
    return lambda _, hyper: hyper.update(changes)


DOUBLES = torch.zeros(8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("x_embedder.weight"), "lacks x_embedder.weight"),
        (without("interaction_layers.1.conv.fiber_kernel.weight"), "lacks interaction_layers.1.conv.fiber_kernel"),
        (without("windowing_fn.r_max"), "lacks windowing_fn.r_max"),
        (without("read_out_layers.0.weight"), "lacks read_out_layers.0.weight"),
        (put("extra.weight", DOUBLES), "has extra.weight"),
        (put("interaction_layers.2.norm.bias", DOUBLES), "has interaction_layers.2.norm.bias"),
        (put("basis_fn.1.bias", DOUBLES[:7]), r"basis_fn.1.bias must have shape \(8,\), found \(7,\)"),
        (put("x_embedder.weight", torch.zeros(8, 8).double()), r"\(8, 9\), found \(8, 8\)"),
        (put("basis_fn.1.bias", torch.zeros(8, dtype=torch.int64)), "basis_fn.1.bias must be float32 or float64"),
        (put("basis_fn.1.bias", DOUBLES.float()), "basis_fn.1.bias is torch.float32, but"),
        (put("basis_fn.1.bias", DOUBLES / 0.0), "basis_fn.1.bias has values that are not finite"),
        (put("basis_fn.1.bias", DOUBLES.numpy()), "basis_fn.1.bias must be a torch tensor"),
        (put("windowing_fn.r_max", torch.tensor(4.0)), "windowing_fn.r_max is 4 Å, but"),
        (put("windowing_fn.r_max", DOUBLES), r"windowing_fn.r_max must have shape \(\)"),
        (put("windowing_fn.p", torch.tensor(2.5)), "windowing_fn.p must be a positive whole number"),
        (lambda _, hyper: hyper.pop("radius"), "radius"),
        (lambda _, hyper: hyper.pop("num_layers"), "num_layers"),
        (hyper_put(radius=None), "has windowing_fn.p, windowing_fn.r_max"),
        (hyper_put(radius=-1.0), "radius"),
        (hyper_put(output_dim=2), "output_dim"),
        (hyper_put(output_dim_vec=1), "output_dim_vec"),
        (hyper_put(task_level="node"), "task_level"),
        (hyper_put(num_ori=-1), "point cloud, which is not supported"),
        (hyper_put(num_ori=6), r"ori_grid must have shape \(6, 3\), found \(20, 3\)"),
        (hyper_put(num_ori=0), "num_ori = 0 has no orientations"),
        (hyper_put(num_layers=3), "lacks interaction_layers.2"),
        (hyper_put(degree=2), r"basis_fn.1.weight must have shape \(8, 6\), found \(8, 14\)"),
        (hyper_put(colour="blue"), "colour"),
    ],
)
def test_state_and_hyper_that_do_not_fit_are_refused(change: Callable[[State, Hyper], None], message: str) -> None:
    hyper = make_hyper()
    state = make_state(hyper)
    change(state, hyper)
    with pytest.raises(ValueError, match=message):
        load_published(state, hyper, make_grid(20))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (None, "ori_grid is missing"),
        (torch.ones(20, 3), "unit vectors, but a length differs from 1 by 0.732"),
        (torch.full((20, 3), torch.nan), "unit vectors"),
        (torch.ones(20, 2), r"shape \(20, 3\), found \(20, 2\)"),
        (torch.ones(20, 3, dtype=torch.int64), "floating-point"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grid: Tensor | None, message: str) -> None:
    hyper = make_hyper()
    with pytest.raises(ValueError, match=message):
        load_published(make_state(hyper), hyper, grid)


def test_names_of_many() -> None:
    assert some_names(["a", "b"]) == "a, b"
    assert some_names(list("abcd")) == "a, b, c, d"
    assert some_names(list("abcdef")) == "a, b, c, d and 2 more"


def test_hyper_parameters_in_the_names_of_this_package() -> None:
    config = Hyperparameters(**make_hyper(7, 4.0, basis_dim=None, multiple_readouts=False)).config(envelope_power=5)
    assert config == PublishedConfig(
        cutoff=4.0,
        num_ori=7,
        channels=8,
        num_layers=2,
        basis_dim=8,  # that of the channels where none is given
        degree=3,
        widening=2,
        multiple_readouts=False,
        envelope_power=5,
    )


def test_every_weight_is_where_the_authors_have_it() -> None:
    hyper, grid = make_hyper(7), make_grid(7)
    state = make_state(hyper)
    network, numbers = build_published(state, hyper, grid, species=[8, 1])
    assert numbers == [1, 8]
    assert torch.equal(network.embedding.weight, state["x_embedder.weight"][:, [1, 8]].T)
    assert torch.equal(network.orientations, grid)
    assert torch.equal(network.orientation_weights, torch.full((7,), 1.0 / 7.0, dtype=torch.float64))
    block = network.layers[1]
    assert torch.equal(block.convolution.fibre.weight, state["interaction_layers.1.conv.fiber_kernel.weight"])
    assert torch.equal(block.contract.bias, state["interaction_layers.1.linear_2.bias"])
    assert torch.equal(network.spatial_basis.network[2].weight, state["basis_fn.3.weight"])
    assert torch.equal(network.readouts[0].weight, state["read_out_layers.0.weight"])


@pytest.mark.parametrize("power", [5, 6])
def test_the_envelopes_power_is_that_of_the_state(power: int) -> None:
    hyper, grid = make_hyper(7), make_grid(7)
    state = make_state(hyper)
    state["windowing_fn.p"] = torch.tensor(float(power))
    network, _ = build_published(state, hyper, grid)
    assert network.config.envelope_power == network.envelope_power == power


def test_making_it_draws_no_random_numbers_of_the_user() -> None:
    before = torch.random.get_rng_state()
    build_published(make_state(make_hyper(0)), make_hyper(0))
    assert torch.equal(torch.random.get_rng_state(), before)
