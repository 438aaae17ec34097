"""Forces, stress and Hessian against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from predictions import VARIANTS, Make, build, energy, graph_of, predict
from torch import Tensor

from ponita_ff.energy import derivatives
from ponita_ff.energy.assembly import interaction_energies, reference_energies
from ponita_ff.energy.derivatives import differentiate, differentiate_part
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import INPUT_FIELDS, batch_graphs, build_graph


@pytest.mark.parametrize("variant", VARIANTS)
def test_forces_against_central_differences(variant: str, system: Atoms, make_potential: Make) -> None:
    potential = build(make_potential, **VARIANTS[variant])
    step = 1e-4
    graphs = []
    for index in range(3 * len(system)):
        for sign in (1, -1):
            moved = system.copy()
            moved.positions.flat[index] += sign * step
            graphs.append(graph_of(moved))
    energies = potential(batch_graphs(graphs), forces=False).energy.numpy().reshape(-1, 2)
    expected = -(energies[:, 0] - energies[:, 1]) / (2 * step)
    forces = predict(potential, system).forces.numpy()
    assert np.abs(forces - expected.reshape(-1, 3)).max() <= 1e-6
    if len(system) > 1:
        assert np.abs(forces).max() > 0.05  # there was something to differentiate


def test_atom_that_sees_only_its_own_images_feels_no_force_but_has_a_stress(
    tiny_potential: Potential, make_system: Callable
) -> None:
    prediction = predict(tiny_potential, make_system("one atom in a tiny cell"), stress=True)
    assert float(prediction.forces.abs().max()) < 1e-12
    assert float(prediction.stress.abs().max()) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_stress_is_symmetric_and_the_derivative_by_strain(variant: str, make_potential: Make, make_system) -> None:
    potential, atoms = build(make_potential, **VARIANTS[variant]), make_system("crystal")
    stress = predict(potential, atoms, stress=True).stress[0].numpy()
    step = 1e-5
    expected = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * step / 2
                strain[b, a] += sign * step / 2
                strained = atoms.copy()
                strained.set_cell(np.asarray(atoms.cell) @ strain.T)
                strained.positions = atoms.positions @ strain.T
                energies.append(energy(potential, strained))
            expected[a, b] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    assert np.abs(stress - expected).max() <= 1e-6
    assert np.abs(stress - stress.T).max() < 1e-15
    assert np.abs(stress).max() > 1e-3


def test_compressed_crystal_pushes_outwards(make_potential: Make) -> None:
    potential = make_potential(zbl_cutoff=2.0)
    stress = predict(potential, Atoms("C", cell=np.eye(3) * 1.2, pbc=True), stress=True).stress[0]
    assert float(torch.trace(stress)) < 0.0  # ASE's sign: negative under compression
    wide = predict(potential, Atoms("C", cell=np.eye(3) * 9.0, pbc=True), stress=True).stress[0]
    assert float(wide.abs().max()) == 0.0


def test_stress_does_not_depend_on_the_handedness_of_the_cell(tiny_potential: Potential, make_system) -> None:
    atoms = make_system("crystal")
    swapped = atoms.copy()
    swapped.set_cell(np.asarray(atoms.cell)[[1, 0, 2]])
    one, other = (predict(tiny_potential, a, stress=True).stress for a in (atoms, swapped))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_second_derivative_is_finite_where_a_bond_points_along_an_orientation(tiny_potential: Potential) -> None:
    orientation = orientation_grid(12).orientations[0]
    graph = graph_of(Atoms("CO", positions=[[0, 0, 0], 1.2 * orientation]))

    def function(positions: torch.Tensor) -> torch.Tensor:
        return interaction_energies(tiny_potential, graph, positions, graph.offsets).sum()

    hessian = torch.autograd.functional.hessian(function, graph.positions).reshape(6, 6)
    assert torch.isfinite(hessian).all()
    assert float((hessian - hessian.T).abs().max()) < 1e-10
    assert float(hessian.sum(0).reshape(2, 3).sum(0).abs().max()) < 1e-9
    across = np.cross(orientation, [0, 0, 1.0])
    across /= np.linalg.norm(across)
    forces = [
        predict(tiny_potential, Atoms("CO", positions=[[0, 0, 0], 1.2 * orientation + shift * across])).forces
        for shift in (1e-5, -1e-5)
    ]
    expected = -(forces[0] - forces[1]).flatten().numpy() / 2e-5
    assert np.abs(hessian.numpy() @ np.concatenate((np.zeros(3), across)) - expected).max() < 1e-6


def test_second_derivatives_for_training_reach_every_weight(make_potential: Make, make_system: Callable) -> None:
    potential = make_potential().requires_grad_(True)
    _, forces, _ = differentiate(potential, graph_of(make_system("crystal")), create_graph=True)
    forces.square().sum().backward()
    # The last biases shift the energy by a constant: forces do not know them.
    constants = {"network.readouts.0.bias", "network.readouts.1.bias", "network.layers.1.contract.bias"}
    without = {name for name, weight in potential.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert without <= constants


@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("stress", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prediction_is_the_interaction_and_the_references(
    dtype: torch.dtype, stress: bool, forces: bool, make_potential: Make, make_system: Callable
) -> None:
    potential = make_potential(dtype=dtype, zbl_cutoff=1.8, scale=0.7)
    graph = batch_graphs([graph_of(make_system(name)) for name in ("crystal", "two atoms in a tiny cell")])
    energies, force, tensor = differentiate(potential, graph, forces, stress)
    assert energies.dtype == dtype
    assert (force is not None, tensor is not None) == (forces, stress)
    found = derivatives.predict(potential, graph, forces, stress)
    atomic = energies.detach().double() + reference_energies(potential, graph)
    totals = torch.stack([atomic[graph.batch == index].sum() for index in range(2)])
    wanted = [totals, atomic, *(value for value in (force, tensor) if value is not None)]
    assert [tuple(value.shape) for value in found] == [(2,), (6,), *[(6, 3)] * forces, *[(2, 3, 3)] * stress]
    for value, expected in zip(found, wanted, strict=True):
        assert value.dtype == torch.float64
        assert not value.requires_grad
        assert float((value - expected).abs().max()) < 1e-9


def test_forces_do_not_depend_on_whether_stress_is_asked_for(make_potential: Make, make_system: Callable) -> None:
    potential, graph = make_potential(zbl_cutoff=1.8), graph_of(make_system("crystal"))
    alone, both = (differentiate(potential, graph, True, stress)[1] for stress in (False, True))
    assert float((alone - both).abs().max()) < 1e-12
    alone, both = (differentiate(potential, graph, forces, True)[2] for forces in (False, True))
    assert float((alone - both).abs().max()) < 1e-12


def test_the_graph_is_left_as_it_was(make_potential: Make, make_system: Callable) -> None:
    graph = graph_of(make_system("crystal"))
    before = {name: graph[name].clone() for name in INPUT_FIELDS}
    differentiate(make_potential(), graph, True, True, create_graph=True)
    derivatives.hessian([make_potential()], graph, [0])
    assert all(torch.equal(graph[name], value) and not graph[name].requires_grad for name, value in before.items())


@pytest.mark.parametrize("quantity", ["forces", "stress"])
def test_a_loss_of_derivatives_can_be_differentiated_with_respect_to_weights(
    quantity: str, make_potential: Make, make_system: Callable
) -> None:
    """Against central differences of the loss, as training by forces and stress needs it."""
    potential = make_potential(num_layers=1, channels=4, zbl_cutoff=1.8, scale=0.7).requires_grad_(True)
    graph = graph_of(make_system("crystal"))

    def loss(create_graph: bool) -> torch.Tensor:
        _, forces, stress = differentiate(potential, graph, stress=True, create_graph=create_graph)
        return forces.square().sum() if quantity == "forces" else 100.0 * stress.square().sum()

    loss(True).backward()
    assert not loss(False).requires_grad
    for weight in (potential.network.embedding.weight, potential.network.layers[0].convolution.radial.weight):
        index, step = int(weight.grad.abs().argmax()), 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[index] += sign * step
            values.append(float(loss(False)))
            with torch.no_grad():
                weight.view(-1)[index] -= sign * step
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-4
        assert float(weight.grad.view(-1)[index]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hessian_against_central_differences_of_forces(variant: str, make_potential: Make, make_system) -> None:
    potential, atoms = build(make_potential, **VARIANTS[variant]), make_system("triclinic, mixed pbc")
    step, rows = 1e-4, []
    for index in range(3 * len(atoms)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.flat[index] += sign * step
            forces.append(predict(potential, moved).forces.flatten())
        rows.append((forces[1] - forces[0]) / (2 * step))
    expected = torch.stack(rows)
    graph = graph_of(atoms)
    found = derivatives.hessian([potential], graph, range(len(atoms)))
    assert float(expected.abs().max()) > 0.1
    assert float((found - expected).abs().max()) < 1e-5
    assert torch.equal(found, found.T)
    # A block of some atoms, in the order asked for.
    columns = torch.tensor([9, 10, 11, 3, 4, 5])
    block = derivatives.hessian([potential], graph, [3, 1])
    assert float((block - found[columns][:, columns]).abs().max()) < 1e-10


def test_hessian_of_several_models_is_that_of_their_mean_energy(make_potential: Make, make_system: Callable) -> None:
    models = [make_potential(), make_potential(seed=1, cutoff=3.0, scale=0.5, zbl_cutoff=1.8)]
    graph = graph_of(make_system("triclinic, mixed pbc"))
    each = [derivatives.hessian([model], graph, [0, 2]) for model in models]
    assert float((derivatives.hessian(models, graph, [0, 2]) - (each[0] + each[1]) / 2).abs().max()) < 1e-10
    assert float((each[0] - each[1]).abs().max()) > 1e-2


def test_the_energies_of_some_atoms(tiny_potential: Potential, make_system: Callable[[str], Atoms]) -> None:
    atoms = make_system("molecule")

    def part(shift: float) -> tuple[Tensor, Tensor]:
        moved = atoms.positions.copy()
        moved[5, 0] += shift  # not one of them
        return differentiate_part(tiny_potential, build_graph(atoms.numbers, moved, tiny_potential.cutoff), 3)

    (up, _), (down, _), (energies, gradient) = part(1e-4), part(-1e-4), part(0.0)
    assert energies.shape == (3,) and gradient.shape == (len(atoms), 3)
    slope = float((up - down).sum()) / 2e-4
    assert abs(slope) > 1e-4
    assert float(gradient[5, 0]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
