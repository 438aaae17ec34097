"""The network alone: its grid, and what it sees of a structure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ponita_ff.network.config import GRID_SIZES, PonitaConfig
from ponita_ff.network.orientations import even_rotations, orientation_grid
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, build_graph, edge_vectors


def evaluate(potential: Potential, atoms: Atoms, rotation: Tensor | None = None, for_compile: bool = False) -> Tensor:
    """The bare network's atomic energies."""
    graph: Graph = build_graph(atoms.numbers, atoms.positions, 4.0, np.asarray(atoms.cell), atoms.pbc)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    if rotation is not None:
        vectors = vectors @ rotation.T
    return potential.network(graph, potential.species_index[graph.atomic_numbers], vectors, for_compile=for_compile)


@pytest.mark.parametrize("num_ori", GRID_SIZES)
def test_runs_on_every_grid_and_depends_on_it(num_ori: int, make_potential: Callable, make_system: Callable) -> None:
    atoms = make_system("molecule")
    potential = make_potential(num_ori=num_ori, num_layers=1)
    energies = evaluate(potential, atoms)
    assert energies.shape == (9,)
    assert torch.isfinite(energies).all()
    potential.set_grid(20 if num_ori != 20 else 12)
    assert float((evaluate(potential, atoms) - energies).abs().max()) > 1e-7


def test_grid_of_a_network_is_the_named_one_in_float64(tiny_potential: Potential) -> None:
    network = tiny_potential.network
    assert np.array_equal(network.orientations.numpy(), orientation_grid(12).orientations)
    network.set_grid(62)
    assert np.array_equal(network.orientation_weights.numpy(), orientation_grid(62).weights)
    assert network.float().orientations.dtype == torch.float64  # a rounded grid would lose its symmetry


@pytest.mark.parametrize(("made_with", "asked"), [(12, 0), (0, 12), (12, 13)])
def test_grid_that_does_not_fit_is_refused(made_with: int, asked: int, make_potential: Callable) -> None:
    with pytest.raises(ValueError, match=f"num_ori={asked}"):
        make_potential(num_ori=made_with).set_grid(asked)


def test_orientations_tell_structures_apart_that_distances_do_not(make_potential: Callable) -> None:
    """Two neighbours at 60° or at 180°, too far from each other to see each other: one layer, read at the centre."""
    bent = Atoms("OHH", positions=[[0, 0, 0], [3, 0, 0], [3 * np.cos(2), 3 * np.sin(2), 0]])
    straight = Atoms("OHH", positions=[[0, 0, 0], [3, 0, 0], [-3, 0, 0]])
    for num_ori, sees in ((12, True), (0, False)):
        potential = make_potential(num_ori=num_ori, num_layers=1)
        difference = abs(float(evaluate(potential, bent)[0] - evaluate(potential, straight)[0]))
        assert (difference > 1e-5) == sees


def test_every_element_is_told_apart(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    energies = []
    for number in (1, 6, 8):
        atoms.numbers[3] = number
        energies.append(evaluate(tiny_potential, atoms))
    assert float((energies[0] - energies[1]).abs().min()) > 1e-6
    assert float((energies[1] - energies[2]).abs().min()) > 1e-6


@pytest.mark.parametrize("num_ori", [0, 12])
def test_written_for_a_compiler_it_gives_the_same(num_ori: int, make_potential: Callable, system: Atoms) -> None:
    potential = make_potential(num_ori=num_ori)
    assert torch.allclose(
        evaluate(potential, system), evaluate(potential, system, for_compile=True), rtol=0, atol=1e-12
    )


def test_pnita_is_exactly_invariant_under_rotation(tiny_pnita: Potential, system: Atoms) -> None:
    for rotation in even_rotations(5)[1:]:
        difference = evaluate(tiny_pnita, system, rotation) - evaluate(tiny_pnita, system)
        assert float(difference.abs().max()) < 1e-12


def test_forward_does_not_change_its_input_or_the_network(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("crystal")
    state = {name: value.clone() for name, value in tiny_potential.state_dict().items()}
    first = evaluate(tiny_potential.train(), atoms)
    assert torch.equal(evaluate(tiny_potential.eval(), atoms), first)
    assert all(torch.equal(value, state[name]) for name, value in tiny_potential.state_dict().items())


def test_same_seed_makes_the_same_network() -> None:
    states = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            states.append(Ponita(PonitaConfig(channels=8, num_layers=1), 2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("num_ori", "sums"),
    [
        (0, {"layers.1.convolution.radial.weight": -0.499802, "layers.1.expand.weight": 0.501912}),
        (12, {"layers.1.convolution.fibre": 128.567466, "layers.1.convolution.radial.weight": -1.962572}),
    ],
)
def test_first_weights_are_those_of_earlier_versions(num_ori: int, sums: dict[str, float]) -> None:
    """So that a run with the same seed is the same run: drawn in the same order, whatever classes share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Ponita(PonitaConfig(num_ori=num_ori, channels=16, num_layers=2), 3)
    found = {name: float(weight.detach().double().sum()) for name, weight in network.named_parameters()}
    for name, expected in {"embedding.weight": 9.500061, **sums}.items():
        assert found[name] == pytest.approx(expected, abs=2e-5), name
