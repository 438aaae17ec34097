"""The published network with random weights, and its formulas written out one pair of atoms at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase.build import molecule
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ponita_ff.potential.import_published import load_published
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, build_graph

Floats = NDArray[np.float64]
State = dict[str, Tensor]
Hyper = dict[str, Any]

#: Number of orientations and cutoff (Å; None for all pairs) of every form.
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
