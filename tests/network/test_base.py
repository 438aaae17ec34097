"""Buffers that keep float64, and what a network does that has no way of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponita_ff.network.base import Float64Buffers, Network
from ponita_ff.structure.graph import Graph

#: One third to float64's last digit; float32 would round it.
THIRD = torch.tensor([1.0 / 3.0], dtype=torch.float64)


class Exact(Float64Buffers):
    """A weight, a buffer that follows it, and one that keeps float64."""

    float64_buffers = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("plain", torch.ones(2))
        self.register_buffer("exact", THIRD.clone())


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.float(),
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float32),
        lambda module: nn.Sequential(module).float()[0],
        lambda module: copy.deepcopy(module).float(),
    ],
)
def test_named_buffers_keep_float64_to_the_last_bit(cast: Any) -> None:
    module = cast(Exact().double())
    assert module.weight.dtype == module.plain.dtype != torch.float64
    assert torch.equal(module.exact, THIRD)
    assert torch.equal(module.double().exact, THIRD)
    assert module.weight.dtype == torch.float64


def test_named_buffers_move_to_the_device_and_stay_in_the_state() -> None:
    assert Exact().to("meta").exact.device.type == "meta"
    assert Exact().to("meta").exact.dtype == torch.float64
    assert torch.equal(Exact().float().state_dict()["exact"], THIRD)
    other = Exact().float()
    other.load_state_dict({"weight": torch.zeros(2), "plain": torch.zeros(2), "exact": 2.0 * THIRD})
    assert torch.equal(other.exact, 2.0 * THIRD)


def test_without_names_every_buffer_follows_the_cast() -> None:
    class Plain(Float64Buffers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("exact", THIRD.clone())

    assert Plain().float().exact.dtype == torch.float32


def test_a_network_has_no_grid_to_change_and_no_forward_of_its_own() -> None:
    network = Network()
    assert network.grid_group == ""
    with pytest.raises(ValueError, match="bound to the orientation grid in its file"):
        network.set_grid(12)
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="its own forward"):
        network(Graph(atomic_numbers=nothing), nothing, Tensor())
