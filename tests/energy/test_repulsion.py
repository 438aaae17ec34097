"""Short-range repulsion."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms, units
from torch import Tensor

from ponita_ff.energy.repulsion import ZBL
from ponita_ff.structure.graph import batch_graphs, build_graph, edge_vectors

CUTOFF = 1.6


def zbl_pair(z1: int, z2: int, r: float, cutoff: float) -> float:
    """Repulsion of two atoms in eV, from the book (Ziegler, Biersack, Littmark 1985)."""
    a = 0.8854 * units.Bohr / (z1**0.23 + z2**0.23)
    x = r / a
    phi = 0.18175 * math.exp(-3.19980 * x) + 0.50986 * math.exp(-0.94229 * x)
    phi += 0.28022 * math.exp(-0.40290 * x) + 0.02817 * math.exp(-0.20162 * x)
    u = min(r / cutoff, 1.0)
    return units.Hartree * units.Bohr * z1 * z2 / r * phi * (1 - 10 * u**3 + 15 * u**4 - 6 * u**5)


def dimer_energy(r: Tensor) -> Tensor:
    """Repulsion of C and O at a distance."""
    zbl = ZBL([1, 6, 8], CUTOFF)
    return zbl(torch.tensor([1, 2]), torch.tensor([[1], [0]]), r.expand(2, 1)).sum()


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9, 1.2, 1.59])
def test_zbl_against_the_formula(r: float) -> None:
    energy = dimer_energy(torch.tensor(r, dtype=torch.float64))
    # The book's screening length is 0.8854 Bohr = 0.46853 Å; ours is rounded as codes usually do.
    assert float(energy) == pytest.approx(zbl_pair(6, 8, r, CUTOFF), rel=1e-3)


def test_zbl_is_a_sum_over_pairs_half_on_either_atom(make_potential: Callable) -> None:
    potential = make_potential(scale=0.0, zbl_cutoff=CUTOFF, references={1: 0.0})
    atoms = Atoms("CHO", positions=[[0, 0, 0], [0, 0, 1.0], [1.2, 0, 0.1]])
    prediction = potential(build_graph(atoms.numbers, atoms.positions, 4.0))
    d = atoms.get_all_distances()
    pairs = {(0, 1): zbl_pair(6, 1, d[0, 1], CUTOFF), (0, 2): zbl_pair(6, 8, d[0, 2], CUTOFF)}
    pairs[1, 2] = zbl_pair(1, 8, d[1, 2], CUTOFF)
    expected = [sum(e for pair, e in pairs.items() if atom in pair) / 2 for atom in range(3)]
    assert prediction.energies.numpy() == pytest.approx(expected, rel=1e-3)


def test_zbl_is_zero_from_its_cutoff_on_with_two_continuous_derivatives() -> None:
    def derivatives(r: float) -> list[float]:
        point = torch.tensor(r, dtype=torch.float64, requires_grad=True)
        values = [dimer_energy(point)]
        for _ in range(3):
            values.append(torch.autograd.grad(values[-1], point, create_graph=True)[0])
        return [float(value.detach()) for value in values]

    assert derivatives(CUTOFF + 1e-9) == [0.0, 0.0, 0.0, 0.0]
    assert float(dimer_energy(torch.tensor(CUTOFF, dtype=torch.float64))) == 0.0
    inside = derivatives(CUTOFF - 1e-6)
    assert max(abs(value) for value in inside[:3]) < 1e-3
    assert abs(inside[3]) > 1.0


def test_zbl_is_repulsive_everywhere() -> None:
    r = torch.linspace(0.05, CUTOFF - 0.01, 200, dtype=torch.float64, requires_grad=True)
    energy = torch.stack([dimer_energy(x) for x in r])
    (slope,) = torch.autograd.grad(energy.sum(), r)
    assert (energy > 0).all()
    assert (slope < 0).all()


@pytest.mark.parametrize("charges", [(1, 1), (1, 8), (6, 8), (92, 118)])
def test_pair_terms_are_the_formula_and_its_slope(charges: tuple[int, int]) -> None:
    zbl, r, step = ZBL([1, 6, 8], CUTOFF), np.linspace(0.05, CUTOFF - 1e-3, 40), 1e-6
    first, second = (np.full(len(r), float(z)) for z in charges)
    energy, slope = zbl.pair_terms(first, second, r)
    assert energy == pytest.approx([zbl_pair(*charges, x, CUTOFF) for x in r], rel=3e-3)
    higher, lower = (zbl.pair_terms(first, second, r + sign * step)[0] for sign in (1, -1))
    assert slope == pytest.approx((higher - lower) / (2 * step), rel=1e-6, abs=1e-5)
    swapped = zbl.pair_terms(second, first, r)
    assert np.array_equal(swapped[0], energy)
    assert np.array_equal(swapped[1], slope)


@pytest.mark.parametrize("names", [("crystal",), ("crystal", "one atom in a tiny cell", "two atoms in a tiny cell")])
def test_terms_are_what_autograd_makes_of_the_energies(names: tuple[str, ...], make_system: Callable) -> None:
    """Energies, gradient and strain derivative written out by hand, for a step of dynamics, against torch's."""
    graphs = []
    for name in names:
        atoms = make_system(name)
        graphs.append(build_graph(atoms.numbers, atoms.positions, 4.0, np.asarray(atoms.cell), atoms.pbc))
    graph = batch_graphs(graphs)
    zbl = ZBL([1, 6, 8], 3.5)
    species = torch.tensor([{1: 0, 6: 1, 8: 2}[z] for z in graph.atomic_numbers.tolist()])
    positions = graph.positions.clone().requires_grad_(True)
    strain = torch.zeros(len(names), 3, 3, dtype=torch.float64, requires_grad=True)
    vectors = edge_vectors(positions, graph.offsets, graph.neighbours, graph.reverse)
    vectors = vectors + vectors @ (0.5 * (strain + strain.mT))[graph.batch]
    energies = zbl(species, graph.neighbours, vectors.norm(dim=-1))
    expected = (energies.detach(), *torch.autograd.grad(energies.sum(), (positions, strain)))
    for value, right in zip(zbl.terms(graph), expected, strict=True):
        assert value.dtype == torch.float64
        assert value.shape == right.shape
        assert float(right.abs().max()) > 0.1
        assert float((value - right).abs().max()) < 1e-10 * float(right.abs().max())


def test_terms_of_atoms_that_are_far_apart_are_zero() -> None:
    graph = build_graph(np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, CUTOFF]]), 4.0)
    energies, gradient, strain = ZBL([6, 8], CUTOFF).terms(graph)
    assert (energies.shape, gradient.shape, strain.shape) == ((2,), (2, 3), (1, 3, 3))
    assert not energies.any() and not gradient.any() and not strain.any()
