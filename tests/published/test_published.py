"""The published network: against loops over its formulas, against the authors' own outputs, and its importer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ponita_ff.energy.assembly import interaction_energies
from ponita_ff.energy.derivatives import differentiate, predict
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.import_published import import_checkpoint, load_published
from ponita_ff.potential.potential import Potential
from ponita_ff.published.network import PublishedConfig, PublishedPonita
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph
from ponita_ff.structure.neighbours import neighbour_list

Floats = NDArray[np.float64]
State = dict[str, Tensor]
Hyper = dict[str, Any]

REFERENCE = Path(os.environ.get("PONITA_FF_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
REFERENCE_NAMES = [
    "ponita_aspirin_ori20_r5.0",
    "ponita_ethanol_ori0_rinf",
    "ponita_ethanol_ori20_r5.0",
    "ponita_ethanol_ori20_rinf",
]
FORMS = [(20, 5.0), (20, None), (0, 5.0), (0, None)]
MOLECULES = ["CH3CH2OH", "C6H6"]


def make_hyper(num_ori: int = 20, radius: float | None = 5.0, **changes: Any) -> Hyper:
    return {
        "input_dim": 9,
        "hidden_dim": 8,
        "output_dim": 1,
        "num_layers": 2,
        "radius": radius,
        "num_ori": num_ori,
        "basis_dim": 6,
        "degree": 3,
        "widening_factor": 2,
        "multiple_readouts": True,
        **changes,
    }


def make_state(hyper: Hyper, seed: int = 0) -> State:
    """Random weights under the published names, float64."""
    hidden, basis, wide = hyper["hidden_dim"], hyper["basis_dim"], hyper["widening_factor"] * hyper["hidden_dim"]
    attributes = 2 if hyper["num_ori"] else 1
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.weight": (hidden, hyper["input_dim"])}
    for name, number in [("basis_fn", attributes), ("fiber_basis_fn", 1)]:
        if name == "basis_fn" or hyper["num_ori"]:
            features = sum(number**power for power in range(1, hyper["degree"] + 1))
            shapes |= {f"{name}.1.weight": (hidden, features), f"{name}.1.bias": (hidden,)}
            shapes |= {f"{name}.3.weight": (basis, hidden), f"{name}.3.bias": (basis,)}
    for layer in range(hyper["num_layers"]):
        block = f"interaction_layers.{layer}"
        shapes |= {f"{block}.conv.kernel.weight": (hidden, basis), f"{block}.conv.bias": (hidden,)}
        if hyper["num_ori"]:
            shapes[f"{block}.conv.fiber_kernel.weight"] = (hidden, basis)
        shapes |= {f"{block}.linear_1.weight": (wide, hidden), f"{block}.linear_1.bias": (wide,)}
        shapes |= {f"{block}.linear_2.weight": (hidden, wide), f"{block}.linear_2.bias": (hidden,)}
        shapes |= {f"{block}.norm.weight": (hidden,), f"{block}.norm.bias": (hidden,)}
        if hyper["multiple_readouts"] or layer == hyper["num_layers"] - 1:
            shapes |= {f"read_out_layers.{layer}.weight": (1, hidden), f"read_out_layers.{layer}.bias": (1,)}
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    # The features of a bond of 5 Å go up to 125: smaller weights keep the activations where they bend. A wider range
    # of kernels makes up for it, so that forces are of the size of energies.
    state["basis_fn.1.weight"] *= 0.2
    for name in state:
        if name.endswith("_fn.3.weight"):
            state[name] *= 5.0
    for layer in range(hyper["num_layers"]):
        state[f"interaction_layers.{layer}.conv.callibrated"] = torch.tensor(True)
    if hyper["radius"] is not None:
        state["windowing_fn.p"] = torch.tensor(6.0, dtype=torch.float64)
        state["windowing_fn.r_max"] = torch.tensor(hyper["radius"], dtype=torch.float64)
    return state


def make_grid(num_ori: int, seed: int = 0) -> Tensor | None:
    if num_ori == 0:
        return None
    points = torch.randn(num_ori, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def make_molecule(name: str, seed: int = 0) -> tuple[NDArray[np.int64], Floats]:
    """A rattled molecule, so that no bond lies along anything."""
    atoms = molecule(name)
    return atoms.numbers, atoms.positions + 0.05 * np.random.default_rng(seed).normal(size=atoms.positions.shape)


def make_potential(num_ori: int = 20, radius: float | None = 5.0, **changes: Any) -> Potential:
    hyper = make_hyper(num_ori, radius, **changes)
    return load_published(make_state(hyper), hyper, make_grid(num_ori))


def make_graph(potential: Potential, name: str) -> Graph:
    numbers, positions = make_molecule(name)
    return build_graph(numbers, positions, potential.cutoff)


# The independent implementation: the formulas of the published network, one pair of atoms at a time.


def features_of(attributes: Tensor, degree: int) -> Tensor:
    """x, x⊗x, x⊗x⊗x, …, flattened."""
    letters = "abcdefgh"
    powers = []
    for degree_here in range(1, degree + 1):
        indices = letters[:degree_here]
        product = torch.einsum(",".join(f"z{c}" for c in indices) + f"->z{indices}", *([attributes] * degree_here))
        powers.append(product.reshape(len(attributes), -1))
    return torch.cat(powers, dim=1)


def basis_of(state: State, name: str, attributes: Tensor, degree: int) -> Tensor:
    hidden = features_of(attributes, degree)
    for place in (1, 3):
        hidden = functional.gelu(hidden @ state[f"{name}.{place}.weight"].T + state[f"{name}.{place}.bias"])
    return hidden


def window(distance: Tensor, radius: float | None) -> Tensor:
    if radius is None:
        return torch.ones_like(distance)
    u, p = distance / radius, 6
    value = 1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
    return value * (u < 1)


def pair_basis(state: State, hyper: Hyper, grid: Tensor | None, vector: Tensor, same_atom: bool) -> Tensor:
    """Windowed spatial basis of one pair, shape (num_ori or 1, basis_dim)."""
    attributes = torch.zeros(1 if grid is None else len(grid), 1 if grid is None else 2, dtype=torch.float64)
    distance = torch.zeros((), dtype=torch.float64)
    if not same_atom:
        distance = vector.norm()
        attributes = distance.reshape(1, 1)
        if grid is not None:
            rows = [torch.stack((vector @ n, (vector - (vector @ n) * n).norm())) for n in grid]
            attributes = torch.stack(rows)
    return basis_of(state, "basis_fn", attributes, hyper["degree"]) * window(distance, hyper["radius"])


def expected_energy(state: State, hyper: Hyper, grid: Tensor | None, numbers: NDArray[np.int64], x: Tensor) -> Tensor:
    """Energy of one molecule, self loops and all pairs written out."""
    size, orientations = len(numbers), 1 if grid is None else len(grid)
    basis = [[pair_basis(state, hyper, grid, x[j] - x[i], i == j) for j in range(size)] for i in range(size)]
    f = state["x_embedder.weight"].T[torch.from_numpy(numbers)].unsqueeze(1).repeat(1, orientations, 1)
    read_outs = []
    for layer in range(hyper["num_layers"]):
        weights = {
            name.removeprefix(f"interaction_layers.{layer}."): value
            for name, value in state.items()
            if name.startswith(f"interaction_layers.{layer}.")
        }
        spatial = torch.stack(
            [sum(basis[i][j] @ weights["conv.kernel.weight"].T * f[j] for j in range(size)) for i in range(size)]
        )
        if grid is not None:
            cosines = torch.einsum("ax,bx->ab", grid, grid).reshape(-1, 1)
            fibre = basis_of(state, "fiber_basis_fn", cosines, hyper["degree"]) @ weights["conv.fiber_kernel.weight"].T
            fibre = fibre.reshape(orientations, orientations, -1)
            spatial = torch.einsum("ioc,opc->ipc", spatial, fibre) / orientations
        h = spatial + weights["conv.bias"]
        h = functional.layer_norm(h, h.shape[-1:], weights["norm.weight"], weights["norm.bias"])
        h = functional.gelu(h @ weights["linear_1.weight"].T + weights["linear_1.bias"])
        h = h @ weights["linear_2.weight"].T + weights["linear_2.bias"]
        f = f + h * weights.get("layer_scale", 1.0)
        if f"read_out_layers.{layer}.weight" in state:
            read_outs.append(f @ state[f"read_out_layers.{layer}.weight"][0] + state[f"read_out_layers.{layer}.bias"])
    return torch.stack(read_outs).mean(0).mean(1).sum()


def expected(state: State, hyper: Hyper, grid: Tensor | None, name: str) -> tuple[float, Tensor]:
    numbers, positions = make_molecule(name)
    x = torch.from_numpy(positions).requires_grad_(True)
    energy = expected_energy(state, hyper, grid, numbers, x)
    return float(energy.detach()), -torch.autograd.grad(energy, x)[0]


def worst(found: Tensor, wanted: Tensor) -> float:
    """Largest deviation over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


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


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_survives_its_file(num_ori: int, radius: float | None, tmp_path: Path) -> None:
    potential = make_potential(num_ori, radius)
    save_potential(potential, tmp_path / "p.safetensors")
    again = load_potential(tmp_path / "p.safetensors")
    assert isinstance(again.network, PublishedPonita)
    assert again.network.config == potential.network.config
    assert again.species == potential.species == tuple(range(1, 9))
    assert again.cutoff == radius
    graph = make_graph(potential, "CH3CH2OH")
    for field in ("energy", "forces"):
        assert torch.equal(getattr(again(graph), field), getattr(potential(graph), field))


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


def test_scale_energy_per_atom_and_species() -> None:
    hyper, grid = make_hyper(7), make_grid(7)
    state = make_state(hyper)
    plain = load_published(state, hyper, grid)
    scaled = load_published(state, hyper, grid, species=[8, 6, 1], scale=0.25, energy_per_atom=-3.0)
    assert scaled.species == (1, 6, 8)
    graph = make_graph(plain, "CH3CH2OH")
    assert float(scaled(graph).energy) == pytest.approx(0.25 * float(plain(graph).energy) - 27.0, rel=1e-12)
    assert worst(scaled(graph).forces, 0.25 * plain(graph).forces) <= 1e-12
    with pytest.raises(ValueError, match="is N"):
        scaled.check_species(np.array([7]))
    with pytest.raises(ValueError, match="species must be atomic numbers from 1 to 8"):
        load_published(state, hyper, grid, species=[9])


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


# Refusals: each names what is wrong.


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


# Importing files.


def write_npz(path: Path, state: State, hyper: Hyper | None, grid: Tensor | None) -> None:
    arrays: dict[str, Any] = {f"state/{name}": value.numpy() for name, value in state.items()}
    if hyper is not None:
        arrays["hyper"] = json.dumps(hyper)
    if grid is not None:
        arrays["ori_grid"] = grid.numpy()
    np.savez(path, **arrays)


def write_lightning(path: Path, state: State, grid: Tensor | None, **more: Any) -> None:
    tensors = {f"model.{name}": value for name, value in state.items()}
    if grid is not None:
        tensors["model.transform.ori_grid"] = grid
    tensors["train_metric.total"] = torch.tensor(3)
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer_states": [{"state": {}}], **more}, path)


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
@pytest.mark.parametrize("kind", ["npz", "bare npz", "pt", "ckpt", "safetensors"])
def test_every_kind_of_file_gives_the_same_potential(
    kind: str, num_ori: int, radius: float | None, tmp_path: Path
) -> None:
    hyper, grid = make_hyper(num_ori, radius), make_grid(num_ori)
    state = make_state(hyper)
    path = tmp_path / f"weights.{kind.split()[-1]}"
    buffer = {} if grid is None else {"ori_grid": grid}
    if kind == "npz":
        write_npz(path, state, hyper, grid)
    elif kind == "bare npz":
        write_npz(path, state, None, grid)
    elif kind == "pt":
        torch.save({**state, **buffer}, path)
    elif kind == "ckpt":
        write_lightning(path, state, grid, hyper_parameters={"layers": 2, "lr": 5e-4, "degree": 3})
    else:
        save_file({**state, **buffer}, path)
    found, wanted = import_checkpoint(path), load_published(state, hyper, grid)
    assert found.metadata["imported_from"] == path.name
    assert found.network.config == wanted.network.config
    tensors = wanted.state_dict()
    assert found.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("suffix", ["npy", "npz", "tensor"])
def test_grid_from_a_file_of_its_own(suffix: str, tmp_path: Path) -> None:
    hyper, grid = make_hyper(), make_grid(20)
    assert grid is not None
    write_lightning(tmp_path / "last.ckpt", make_state(hyper), None)
    with pytest.raises(ValueError, match="ori_grid is missing"):
        import_checkpoint(tmp_path / "last.ckpt")
    given: Path | Tensor = tmp_path / f"grid.{suffix}"
    if suffix == "npy":
        np.save(tmp_path / "grid.npy", grid.numpy())
    elif suffix == "npz":
        np.savez(tmp_path / "grid.npz", ori_grid=grid.numpy(), other=np.zeros(2))
    else:
        given = grid
    potential = import_checkpoint(tmp_path / "last.ckpt", ori_grid=given, scale=0.5, species=[1, 6, 8])
    assert torch.equal(potential.network.orientations, grid)
    assert potential.scale == 0.5


def test_last_readout_only_is_inferred(tmp_path: Path) -> None:
    hyper = make_hyper(0, None, multiple_readouts=False)
    torch.save(make_state(hyper), tmp_path / "weights.pt")
    assert import_checkpoint(tmp_path / "weights.pt").network.config.multiple_readouts is False


def test_given_hyper_parameters_are_checked_against_the_file(tmp_path: Path) -> None:
    torch.save(make_state(make_hyper(0)), tmp_path / "weights.pt")
    assert import_checkpoint(tmp_path / "weights.pt", {"radius": 5.0}).cutoff == 5.0
    with pytest.raises(ValueError, match="radius is 6 Å"):
        import_checkpoint(tmp_path / "weights.pt", {"radius": 6.0})
    with pytest.raises(ValueError, match="point cloud"):
        import_checkpoint(tmp_path / "weights.pt", {"num_ori": -1})


class Settings:
    """Something that unpickling would make by running code."""


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    state = make_state(make_hyper(0))

    def refused(name: str, message: str, kind: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            import_checkpoint(tmp_path / name, **options)

    refused("none.pt", "there is no checkpoint", FileNotFoundError)
    (tmp_path / "a.txt").write_text("weights")
    refused("a.txt", "its name must end in")
    torch.save({"state_dict": state, "hyper_parameters": Settings()}, tmp_path / "objects.ckpt")
    refused("objects.ckpt", "Python objects besides tensors.*state_dict")
    for suffix in ("pt", "npz", "safetensors"):
        (tmp_path / f"junk.{suffix}").write_bytes(b"not a checkpoint at all")
        refused(f"junk.{suffix}", r"junk\.")
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    refused("half.pt", "damaged")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("list.pt", "no state dict")
    torch.save({"weight": DOUBLES}, tmp_path / "other.pt")
    refused("other.pt", "no checkpoint of the published PONITA code")
    torch.save({f"{prefix}.{n}": v for prefix in ("a", "b") for n, v in state.items()}, tmp_path / "two.pt")
    refused("two.pt", "several networks")
    torch.save({n: v for n, v in state.items() if not n.startswith("basis_fn")}, tmp_path / "part.pt")
    refused("part.pt", "lacks basis_fn.1.weight")
    cloud = {**state, "basis_fn.1.weight": torch.zeros(8, 39, dtype=torch.float64)}
    torch.save(cloud, tmp_path / "cloud.pt")
    refused("cloud.pt", "point cloud")
    save_potential(make_potential(0), tmp_path / "ours.safetensors")
    refused("ours.safetensors", "use it as it is")
    np.savez(tmp_path / "bad_hyper.npz", **{"state/x_embedder.weight": np.zeros((8, 9)), "hyper": "{"})
    refused("bad_hyper.npz", "not JSON")
    np.savez(tmp_path / "words.npz", **{"state/x_embedder.weight": np.array(["a"])})
    refused("words.npz", "not numbers")
    objects = np.array([Settings()], dtype=object)
    np.savez(tmp_path / "objects.npz", **{"state/x_embedder.weight": objects})
    refused("objects.npz", "plain arrays")
    refused("whole.pt", "there is no file", FileNotFoundError, ori_grid=tmp_path / "none.npy")
    np.savez(tmp_path / "grids.npz", a=np.zeros(3), b=np.zeros(3))
    refused("whole.pt", "name the orientation grid ori_grid", ori_grid=tmp_path / "grids.npz")


# The authors' own outputs.


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
