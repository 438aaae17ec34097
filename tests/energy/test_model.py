"""An energy model: what it refuses, and the symmetries that are built into it (random weights, float64)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from predictions import Make, build, energy, graph_of, predict, random_rotations, spread, turned

from ponita_ff.network.orientations import averaging_rotations, orientation_grid, rotation_group
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import batch_graphs


@pytest.mark.parametrize("species", [[], [6, 1], [1, 1], [0, 1], [1, 119]])
def test_species_must_be_ascending_atomic_numbers(species: list[int], tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match="species"):
        Potential(tiny_potential.network, species, {})


@pytest.mark.parametrize("zbl_cutoff", [0.0, -1.0, 4.1, float("nan")])
def test_repulsion_beyond_the_network_cutoff_would_jump_and_is_refused(zbl_cutoff: float, make_potential: Make) -> None:
    with pytest.raises(ValueError, match="zbl_cutoff"):
        make_potential(zbl_cutoff=zbl_cutoff)


def test_unknown_element_is_named_with_its_atom(tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match=r"atom 2 is N \(Z = 7\).*H, C, O"):
        tiny_potential.check_species(np.array([1, 6, 7]))
    for unreal in (0, 500, -3):
        with pytest.raises(ValueError, match=f"atom 0 .*Z = {unreal}"):
            tiny_potential.check_species(np.array([unreal]))
    tiny_potential.check_species(np.array([8, 1, 6]))


def test_references_and_rotations_stay_in_float64_whatever_the_cast(make_potential: Make) -> None:
    potential = make_potential(references={1: -13.605693122994, 6: -1029.123456789, 8: 0.1})
    potential.average_rotations(3)
    before = potential.reference_energies.clone(), potential.rotations.clone()
    for cast in (potential.to(torch.float32), potential.float(), potential.double(), potential.to(torch.float32)):
        assert torch.equal(cast.reference_energies, before[0])
        assert torch.equal(cast.rotations, before[1])
    assert potential.network.embedding.weight.dtype == torch.float32
    assert potential.clone().float().reference_energies.dtype == torch.float64


def test_translation(system: Atoms, tiny_potential: Potential) -> None:
    before = predict(tiny_potential, system)
    system.positions += [1.234, -5.678, 9.1]
    after = predict(tiny_potential, system)
    assert abs(float(before.energy - after.energy)) < 1e-9
    assert float((before.forces - after.forces).abs().max()) < 1e-9
    assert float(after.forces.sum(0).abs().max()) < 1e-9


def test_wrapping_changes_nothing(make_system: Callable, tiny_potential: Potential) -> None:
    atoms = make_system("crystal")
    wrapped = atoms.copy()
    wrapped.wrap()
    assert np.abs(wrapped.positions - atoms.positions).max() > 1.0
    one, other = (predict(tiny_potential, a, stress=True) for a in (atoms, wrapped))
    assert abs(float(one.energy - other.energy)) < 1e-9
    assert float((one.forces - other.forces).abs().max()) < 1e-9
    assert float((one.stress - other.stress).abs().max()) < 1e-9


def test_permutation(system: Atoms, tiny_potential: Potential) -> None:
    order = np.random.default_rng(1).permutation(len(system))
    before, after = predict(tiny_potential, system), predict(tiny_potential, system[order])
    assert abs(float(before.energy - after.energy)) < 1e-9
    assert float((before.energies[order] - after.energies).abs().max()) < 1e-9
    assert float((before.forces[order] - after.forces).abs().max()) < 1e-9


def test_another_cell_of_the_same_crystal(make_system: Callable, tiny_potential: Potential) -> None:
    atoms = make_system("crystal")
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ np.asarray(atoms.cell))
    assert abs(energy(tiny_potential, atoms) - energy(tiny_potential, sheared)) < 1e-9


@pytest.mark.parametrize("num_ori", [6, 8, 12, 20, 32, 62])
def test_rotations_of_the_grid_are_exact(num_ori: int, make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(num_ori=num_ori, num_layers=1), make_system("molecule")
    group = rotation_group(orientation_grid(num_ori).group)
    assert len(group) == (24 if num_ori < 12 else 60)
    predictions = potential(batch_graphs([graph_of(turned(atoms, rotation)) for rotation in group]))
    assert float((predictions.energy - predictions.energy[0]).abs().max()) < 1e-9
    forces = predictions.forces.reshape(len(group), 9, 3).numpy()
    assert np.abs(forces - forces[0] @ np.swapaxes(group, 1, 2)).max() < 1e-9


def test_rotations_of_the_grid_are_exact_for_a_crystal_and_its_stress(tiny_potential: Potential, make_system) -> None:
    atoms = make_system("crystal")
    before = predict(tiny_potential, atoms, stress=True)
    for rotation in rotation_group("icosahedral")[[7, 23, 59]]:
        after = predict(tiny_potential, turned(atoms, rotation), stress=True)
        assert abs(float(after.energy - before.energy)) < 1e-9
        assert np.abs(after.forces.numpy() - before.forces.numpy() @ rotation.T).max() < 1e-9
        assert np.abs(after.stress[0].numpy() - rotation @ before.stress[0].numpy() @ rotation.T).max() < 1e-9


@pytest.mark.parametrize("num_ori", [0, 6, 12, 32])
def test_inversion_is_exact(num_ori: int, make_potential: Make, system: Atoms) -> None:
    potential = make_potential(num_ori=num_ori)
    before, after = predict(potential, system), predict(potential, turned(system, -np.eye(3)))
    assert abs(float(before.energy - after.energy)) < 1e-9
    assert float((before.forces + after.forces).abs().max()) < 1e-9


def test_pnita_is_exact_under_every_rotation(tiny_pnita: Potential, system: Atoms) -> None:
    before = predict(tiny_pnita, system)
    for rotation in random_rotations(5):
        after = predict(tiny_pnita, turned(system, rotation))
        assert abs(float(after.energy - before.energy)) < 1e-9
        assert np.abs(after.forces.numpy() - before.forces.numpy() @ rotation.T).max() < 1e-9


def test_other_rotations_leave_an_error_that_finer_grids_and_averages_bring_down(make_potential: Make, make_system):
    atoms = make_system("molecule")
    coarse = spread(make_potential(), atoms)
    assert coarse > 1e-3  # random weights know nothing of rotations: were this zero, these tests could not fail
    finer = [spread(build(make_potential, set_grid=num_ori), atoms) for num_ori in (32, 62)]
    averaged = spread(build(make_potential, average=8), atoms)
    assert finer[0] < 0.3 * coarse
    assert finer[1] < 0.6 * finer[0]
    assert averaged < 0.6 * coarse


def test_average_over_rotations_is_that_average(make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(zbl_cutoff=1.5), make_system("crystal")
    singles = [
        energy(potential, turned(atoms, rotation.numpy().T)) for rotation in averaging_rotations(4, "icosahedral")
    ]
    potential.average_rotations(4)
    assert energy(potential, atoms) == pytest.approx(np.mean(singles), abs=1e-9)
    assert np.ptp(singles) > 1e-6
    potential.average_rotations(1)
    assert energy(potential, atoms) == pytest.approx(singles[0], abs=1e-12)


def test_pnita_has_nothing_to_average_over(make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(num_ori=0), make_system("crystal")
    before = energy(potential, atoms)
    for number in (1, 3):
        potential.average_rotations(number)
        assert energy(potential, atoms) == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("number", [0, 1.5, "two"])
def test_no_number_of_rotations_is_refused(number: Any, tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match=f"number of rotations must be .* got {number!r}"):
        tiny_potential.average_rotations(number)


def test_species_are_numbered_in_ascending_order(tiny_potential: Potential) -> None:
    graph = graph_of(Atoms("OHNC", positions=3.0 * np.eye(4)[:, :3]))
    assert tiny_potential.species == (1, 6, 8)
    assert tiny_potential.species_of(graph).tolist() == [2, 0, -1, 1]  # −1: an element that it does not know


def test_it_tells_its_cutoff_dtype_and_device(make_potential: Make) -> None:
    model = make_potential(cutoff=3.5, dtype=torch.float32)
    assert (model.cutoff, model.dtype, model.device) == (3.5, torch.float32, torch.device("cpu"))
    assert model.double().dtype == torch.float64
    assert model.to("meta").device == torch.device("meta")


def test_another_grid_than_that_of_the_training_comes_with_a_warning(
    tiny_potential: Potential, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_potential.set_grid(12)
    assert not caplog.records
    tiny_potential.set_grid(32)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == ("num_ori=32 is not the grid of the training: energies and forces change with it")
    assert len(tiny_potential.network.orientations) == 32
