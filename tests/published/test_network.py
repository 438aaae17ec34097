"""The published network against loops over its formulas and against the authors' own outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from published_cases import (
    FORMS,
    MOLECULES,
    Hyper,
    expected,
    expected_energy,
    make_graph,
    make_grid,
    make_hyper,
    make_molecule,
    make_potential,
    make_state,
    worst,
)

from ponita_ff.energy.assembly import interaction_energies
from ponita_ff.energy.derivatives import differentiate, predict
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.potential.import_published import load_published
from ponita_ff.potential.potential import Potential
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita
from ponita_ff.structure.graph import batch_graphs, build_graph
from ponita_ff.structure.neighbours import neighbour_list

REFERENCE = Path(os.environ.get("PONITA_FF_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))


REFERENCE_NAMES = [
    "ponita_aspirin_ori20_r5.0",
    "ponita_ethanol_ori0_rinf",
    "ponita_ethanol_ori20_r5.0",
    "ponita_ethanol_ori20_rinf",
]


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
@pytest.mark.parametrize("name", MOLECULES)
def test_same_as_loops_over_the_formulas(num_ori: int, radius: float | None, name: str) -> None:
    hyper, grid = make_hyper(num_ori, radius), make_grid(num_ori)
    state = make_state(hyper)
    potential = load_published(state, hyper, grid)
    energy, forces = expected(state, hyper, grid, name)
    prediction = potential(make_graph(potential, name))
    assert prediction.forces is not None
    assert forces.abs().max() > 1e-3
    assert abs(float(prediction.energy) - energy) <= 1e-9 * abs(energy)
    assert worst(prediction.forces, forces) <= 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"multiple_readouts": False},
        {"degree": 1},
        {"degree": 4},
        {"num_layers": 1},
        {"hidden_dim": 6, "basis_dim": None},
        {"input_dim": 12},
    ],
)
def test_options_of_the_published_network(changes: Hyper) -> None:
    hyper, grid = make_hyper(7, 4.0, **changes), make_grid(7)
    state = make_state({**hyper, "basis_dim": hyper["basis_dim"] or hyper["hidden_dim"]})
    potential = load_published(state, hyper, grid)
    energy, forces = expected(state, hyper, grid, "CH3CH2OH")
    prediction = potential(make_graph(potential, "CH3CH2OH"))
    assert prediction.forces is not None
    assert abs(float(prediction.energy) - energy) <= 1e-9 * abs(energy)
    assert worst(prediction.forces, forces) <= 1e-9


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_batch_is_its_molecules_one_by_one(num_ori: int, radius: float | None) -> None:
    potential = make_potential(num_ori, radius)
    graphs = [make_graph(potential, name) for name in MOLECULES]
    together, alone = potential(batch_graphs(graphs)), [potential(graph) for graph in graphs]
    assert worst(together.energy, torch.cat([p.energy for p in alone])) <= 1e-12
    assert worst(together.forces, torch.cat([p.forces for p in alone])) <= 1e-12


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_forces_are_minus_the_gradient(num_ori: int, radius: float | None) -> None:
    potential = make_potential(num_ori, radius)
    numbers, positions = make_molecule("CH3CH2OH")
    step, places = 1e-4, [(0, 0), (3, 1), (8, 2)]

    def energy(place: tuple[int, int], by: float) -> float:
        moved = positions.copy()
        moved[place] += by
        return float(potential(build_graph(numbers, moved, potential.cutoff), forces=False).energy)

    forces = potential(build_graph(numbers, positions, potential.cutoff)).forces
    for place in places:
        numerical = -(
            8 * (energy(place, step) - energy(place, -step)) - (energy(place, 2 * step) - energy(place, -2 * step))
        ) / (12 * step)
        assert float(forces[place]) == pytest.approx(numerical, abs=1e-8)


@pytest.mark.parametrize(("num_ori", "radius"), [(6, None), (6, 5.0), (0, None)])
def test_bond_along_an_orientation_gives_numbers(num_ori: int, radius: float | None) -> None:
    hyper = make_hyper(num_ori, radius)
    grid = torch.from_numpy(orientation_grid(num_ori).orientations) if num_ori else None
    potential = load_published(make_state(hyper), hyper, grid)
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1], [0.0, 1.3, 0.0]])
    graph = build_graph(np.array([8, 6, 1]), positions, radius)
    _, forces, _ = differentiate(potential, graph, create_graph=False)
    assert forces is not None and torch.isfinite(forces).all() and forces.abs().max() > 1e-3

    # Nor may the Hessian be NaN there.
    x = graph.positions.clone().requires_grad_(True)
    total = interaction_energies(potential, graph, x, graph.offsets).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    for component in gradient.flatten():
        assert torch.isfinite(torch.autograd.grad(component, x, retain_graph=True)[0]).all()


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_unused_slots_and_far_edges_count_for_nothing(num_ori: int, radius: float | None) -> None:
    potential = make_potential(num_ori, radius)
    numbers, positions = make_molecule("CH3CH2OH")
    graph = build_graph(numbers, positions, radius)
    # A list with a skin; then a batch with benzene, which widens the table.
    longer = build_graph(numbers, positions, radius, edges=neighbour_list(positions, None if radius is None else 9.0))
    wide = batch_graphs([longer, make_graph(potential, "C6H6")])
    wanted, skinned, widened = (potential(g) for g in (graph, longer, wide))
    for found in (skinned.forces, widened.forces[: len(numbers)]):
        assert worst(found, wanted.forces) <= 1e-12
    assert float(skinned.energy) == pytest.approx(float(wanted.energy), rel=1e-12)


def test_unused_slots_do_not_overflow_high_degrees() -> None:
    hyper, grid = make_hyper(3, None, degree=8), make_grid(3)
    state = {n: v.float() if v.is_floating_point() else v for n, v in make_state(hyper).items()}
    potential = load_published(state, hyper, grid)
    graph = batch_graphs([make_graph(potential, "CH3CH2OH"), build_graph(np.array([1]), np.zeros((1, 3)), None)])
    x = graph.positions.clone().requires_grad_(True)
    total = interaction_energies(potential, graph, x, graph.offsets).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(gradient.square().sum(), x)[0]).all()


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_single_atom(num_ori: int, radius: float | None) -> None:
    hyper, grid = make_hyper(num_ori, radius), make_grid(num_ori)
    state = make_state(hyper)
    potential = load_published(state, hyper, grid)
    prediction = potential(build_graph(np.array([8]), np.zeros((1, 3)), radius))
    wanted = expected_energy(state, hyper, grid, np.array([8]), torch.zeros(1, 3, dtype=torch.float64))
    assert float(prediction.energy) == pytest.approx(float(wanted), rel=1e-12)
    assert torch.equal(prediction.forces, torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_fused_is_the_same(num_ori: int, radius: float | None) -> None:
    potential = make_potential(num_ori, radius)
    graph = make_graph(potential, "CH3CH2OH")
    plain, compilable = (
        predict(potential, graph, forces=True, stress=False, for_compile=for_compile) for for_compile in (False, True)
    )
    for one, other in zip(plain, compilable, strict=True):
        assert worst(one, other) <= 1e-12


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_float32(num_ori: int, radius: float | None) -> None:
    hyper, grid = make_hyper(num_ori, radius), make_grid(num_ori)
    state = make_state(hyper)
    single = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    exact, rounded = load_published(state, hyper, grid), load_published(single, hyper, grid)
    assert rounded.dtype == torch.float32
    graph = make_graph(exact, "CH3CH2OH")
    assert worst(rounded(graph).forces, exact(graph).forces) <= 1e-4


def test_periodic_crystal_is_its_supercell() -> None:
    potential = make_potential(7, 4.0)
    numbers, positions, cell = np.array([6, 1]), np.array([[0.1, 0.2, 0.3], [1.5, 1.6, 1.2]]), 3.1 * np.eye(3)
    small = potential(build_graph(numbers, positions, 4.0, cell, True))
    shifts = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)]) @ cell
    repeated = (positions[None] + shifts[:, None]).reshape(-1, 3)
    large = potential(build_graph(np.tile(numbers, 8), repeated, 4.0, 2 * cell, True))
    assert float(large.energy) == pytest.approx(8 * float(small.energy), rel=1e-12)
    assert worst(large.forces, small.forces.repeat(8, 1)) <= 1e-11


def test_all_pairs_of_a_crystal_are_refused() -> None:
    potential = make_potential(7, None)
    with pytest.raises(ValueError, match="finite cutoff"):
        build_graph(np.array([6]), np.zeros((1, 3)), potential.cutoff, 3.0 * np.eye(3), True)


def test_network_without_its_grid_predicts_nothing() -> None:
    with torch.random.fork_rng(devices=[]):
        network = PublishedPonita(PublishedConfig(num_ori=4, channels=4, num_layers=1, basis_dim=4, cutoff=5.0), 8)
    potential = Potential(network, range(1, 9), {})
    assert torch.isnan(potential(make_graph(potential, "CH3CH2OH"), forces=False).energies).all()


def test_a_grid_of_its_own_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="bound to the orientation grid"):
        make_potential().set_grid(12)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_same_as_the_published_code(name: str) -> None:
    path = REFERENCE / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name}: set PONITA_FF_REFERENCE to the folder with the published code's outputs")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    state = {key[len("state/") :]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("state/")}
    grid = torch.from_numpy(arrays["ori_grid"]) if "ori_grid" in arrays else None
    potential = load_published(state, json.loads(str(arrays["hyper"])), grid)
    graphs = [build_graph(arrays["atomic_numbers"], x, potential.cutoff) for x in arrays["positions"]]
    prediction = potential(batch_graphs(graphs))
    forces = torch.from_numpy(arrays["forces"]).reshape(-1, 3)
    energy_error = worst(prediction.energy, torch.from_numpy(arrays["energies"]))
    force_error = worst(prediction.forces, forces)
    print(f"{name}: max|ΔE|/max|E| = {energy_error:.1e}, max|ΔF|/max|F| = {force_error:.1e}")
    assert energy_error <= 1e-9
    assert force_error <= 1e-9
