"""Predictions for many structures at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

from ponita_ff import PonitaCalculator
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph

Make = Callable[..., Potential]


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


def test_a_single_structure_is_no_sequence(tiny_potential: Potential, make_system: Callable) -> None:
    with pytest.raises(TypeError, match="put a single one into a list"):
        tiny_potential.evaluate(make_system("molecule"))


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
