"""Energies, forces and stress put together from their terms; their smoothness and rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from predictions import Make, energy, graph_of, predict

from ponita_ff.energy.assembly import (
    Terms,
    assemble,
    combine,
    forces_and_stress,
    interaction_energies,
    reference_energies,
)
from ponita_ff.energy.derivatives import differentiate
from ponita_ff.energy.repulsion import ZBL
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.potential.potential import Potential, Prediction
from ponita_ff.structure.graph import Graph, batch_graphs, edge_vectors


def test_energy_is_scale_times_network_plus_references(make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("molecule")
    without = energy(make_potential(scale=0.0), atoms)
    assert without == pytest.approx(6 * -13.6 + 2 * -1029.9 - 2041.8, abs=1e-9)
    once, twice = (energy(make_potential(scale=scale), atoms) - without for scale in (1.0, 2.0))
    assert twice == pytest.approx(2 * once, rel=1e-10)
    assert abs(once) > 1e-3


def test_supercell_has_its_multiple_of_the_energy(make_system: Callable, tiny_potential: Potential) -> None:
    for name in ("crystal", "one atom in a tiny cell"):
        atoms = make_system(name)
        cell = predict(tiny_potential, atoms, stress=True)
        supercell = predict(tiny_potential, atoms.repeat((2, 1, 3)), stress=True)
        assert abs(float(supercell.energy - 6 * cell.energy)) < 1e-9
        assert float((supercell.forces - cell.forces.repeat(6, 1)).abs().max()) < 1e-9
        assert float((supercell.stress - cell.stress).abs().max()) < 1e-9


def test_batch_gives_what_each_gives_alone(make_system: Callable, make_potential: Make) -> None:
    for zbl_cutoff in (None, 1.8):
        potential = make_potential(zbl_cutoff=zbl_cutoff)
        names = ("crystal", "one atom in a tiny cell", "two atoms in a tiny cell")
        systems = [make_system(name) for name in names]
        together = potential(batch_graphs([graph_of(atoms) for atoms in systems]), stress=True)
        start = 0
        for index, atoms in enumerate(systems):
            alone = predict(potential, atoms, stress=True)
            rows = slice(start, start + len(atoms))
            assert abs(float(together.energy[index] - alone.energy)) < 1e-9
            assert float((together.energies[rows] - alone.energies).abs().max()) < 1e-9
            assert float((together.forces[rows] - alone.forces).abs().max()) < 1e-9
            assert float((together.stress[index] - alone.stress[0]).abs().max()) < 1e-9
            start += len(atoms)


def test_single_atom_has_an_energy_and_no_force(tiny_potential: Potential) -> None:
    for symbol, number in (("H", 1), ("C", 6), ("O", 8)):
        prediction = predict(tiny_potential, Atoms(symbol, positions=[[0.3, 0.1, 7.0]]))
        own = float(prediction.energy) - float(tiny_potential.reference_energies[tiny_potential.species.index(number)])
        assert abs(own) < 10.0
        assert not prediction.forces.any()


def test_atoms_beyond_the_cutoff_are_alone(tiny_potential: Potential) -> None:
    alone = sum(energy(tiny_potential, Atoms(symbol)) for symbol in "CO")
    far = Atoms("CO", positions=[[0, 0, 0], [0, 0, 4.0]])
    assert energy(tiny_potential, far) == pytest.approx(alone, abs=1e-9)
    far.positions[1, 2] = 3.0
    assert abs(energy(tiny_potential, far) - alone) > 1e-5


def test_molecules_far_apart_are_additive(make_system: Callable, tiny_potential: Potential) -> None:
    one, other = make_system("molecule"), make_system("molecule")
    other.rattle(0.1, seed=5)
    expected = energy(tiny_potential, one) + energy(tiny_potential, other)
    other.positions += [0, 0, 20.0]
    assert energy(tiny_potential, one + other) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("zbl_cutoff", [None, 1.5])
def test_nothing_jumps_as_an_atom_crosses_a_cutoff(zbl_cutoff: float | None, make_potential: Make) -> None:
    potential = make_potential(zbl_cutoff=zbl_cutoff)
    direction = np.array([0.3, -0.5, 0.81]) / np.linalg.norm([0.3, -0.5, 0.81])
    for cutoff in (4.0, zbl_cutoff or 4.0):

        def at(r: float) -> Prediction:
            return predict(potential, Atoms("COH", positions=[[0, 0, 0], [0.9, 0.9, 0], r * direction]))

        inside, outside = at(cutoff - 5e-7), at(cutoff + 5e-7)
        assert abs(float(inside.energy - outside.energy)) < 1e-6
        assert float((inside.forces - outside.forces).abs().max()) <= 1e-4
    # The distant atom was felt at all before it left.
    assert abs(float(at(3.0).energy - at(5.5).energy)) > 1e-5


@pytest.mark.parametrize("num_ori", [6, 12, 32])
def test_nothing_jumps_as_a_bond_turns_through_an_orientation(num_ori: int, make_potential: Make) -> None:
    potential = make_potential(num_ori=num_ori)
    for orientation in orientation_grid(num_ori).orientations[:3]:
        across = np.cross(orientation, [0.36, 0.48, 0.8])
        across /= np.linalg.norm(across)

        def at(shift: float, along=orientation, across=across) -> Prediction:
            return predict(potential, Atoms("COH", positions=[[0, 0, 0], 1.2 * along + shift * across, [0, 0.3, -1]]))

        before, exactly, after = at(-5e-7), at(0.0), at(5e-7)
        assert abs(float(before.energy - after.energy)) < 1e-5
        assert float((before.forces - after.forces).abs().max()) <= 1e-4
        assert float((before.forces - exactly.forces).abs().max()) <= 1e-4


def test_float32_agrees_with_float64(system: Atoms, make_potential: Make) -> None:
    double = make_potential(zbl_cutoff=1.2)
    single = double.clone().to(torch.float32)
    references = float(double.reference_energies[double.species_index[torch.from_numpy(system.numbers)]].sum())
    exact, rounded = predict(double, system), predict(single, system)
    assert single.dtype == torch.float32
    interaction = float(exact.energy) - references
    assert float(rounded.energy) - references == pytest.approx(interaction, rel=1e-5, abs=1e-6)
    assert float((rounded.forces - exact.forces).abs().max()) < 1e-4
    assert float((rounded.energy - exact.energy).abs().max()) > 0.0
    assert rounded.energy.dtype == rounded.energies.dtype == rounded.forces.dtype == torch.float64


def test_large_references_do_not_round_the_energy_of_a_float32_network(make_potential: Make, make_system) -> None:
    atoms = make_system("molecule")
    moved = atoms.copy()
    moved.positions[3, 0] += 0.01
    exact = make_potential()
    expected = energy(exact, moved) - energy(exact, atoms)
    large = make_potential(dtype=torch.float32, references={1: -1e5, 6: -1e5, 8: -1e5})
    difference = energy(large, moved) - energy(large, atoms)
    assert difference == pytest.approx(expected, abs=2e-6)
    assert abs(expected) > 1e-4
    assert np.spacing(np.float32(9e5)) > 0.05  # what float32 itself would resolve


def test_far_from_the_origin_float32_is_as_good(make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(dtype=torch.float32), make_system("molecule")
    near = predict(potential, atoms)
    atoms.positions += 1e5
    far = predict(potential, atoms)
    assert abs(float(near.energy - far.energy)) < 1e-6
    assert float((near.forces - far.forces).abs().max()) < 1e-5


# ------------------------------------------------------------------------------------------- term by term


def crystals(make_system: Callable) -> Graph:
    """A batch of two periodic structures, in which atoms are close enough for repulsion."""
    return batch_graphs([graph_of(make_system(name)) for name in ("crystal", "two atoms in a tiny cell")])


def bare_terms(potential: Potential, graph: Graph) -> Terms:
    """The bare network's energies and their derivatives, as a native kernel gives them."""
    positions, strain = graph.positions.clone().requires_grad_(True), torch.zeros(len(graph.cell), 3, 3).double()
    strain.requires_grad_(True)
    vectors = edge_vectors(positions, graph.offsets, graph.neighbours, graph.reverse)
    vectors = vectors + vectors @ (0.5 * (strain + strain.mT))[graph.batch]
    energies = potential.network(graph, potential.species_of(graph), vectors)
    return Terms(energies.detach(), *torch.autograd.grad(energies.sum(), (positions, strain)))


def test_combine_scales_the_network_only() -> None:
    network, repulsion = torch.tensor([1.0, -2.0]), torch.tensor([10.0, 20.0])
    assert combine(0.5, network).tolist() == [0.5, -1.0]
    assert combine(0.5, network, repulsion).tolist() == [10.5, 19.0]
    assert network.tolist() == [1.0, -2.0]


def test_forces_are_minus_the_gradient_and_stress_is_per_volume(make_system: Callable) -> None:
    graph = crystals(make_system)
    graph.cell[1] = graph.cell[1, [1, 0, 2]]  # left-handed: the volume is positive all the same
    generator = np.random.default_rng(0)
    gradient = torch.from_numpy(generator.normal(size=(6, 3)))
    strain = torch.from_numpy(generator.normal(size=(2, 3, 3)))
    forces, stress = forces_and_stress(graph, gradient, strain)
    assert torch.equal(forces, -gradient)
    volumes = [make_system(name).get_volume() for name in ("crystal", "two atoms in a tiny cell")]
    for index, volume in enumerate(volumes):
        assert stress[index].numpy() == pytest.approx(strain[index].numpy() / volume, rel=1e-12)
    assert forces_and_stress(graph, None, None) == (None, None)
    assert forces_and_stress(graph, gradient, None)[1] is None
    assert forces_and_stress(graph, None, strain)[0] is None


@pytest.mark.parametrize("zbl_cutoff", [None, 3.0])
@pytest.mark.parametrize("rotations", [1, 3])
def test_interaction_energies_are_scale_times_network_plus_repulsion(
    zbl_cutoff: float | None, rotations: int, make_potential: Make, make_system: Callable
) -> None:
    potential = make_potential(scale=0.7, zbl_cutoff=zbl_cutoff, num_layers=1)
    potential.average_rotations(rotations)
    graph = crystals(make_system)
    species = potential.species_of(graph)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    network = [potential.network(graph, species, vectors @ rotation) for rotation in potential.rotations]
    expected = 0.7 * sum(network) / rotations
    if zbl_cutoff is not None:
        repulsion = ZBL([1, 6, 8], 3.0)(species, graph.neighbours, vectors.norm(dim=-1))
        assert float(repulsion.max()) > 0.1
        expected = expected + repulsion
    found = interaction_energies(potential, graph, graph.positions, graph.offsets)
    assert found.shape == (6,)
    assert torch.allclose(found, expected, rtol=0, atol=1e-11)


def test_interaction_energies_take_the_positions_and_offsets_they_are_given(
    make_potential: Make, make_system: Callable
) -> None:
    potential, graph = make_potential(dtype=torch.float32), crystals(make_system)
    moved = graph.clone()
    moved.positions, moved.offsets = 1.01 * graph.positions, 1.01 * graph.offsets
    found = interaction_energies(potential, graph, moved.positions, moved.offsets)
    assert found.dtype == torch.float32
    assert torch.equal(found, interaction_energies(potential, moved, moved.positions, moved.offsets))
    assert float((found - interaction_energies(potential, graph, graph.positions, graph.offsets)).abs().max()) > 1e-4


def test_reference_energies_are_those_of_the_elements_in_float64(make_potential: Make) -> None:
    potential = make_potential(dtype=torch.float32, references={1: -13.605693122994, 6: -1029.123456789012})
    found = reference_energies(potential, graph_of(Atoms("OHCH", positions=np.diag([1.0, 2, 3, 4])[:, :3])))
    assert found.dtype == torch.float64
    assert found.tolist() == [0.0, -13.605693122994, -1029.123456789012, -13.605693122994]


@pytest.mark.parametrize("zbl_cutoff", [None, 3.0])
def test_assembled_from_the_bare_networks_terms_or_from_the_interaction_it_is_the_same(
    zbl_cutoff: float | None, make_potential: Make, make_system: Callable
) -> None:
    """Native kernels give the bare network, to be scaled, and repulsion apart; autograd differentiates their sum."""
    potential, graph = make_potential(scale=-0.7, zbl_cutoff=zbl_cutoff, num_layers=1), crystals(make_system)
    network = bare_terms(potential, graph)
    repulsion = None if zbl_cutoff is None else Terms(*potential.zbl.terms(graph))
    energy, energies, forces, stress = assemble(potential, graph, network, repulsion, potential.scale)

    # By hand, atom by atom and structure by structure.
    references = {1: -13.6, 6: -1029.9, 8: -2041.8}
    for atom, number in enumerate(graph.atomic_numbers.tolist()):
        pair = 0.0 if repulsion is None else repulsion.energies[atom]
        slope = 0.0 if repulsion is None else repulsion.gradient[atom]
        expected = references[number] - 0.7 * float(network.energies[atom]) + float(pair)
        assert float(energies[atom]) == pytest.approx(expected, rel=1e-14)
        assert forces[atom].numpy() == pytest.approx((0.7 * network.gradient[atom] - slope).numpy(), rel=1e-12)
    for index, name in enumerate(("crystal", "two atoms in a tiny cell")):
        assert float(energy[index]) == pytest.approx(float(energies[graph.batch == index].sum()), rel=1e-14)
        strain = -0.7 * network.strain[index] + (0.0 if repulsion is None else repulsion.strain[index])
        assert stress[index].numpy() == pytest.approx(strain.numpy() / make_system(name).get_volume())
    assert energy.dtype == energies.dtype == forces.dtype == stress.dtype == torch.float64

    # The other convention: everything is in the first term already.
    interaction, force, tensor = differentiate(potential, graph, stress=True)
    volumes = torch.linalg.det(graph.cell).abs()[:, None, None]
    other = assemble(potential, graph, Terms(interaction.detach(), -force, tensor * volumes))
    for value, right in zip(other, (energy, energies, forces, stress), strict=True):
        assert float(right.abs().max()) > 0.01
        assert float((value - right).abs().max()) < 1e-9


def test_assembled_of_what_is_wanted_only(make_potential: Make, make_system: Callable) -> None:
    potential, graph = make_potential(zbl_cutoff=1.8), crystals(make_system)
    network, repulsion = bare_terms(potential, graph), Terms(*potential.zbl.terms(graph))
    energy, energies, forces, stress = assemble(potential, graph, network, repulsion, 0.5)
    for gradient, strain, expected in (
        (None, None, (energy, energies)),
        (network.gradient, None, (energy, energies, forces)),
        (None, network.strain, (energy, energies, stress)),
    ):
        found = assemble(potential, graph, Terms(network.energies, gradient, strain), repulsion, 0.5)
        assert len(found) == len(expected)
        assert all(torch.equal(value, right) for value, right in zip(found, expected, strict=True))
