"""A potential: its predictions for graphs, copies of it, and its predictor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from predictions import Make, energy, graph_of, predict

from ponita_ff.potential.potential import Potential


def test_nothing_asked_for_is_nothing_returned(tiny_potential: Potential, make_system: Callable) -> None:
    prediction = tiny_potential(graph_of(make_system("crystal")), forces=False)
    assert prediction.forces is None
    assert prediction.stress is None
    everything = predict(tiny_potential, make_system("crystal"), stress=True)
    assert not any(value.requires_grad for value in vars(everything).values())
    assert torch.equal(prediction.energy, everything.energy)


def test_forces_and_stress_come_out_where_gradients_are_switched_off(tiny_potential: Potential, make_system) -> None:
    with torch.no_grad():
        off = predict(tiny_potential, make_system("crystal"), stress=True)
    on = predict(tiny_potential, make_system("crystal"), stress=True)
    assert torch.equal(off.forces, on.forces)
    assert torch.equal(off.stress, on.stress)


def test_clone_is_independent(tiny_potential: Potential, make_system: Callable) -> None:
    before = energy(tiny_potential, make_system("molecule"))
    clone = tiny_potential.clone().to(torch.float32)
    clone.set_grid(32)
    clone.average_rotations(2)
    clone.network.embedding.weight.zero_()
    assert energy(tiny_potential, make_system("molecule")) == before
    assert not any(parameter.requires_grad for parameter in clone.parameters())


def test_a_predictor_serves_until_the_potential_changes(tiny_potential: Potential) -> None:
    first = tiny_potential.predictor("eager")
    assert tiny_potential.predictor("eager") is first
    changes: list[Callable[[], Any]] = [
        lambda: tiny_potential.network.embedding.weight.add_(0.1),
        lambda: tiny_potential.set_grid(32),
        lambda: tiny_potential.average_rotations(2),
        lambda: tiny_potential.reference_energies.add_(1.0),
        lambda: setattr(tiny_potential, "scale", 2.0),
        lambda: tiny_potential.float(),
        lambda: tiny_potential.load_state_dict(tiny_potential.state_dict()),
    ]
    for index, change in enumerate(changes):
        change()
        after = tiny_potential.predictor("eager")
        assert after is not first, index
        assert tiny_potential.predictor("eager") is after
        first = after
    assert tiny_potential.predictor("compiled") is not first


def test_changed_weights_are_what_is_evaluated(make_potential: Make, make_system: Callable) -> None:
    atoms, potential = make_system("molecule"), make_potential(dtype=torch.float32)
    before = potential.evaluate([atoms]).energies[0]
    potential.network.readouts[0].bias.add_(2.0)
    assert potential.evaluate([atoms]).energies[0] == pytest.approx(before + 2.0 * len(atoms) / 2, abs=1e-3)
    assert copy.deepcopy(potential).evaluate([atoms]).energies[0] == potential.evaluate([atoms]).energies[0]
