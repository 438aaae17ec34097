"""Physics of the potential, in float64, on random weights: nothing here was learnt, all of it is built in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.energy.assembly import interaction_energies
from ponita_ff.energy.derivatives import differentiate
from ponita_ff.network.orientations import averaging_rotations, orientation_grid, rotation_group
from ponita_ff.potential.potential import Potential, Prediction
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

Array = NDArray[np.float64]
Make = Callable[..., Potential]

#: Ways to build and use a potential; each adds something to differentiate.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "PNITA": {"num_ori": 0},
    "ZBL": {"zbl_cutoff": 1.8},
    "finer grid": {"set_grid": 32},
    "rotations": {"average": 3, "num_layers": 1},
}


def build(make_potential: Make, set_grid: int | None = None, average: int | None = None, **kwargs: Any) -> Potential:
    """A potential of one of the variants."""
    potential = make_potential(**kwargs)
    if set_grid is not None:
        potential.set_grid(set_grid)
    if average is not None:
        potential.average_rotations(average)
    return potential


def graph_of(atoms: Atoms, cutoff: float = 4.0) -> Graph:
    return build_graph(atoms.numbers, atoms.positions, cutoff, np.asarray(atoms.cell), atoms.pbc)


def predict(potential: Potential, atoms: Atoms, stress: bool = False) -> Prediction:
    return potential(graph_of(atoms), stress=stress)


def energy(potential: Potential, atoms: Atoms) -> float:
    return float(predict(potential, atoms).energy)


def turned(atoms: Atoms, rotation: Array) -> Atoms:
    """The same atoms, and their cell, turned."""
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ rotation.T)
    copy.positions = atoms.positions @ rotation.T
    return copy


def random_rotations(number: int) -> list[Array]:
    """Rotations that no grid knows about."""
    quaternions = np.random.default_rng(0).normal(size=(number, 4))
    rotations = []
    for w, x, y, z in quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True):
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotations.append(np.eye(3) + 2 * w * cross + 2 * cross @ cross)
    return rotations


def spread(potential: Potential, atoms: Atoms, number: int = 16) -> float:
    """Peak to peak of the energy over random rotations, eV."""
    graphs = [graph_of(turned(atoms, rotation)) for rotation in random_rotations(number)]
    return float(np.ptp(potential(batch_graphs(graphs), forces=False).energy.numpy()))


# ------------------------------------------------------------------------------------------ derivatives


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


# ------------------------------------------------------------------------------------------- symmetries


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


def test_supercell_has_its_multiple_of_the_energy(make_system: Callable, tiny_potential: Potential) -> None:
    for name in ("crystal", "one atom in a tiny cell"):
        atoms = make_system(name)
        cell = predict(tiny_potential, atoms, stress=True)
        supercell = predict(tiny_potential, atoms.repeat((2, 1, 3)), stress=True)
        assert abs(float(supercell.energy - 6 * cell.energy)) < 1e-9
        assert float((supercell.forces - cell.forces.repeat(6, 1)).abs().max()) < 1e-9
        assert float((supercell.stress - cell.stress).abs().max()) < 1e-9


def test_another_cell_of_the_same_crystal(make_system: Callable, tiny_potential: Potential) -> None:
    atoms = make_system("crystal")
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ np.asarray(atoms.cell))
    assert abs(energy(tiny_potential, atoms) - energy(tiny_potential, sheared)) < 1e-9


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


def test_a_single_structure_is_no_sequence(tiny_potential: Potential, make_system: Callable) -> None:
    with pytest.raises(TypeError, match="put a single one into a list"):
        tiny_potential.evaluate(make_system("molecule"))


# ------------------------------------------------------------------------------------------- smoothness


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


# --------------------------------------------------------------------------------------- isolated atoms


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


# --------------------------------------------------------------------------- dtypes, references, species


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


def test_references_and_rotations_stay_in_float64_whatever_the_cast(make_potential: Make) -> None:
    potential = make_potential(references={1: -13.605693122994, 6: -1029.123456789, 8: 0.1})
    potential.average_rotations(3)
    before = potential.reference_energies.clone(), potential.rotations.clone()
    for cast in (potential.to(torch.float32), potential.float(), potential.double(), potential.to(torch.float32)):
        assert torch.equal(cast.reference_energies, before[0])
        assert torch.equal(cast.rotations, before[1])
    assert potential.network.embedding.weight.dtype == torch.float32
    assert potential.clone().float().reference_energies.dtype == torch.float64


def test_energy_is_scale_times_network_plus_references(make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("molecule")
    without = energy(make_potential(scale=0.0), atoms)
    assert without == pytest.approx(6 * -13.6 + 2 * -1029.9 - 2041.8, abs=1e-9)
    once, twice = (energy(make_potential(scale=scale), atoms) - without for scale in (1.0, 2.0))
    assert twice == pytest.approx(2 * once, rel=1e-10)
    assert abs(once) > 1e-3


def test_far_from_the_origin_float32_is_as_good(make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(dtype=torch.float32), make_system("molecule")
    near = predict(potential, atoms)
    atoms.positions += 1e5
    far = predict(potential, atoms)
    assert abs(float(near.energy - far.energy)) < 1e-6
    assert float((near.forces - far.forces).abs().max()) < 1e-5


def test_clone_is_independent(tiny_potential: Potential, make_system: Callable) -> None:
    before = energy(tiny_potential, make_system("molecule"))
    clone = tiny_potential.clone().to(torch.float32)
    clone.set_grid(32)
    clone.average_rotations(2)
    clone.network.embedding.weight.zero_()
    assert energy(tiny_potential, make_system("molecule")) == before
    assert not any(parameter.requires_grad for parameter in clone.parameters())


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


# ------------------------------------------------------------------------------------------ many at once

MIXED = ("crystal", "molecule", "triclinic, mixed pbc", "molecule", "one atom in a tiny cell", "crystal", "molecule")


def mixed(make_system: Callable) -> list[Atoms]:
    """Molecules, small and large, crystals and a slab, no two the same."""
    structures = [make_system(name) for name in MIXED]
    for index, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=index)
    large = make_system("molecule")
    for shift in range(1, 4):
        further = make_system("molecule")
        further.positions += [3.0 * shift, 0.3, 0.1 * shift]
        large += further
    return [*structures[:3], large, Atoms("O", positions=[[0.1, 0.2, 0.3]]), *structures[3:]]


@pytest.mark.parametrize("max_atoms", [1, 20, 2000, None])
def test_many_at_once_are_what_each_is_alone(
    max_atoms: int | None, make_potential: Make, make_system: Callable
) -> None:
    potential, structures = make_potential(zbl_cutoff=1.5, scale=0.7), mixed(make_system)
    assert {len(atoms) for atoms in structures} == {1, 4, 5, 9, 36}
    found = potential.evaluate(structures, max_atoms=max_atoms)
    assert found.forces is not None
    assert found.stress is None
    assert found.energies.dtype == np.float64
    for index, atoms in enumerate(structures):
        calculator = PonitaCalculator(potential)
        assert found.energies[index] == pytest.approx(calculator.get_property("energy", atoms), abs=1e-9)
        assert found.forces[index].shape == (len(atoms), 3)
        assert np.abs(found.forces[index] - calculator.get_forces(atoms)).max() < 1e-9


def test_stress_of_many_at_once(make_potential: Make, make_system: Callable) -> None:
    potential = make_potential()
    names = ("crystal", "one atom in a tiny cell", "two atoms in a tiny cell")
    structures = [make_system(name) for name in names]
    found = potential.evaluate(structures, stress=True)
    assert found.stress.shape == (3, 3, 3)
    for tensor, atoms in zip(found.stress, structures, strict=True):
        expected = PonitaCalculator(potential).get_property("stress", atoms)
        assert full_3x3_to_voigt_6_stress(tensor) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_alone(dtype: torch.dtype, make_potential: Make, make_system: Callable) -> None:
    potential, structures = make_potential(dtype=dtype), mixed(make_system)
    found = potential.evaluate(structures, forces=False)
    assert found.forces is None
    assert found.energies == pytest.approx(potential.evaluate(structures).energies, abs=1e-4)


def test_molecules_share_a_pass(tiny_potential: Potential, make_system: Callable, monkeypatch) -> None:
    sizes: list[int] = []
    predictor = tiny_potential.predictor()

    def counted(graph: Graph, *options: bool) -> tuple[torch.Tensor, ...]:
        sizes.append(len(graph.cell))
        return predictor(graph, *options)

    counted.max_batch_atoms = predictor.max_batch_atoms
    monkeypatch.setattr(tiny_potential, "predictor", lambda _: counted)
    tiny_potential.evaluate([make_system("molecule") for _ in range(25)], max_atoms=90)
    assert sizes == [10, 10, 5]
    sizes.clear()
    tiny_potential.evaluate([make_system("molecule") for _ in range(230)])
    assert sizes == [222, 8]  # 2,000 atoms at most


def test_nothing_to_evaluate(tiny_potential: Potential) -> None:
    found = tiny_potential.evaluate([], stress=True)
    assert found.energies.shape == (0,)
    assert found.forces == []
    assert found.stress.shape == (0, 3, 3)


WRONG: dict[str, tuple[Atoms, str]] = {
    "empty": (Atoms(), "is empty"),
    "unknown": (Atoms("OCS", positions=np.eye(3)), r"atom 2 is S \(Z = 16\)"),
    "in one place": (Atoms("COH", positions=[[0, 0, 0], [0, 0, 1.2], [0, 0, 1.21]]), "atoms 1 and 2 are in one place"),
    "in one place, nine atoms": (
        Atoms("C9", positions=[*2.0 * np.arange(24).reshape(8, 3), [6.0, 8.0, 10.01]]),
        "atoms 1 and 8 are in one place",
    ),
    "on its image": (
        Atoms("COH", positions=[[0, 0, 0], [0, 1.2, 0.1], [5.0, 1.2, 0.1]], cell=np.eye(3) * 5, pbc=True),
        "atoms 1 and 2 are in one place",
    ),
    "nan": (Atoms("CO", positions=[[0, 0, 0], [0, np.nan, 1.2]]), "position of atom 1 .*not finite"),
    "infinite": (Atoms("CO", positions=[[0, 0, np.inf], [0, 1, 1]], cell=np.eye(3), pbc=True), "position of atom 0"),
    "no cell": (Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]], pbc=True), "pbc is True along a but cell vector a"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("where", [0, 2, 5])
def test_a_structure_that_cannot_be_is_named(what: str, where: int, tiny_potential: Potential, make_system) -> None:
    wrong, message = WRONG[what]
    structures = [make_system(name) for name in MIXED[:5]]
    structures.insert(where, wrong)
    with pytest.raises(ValueError, match=f"^structure {where}:? .*{message}"):
        tiny_potential.evaluate(structures)


def test_stress_of_a_molecule_among_crystals_is_refused(tiny_potential: Potential, make_system: Callable) -> None:
    with pytest.raises(ValueError, match=r"structure 1: stress needs a cell that is periodic in all directions"):
        tiny_potential.evaluate([make_system("crystal"), make_system("molecule")], stress=True)


def test_energy_that_is_not_finite_is_named(tiny_potential: Potential, make_system: Callable) -> None:
    tiny_potential.reference_energies[2] = torch.inf  # oxygen
    with pytest.raises(ValueError, match=r"structure 1: energy or forces are not finite"):
        tiny_potential.evaluate([Atoms("CH", positions=[[0, 0, 0], [0, 0, 1.1]]), make_system("molecule")])


def test_second_derivatives_for_training_reach_every_weight(make_potential: Make, make_system: Callable) -> None:
    potential = make_potential().requires_grad_(True)
    _, forces, _ = differentiate(potential, graph_of(make_system("crystal")), create_graph=True)
    forces.square().sum().backward()
    # The last biases shift the energy by a constant: forces do not know them.
    constants = {"network.readouts.0.bias", "network.readouts.1.bias", "network.layers.1.contract.bias"}
    without = {name for name, weight in potential.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert without <= constants
