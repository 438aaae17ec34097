"""The graph from step to step: when its neighbour list is kept, when made again, and that no error leaves it torn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import COINCIDENT, INPUT_FIELDS, Graph, build_graph
from ponita_ff.structure.graph_cache import DEVICE_LIST_ATOMS, GraphCache
from ponita_ff.structure.neighbours import neighbour_list

CUTOFF, SKIN = 3.0, 0.6
CPU = torch.device("cpu")

#: Where lists are made: on the host, or where the positions are, as on a GPU.
every_place = pytest.mark.parametrize("place", ["host", "device"])


def any_species(numbers: NDArray[np.integer[Any]]) -> None:
    """Knows every element."""


def make_cache(place: str = "host", cutoff: float | None = CUTOFF, skin: float = SKIN) -> GraphCache:
    cache = GraphCache(cutoff, skin, CPU)
    if place == "device":
        cache.device_list_atoms = 1
    return cache


def bonds(graph: Graph, cutoff: float = CUTOFF) -> list[tuple[Any, ...]]:
    """Receiver, sender, their elements and the vector of every edge within the cutoff, in one order."""
    vectors = graph.positions[graph.neighbours] - graph.positions[:, None] + graph.offsets
    found = []
    for i, m in torch.nonzero(vectors.norm(dim=-1) < cutoff).tolist():
        j = int(graph.neighbours[i, m])
        elements = int(graph.atomic_numbers[i]), int(graph.atomic_numbers[j])
        found.append((i, j, *elements, *vectors[i, m].numpy().round(8).tolist()))
    return sorted(found)


def fresh(atoms: Atoms) -> Graph:
    """The graph as it is made from nothing."""
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
    return build_graph(atoms.numbers, atoms.positions, CUTOFF, cell, atoms.pbc)


def assert_right(graph: Graph, atoms: Atoms) -> None:
    """The graph is that of these atoms."""
    assert bonds(graph) == bonds(fresh(atoms))
    assert np.array_equal(graph.positions.numpy(), atoms.positions)
    assert np.array_equal(graph.atomic_numbers.numpy(), atoms.numbers)
    assert np.array_equal(graph.cell[0].numpy(), np.asarray(atoms.cell) if atoms.pbc.any() else np.zeros((3, 3)))
    assert graph.batch.tolist() == [0] * len(atoms)


@pytest.fixture
def crystal(make_system: Callable[[str], Atoms]) -> Atoms:
    return make_system("crystal")


# ------------------------------------------------------------------------------------- kept, and made again


@every_place
def test_the_list_is_kept_within_half_the_skin_and_made_again_beyond(place: str, crystal: Atoms) -> None:
    cache, checks = make_cache(place), []
    start = crystal.positions.copy()
    outcomes = []
    for move in (0.0, 0.1, 0.29, -0.29, 0.31, 0.5, 0.62):
        crystal.positions[1] = start[1] + [0.0, move, 0.0]
        graph = cache.update(crystal, lambda numbers: checks.append(numbers.copy()))
        assert_right(graph, crystal)
        outcomes.append(len(checks))
    # Species are checked with every new list: half the skin is counted from where the last list was made.
    assert outcomes == [1, 1, 1, 1, 2, 2, 3]
    assert all(np.array_equal(numbers, crystal.numbers) for numbers in checks)
    assert cache.rebuilds == (3 if place == "host" else 0)


@every_place
def test_a_kept_list_means_the_same_graph_with_new_positions(place: str, crystal: Atoms) -> None:
    cache = make_cache(place)
    graph = cache.update(crystal, any_species)
    table = {name: graph[name] for name in INPUT_FIELDS if name != "positions"}
    crystal.positions += 0.05
    again = cache.update(crystal, any_species)
    assert all(again[name] is value for name, value in table.items())
    assert np.array_equal(again.positions.numpy(), crystal.positions)


@every_place
def test_positions_are_copied(place: str, crystal: Atoms) -> None:
    """ASE's integrators move atoms in place."""
    graph = make_cache(place).update(crystal, any_species)
    before = graph.positions.clone()
    crystal.positions += 0.1
    assert torch.equal(graph.positions, before)


@every_place
def test_without_a_skin_every_list_is_new(place: str, crystal: Atoms) -> None:
    cache, checks = make_cache(place, skin=0.0), []
    for _ in range(3):
        crystal.positions[0, 0] += 1e-9  # the device keeps the list of atoms that have not moved at all
        assert_right(cache.update(crystal, lambda numbers: checks.append(len(numbers))), crystal)
    assert checks == [4, 4, 4]


CHANGES: dict[str, Callable[[Atoms], Atoms | None]] = {
    "one atom fewer": lambda atoms: atoms.__delitem__(2),
    "one atom more": lambda atoms: atoms + Atoms("H", positions=[[2.2, 2.1, 0.3]]),
    "another number and back": lambda atoms: atoms.repeat((2, 1, 1)),
    "cell": lambda atoms: atoms.set_cell(np.asarray(atoms.cell) * 1.001),
    "cell and positions": lambda atoms: atoms.set_cell(np.asarray(atoms.cell) * 0.98, scale_atoms=True),
    "pbc": lambda atoms: atoms.set_pbc((True, False, True)),
    "no pbc": lambda atoms: atoms.set_pbc(False),
    "numbers": lambda atoms: atoms.numbers.__setitem__(slice(None), [8, 1, 6, 1]),
    "wrapped": lambda atoms: atoms.wrap(),
}


@every_place
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_makes_a_new_list(change: str, place: str, crystal: Atoms) -> None:
    cache, checks = make_cache(place), []
    original = crystal.copy()

    def update(atoms: Atoms) -> None:
        assert_right(cache.update(atoms, lambda numbers: checks.append(numbers.copy())), atoms)

    update(crystal)
    crystal = CHANGES[change](crystal) or crystal
    for atoms in (crystal, crystal, original, original):
        update(atoms)
    assert len(checks) == 3
    assert np.array_equal(checks[1], crystal.numbers)


def test_on_a_gpu_large_systems_make_their_list_there() -> None:
    assert GraphCache(CUTOFF, SKIN, CPU).device_list_atoms == math.inf
    assert GraphCache(CUTOFF, SKIN, torch.device("cuda")).device_list_atoms == DEVICE_LIST_ATOMS


def test_systems_on_both_sides_of_the_devices_limit_in_turn(crystal: Atoms) -> None:
    cache, large = make_cache(), crystal.repeat((2, 1, 1))
    cache.device_list_atoms = 6
    for shift in (0.0, 0.2, 0.4):
        for atoms in (crystal, large, large, crystal):
            atoms.positions[0, 2] += shift
            assert_right(cache.update(atoms, any_species), atoms)


def test_no_atoms_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no atoms to calculate: the structure is empty"):
        make_cache().update(Atoms(), any_species)


# ------------------------------------------------------------------------------------ atoms in one place


@every_place
@pytest.mark.parametrize(("apart", "may"), [(0.04, True), (0.6, True), (COINCIDENT + SKIN + 0.01, False), (2.0, False)])
def test_atoms_may_coincide_where_the_skin_lets_them_meet(apart: float, may: bool, place: str) -> None:
    cache = make_cache(place)
    assert cache.atoms_may_coincide  # nothing is known yet
    cache.update(Atoms("CO", positions=[[0, 0, 0], [0, 0, apart]]), any_species)
    assert cache.atoms_may_coincide == may


@every_place
def test_atoms_may_coincide_is_judged_at_every_new_list(place: str) -> None:
    cache, answers = make_cache(place), []
    for apart in (2.0, 1.8, 1.2, 0.62, 1.1, 2.0):
        cache.update(Atoms("CO", positions=[[0, 0, 0], [0, 0, apart]]), any_species)
        answers.append(cache.atoms_may_coincide)
    # Kept at 1.8 Å, where one atom has moved by less than half of the skin; made again at all other distances.
    assert answers == [False, False, False, True, False, False]


def test_with_all_pairs_atoms_may_always_coincide() -> None:
    """The list is made once for all: no later list would notice."""
    cache = make_cache(cutoff=None)
    cache.update(Atoms("CO", positions=[[0, 0, 0], [0, 0, 5.0]]), any_species)
    assert cache.atoms_may_coincide


# ---------------------------------------------------------------------------------------------- after errors


@pytest.fixture(params=[ValueError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def error(request: pytest.FixtureRequest) -> BaseException:
    return request.param


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


#: What comes after a structure with whose graph an error interfered; each keeps something of the list from before.
AFTER: dict[str, Callable[[Atoms], Atoms | None]] = {
    "the same": lambda atoms: None,
    "moved a little": lambda atoms: atoms.set_positions(atoms.positions + np.array([0.05, -0.02, 0.03])),
    "moved far": lambda atoms: atoms.rattle(0.5, seed=3),
    **CHANGES,
}


@every_place
@pytest.mark.parametrize("after", AFTER)
def test_an_error_from_the_check_of_species_leaves_nothing_behind(
    after: str, place: str, error: BaseException, crystal: Atoms
) -> None:
    """It comes when the list is new and the graph not yet kept."""
    cache, original = make_cache(place), crystal.copy()
    cache.update(crystal, any_species)
    crystal.rattle(0.4, seed=1)
    with pytest.raises(type(error)):
        cache.update(crystal, raising(error))
    assert cache.rebuilds == 0
    assert cache.atoms_may_coincide
    for atoms in (AFTER[after](crystal) or crystal, original):
        assert_right(cache.update(atoms, any_species), atoms)


@pytest.mark.parametrize("where", ["build_graph", "squared_distances", "SkinCache.update", "TableCache.update"])
def test_an_error_anywhere_on_the_way_leaves_nothing_behind(
    where: str, error: BaseException, crystal: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache("device" if where == "TableCache.update" else "host")
    cache.update(crystal, any_species)
    crystal.rattle(0.4, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(f"ponita_ff.structure.graph_cache.{where}", raising(error))
        with pytest.raises(type(error)):
            cache.update(crystal, any_species)
    # Back within the skin of the first list: the second, half made, must not be taken for this one.
    assert_right(cache.update(crystal, any_species), crystal)


def test_an_error_at_the_very_first_graph(error: BaseException, crystal: Atoms) -> None:
    cache = make_cache()
    with pytest.raises(type(error)):
        cache.update(crystal, raising(error))
    assert_right(cache.update(crystal, any_species), crystal)


def test_positions_that_are_refused_do_not_stay(crystal: Atoms) -> None:
    cache = make_cache()
    cache.update(crystal, any_species)
    good = crystal.positions.copy()
    crystal.positions[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"position of atom 0 .*not finite"):
        cache.update(crystal, any_species)
    crystal.positions = good + 0.01
    assert_right(cache.update(crystal, any_species), crystal)


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("check_species", "host"),
        ("check_species", "device"),
        ("build_graph", "host"),
        ("squared_distances", "host"),
        ("squared_distances", "device"),
    ],
)
@pytest.mark.parametrize("after", ["the same", "moved a little", "numbers", "one atom fewer", "cell"])
def test_a_calculator_goes_on_after_an_interruption(
    after: str,
    where: str,
    place: str,
    error: BaseException,
    crystal: Atoms,
    make_potential: Callable[..., Potential],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a notebook: the run is stopped between list and graph, the structure changed, the run started again."""
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6, cutoff=CUTOFF)
    calculator = PonitaCalculator(potential, skin=SKIN)
    if place == "device":
        calculator._graphs.device_list_atoms = 1
    before = calculator.get_property("energy", crystal)
    moved = crystal.copy()
    moved.rattle(0.4, seed=1)
    with monkeypatch.context() as patch:
        if where == "check_species":
            patch.setattr(calculator.potential, "check_species", raising(error))
        else:
            patch.setattr(f"ponita_ff.structure.graph_cache.{where}", raising(error))
        with pytest.raises(type(error)):
            calculator.get_property("energy", moved)
    moved = AFTER[after](moved) or moved
    for atoms in (moved, crystal):
        anew = PonitaCalculator(potential, skin=0.0)
        energy, forces = anew.get_property("energy", atoms), anew.get_forces(atoms)
        assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-9)
        assert calculator.get_forces(atoms) == pytest.approx(forces, abs=1e-9)
    assert abs(calculator.get_property("energy", moved) - before) > 1e-6


def test_the_longer_list_of_a_kept_graph_is_that_of_the_cutoff_and_the_skin(crystal: Atoms) -> None:
    graph = make_cache().update(crystal, any_species)
    cell = np.asarray(crystal.cell)
    assert int(graph.used.sum()) == len(neighbour_list(crystal.positions, CUTOFF + SKIN, cell, True).receivers)
