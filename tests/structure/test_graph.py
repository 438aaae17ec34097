"""The edge table, batching, and the gather whose adjoint is a gather."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms

from ponita_ff.structure.graph import (
    INPUT_FIELDS,
    Graph,
    batch_graphs,
    build_graph,
    edge_vectors,
    gather_neighbours,
    graphs_of,
    sum_over_structures,
)
from ponita_ff.structure.neighbours import neighbour_list


def graph_of(atoms: Atoms, cutoff: float = 4.0) -> Graph:
    """Graph of some atoms."""
    return build_graph(atoms.numbers, atoms.positions, cutoff, np.asarray(atoms.cell), atoms.pbc)


@pytest.fixture
def irregular() -> Graph:
    """A graph whose atoms have different numbers of neighbours, one of them none at all."""
    generator = np.random.default_rng(3)
    cell = np.array([[6.0, 0.2, 0.1], [0.5, 5.0, 0.3], [0.2, 0.4, 30.0]])
    positions = np.concatenate((generator.uniform(0, 1, (5, 3)) @ np.diag([6, 5, 4.0]), [[1.0, 1.0, 15.0]]))
    return build_graph(np.array([1, 6, 8, 1, 6, 1]), positions, 2.5, cell, np.array([True, True, False]))


def test_shapes_and_dtypes_are_those_of_the_table(irregular: Graph) -> None:
    number, width = irregular.neighbours.shape
    assert number == irregular.num_nodes == 6
    shapes = {"positions": (6, 3), "offsets": (6, width, 3), "reverse": (6, width), "used": (6, width)}
    shapes |= {"neighbours": (6, width), "atomic_numbers": (6,), "batch": (6,), "cell": (1, 3, 3)}
    assert set(shapes) == set(INPUT_FIELDS)
    for name, shape in shapes.items():
        assert irregular[name].shape == shape, name
    floats = {"positions", "offsets", "cell"}
    for name in INPUT_FIELDS:
        expected = torch.float64 if name in floats else torch.bool if name == "used" else torch.int64
        assert irregular[name].dtype == expected, name


def test_fields_are_attributes_and_items(irregular: Graph) -> None:
    irregular["energy"] = torch.ones(1)
    irregular.positions = irregular.positions + 1
    assert "energy" in irregular and "forces" not in irregular
    assert irregular["positions"] is irregular.positions and irregular.energy is irregular["energy"]
    assert irregular.keys() == [*Graph.__annotations__][:9]
    copy = irregular.clone()
    copy.positions += 1
    assert not torch.equal(copy.positions, irregular.positions)
    assert repr(copy).startswith("Graph(atomic_numbers=[6], positions=[6, 3]")
    with pytest.raises(AttributeError, match="stress"):
        copy.stress  # noqa: B018


def test_data_of_torch_geometric_has_the_used_edges(system: Atoms) -> None:
    graph = graph_of(system)
    data = graph.to_data()
    edges = neighbour_list(system.positions, 4.0, np.asarray(system.cell), system.pbc)
    assert data.validate() and data.num_nodes == len(system)
    assert np.array_equal(data.edge_index.numpy(), [edges.senders, edges.receivers])
    vectors = edges.vectors(system.positions, np.asarray(system.cell))
    assert np.abs(data.edge_vectors.numpy() - vectors).max(initial=0) < 1e-12
    assert torch.equal(data.positions, graph.positions) and "neighbours" not in data


def test_used_slots_hold_exactly_the_neighbour_list(system: Atoms) -> None:
    graph = graph_of(system)
    edges = neighbour_list(system.positions, 4.0, np.asarray(system.cell), system.pbc)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    receivers = torch.arange(len(system)).unsqueeze(1).expand_as(graph.neighbours)
    assert np.array_equal(receivers[graph.used].numpy(), edges.receivers)
    assert np.array_equal(graph.neighbours[graph.used].numpy(), edges.senders)
    expected = edges.vectors(system.positions, np.asarray(system.cell))
    assert np.abs(vectors[graph.used].numpy() - expected).max() < 1e-13


def test_unused_slots_are_the_atom_itself_beyond_any_cutoff(irregular: Graph) -> None:
    vectors = edge_vectors(irregular.positions, irregular.offsets, irregular.neighbours, irregular.reverse)
    receivers = torch.arange(6).unsqueeze(1).expand_as(irregular.neighbours)
    unused = ~irregular.used
    assert unused[5].all()
    assert torch.equal(irregular.neighbours[unused], receivers[unused])
    assert float(vectors[unused].norm(dim=-1).min()) == pytest.approx(1000.0)


def test_reverse_of_an_edge_is_the_edge_turned_round(system: Atoms) -> None:
    graph = graph_of(system)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    turned = vectors[graph.neighbours, graph.reverse]
    assert float((vectors + turned)[graph.used].abs().max()) < 1e-12
    slots = torch.arange(graph.neighbours.shape[1]).expand_as(graph.reverse)
    assert torch.equal(graph.reverse[graph.neighbours, graph.reverse], slots)


def test_a_longer_list_gives_a_wider_table_of_the_same_edges_within_the_cutoff(make_system: Callable) -> None:
    atoms = make_system("crystal")
    longer = neighbour_list(atoms.positions, 4.5, np.asarray(atoms.cell), atoms.pbc)
    wide = build_graph(atoms.numbers, atoms.positions, 4.0, np.asarray(atoms.cell), atoms.pbc, longer)
    exact = graph_of(atoms)
    assert wide.neighbours.shape[1] > exact.neighbours.shape[1]
    lengths = edge_vectors(wide.positions, wide.offsets, wide.neighbours, wide.reverse).norm(dim=-1)
    assert int((lengths < 4.0).sum()) == int(exact.used.sum())


def test_single_atom_has_one_unused_slot() -> None:
    graph = graph_of(Atoms("H"))
    assert graph.neighbours.tolist() == [[0]]
    assert not graph.used.any()


def test_the_graph_owns_its_arrays(make_system: Callable) -> None:
    atoms = make_system("crystal")
    graph = graph_of(atoms)
    before = graph.positions.clone()
    atoms.positions += 1.0
    atoms.cell[:] += 1.0
    assert torch.equal(graph.positions, before)
    assert not np.array_equal(graph.cell[0].numpy(), atoms.cell)


def test_batch_holds_each_structure_with_its_own_neighbours(make_system: Callable) -> None:
    systems = [make_system(name) for name in ("crystal", "molecule", "one atom in a tiny cell")]
    graphs = [graph_of(atoms) for atoms in systems]
    whole = batch_graphs(graphs)
    assert whole.cell.shape == (3, 3, 3)
    assert whole.batch.tolist() == [i for i, atoms in enumerate(systems) for _ in atoms]
    vectors = edge_vectors(whole.positions, whole.offsets, whole.neighbours, whole.reverse)
    start = 0
    for graph in graphs:
        rows = slice(start, start + graph.num_nodes)
        width = graph.neighbours.shape[1]
        alone = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
        assert torch.equal(whole.neighbours[rows, :width] - start, graph.neighbours)
        assert torch.equal(vectors[rows, :width], alone)
        assert torch.equal(whole.used[rows, :width], graph.used)
        assert not whole.used[rows, width:].any()
        start += graph.num_nodes


def test_batching_leaves_its_input_alone(make_system: Callable) -> None:
    narrow, wide = graph_of(make_system("molecule")), graph_of(make_system("one atom in a tiny cell"))
    before = {name: narrow[name].clone() for name in INPUT_FIELDS}
    batch_graphs([narrow, wide])
    assert all(torch.equal(narrow[name], value) for name, value in before.items())


@pytest.mark.parametrize("size", [1, 2, 9, 32])
def test_stacked_molecules_are_those_built_one_by_one(size: int) -> None:
    generator = np.random.default_rng(size)
    molecules = [
        Atoms(generator.choice([1, 6, 8], size), positions=generator.normal(scale=3.0, size=(size, 3)))
        for _ in range(3)
    ]
    ((indices, stacked),) = graphs_of(molecules, 4.0, max_atoms=1000)
    slow = batch_graphs([build_graph(atoms.numbers, atoms.positions, None) for atoms in molecules])
    assert indices == [0, 1, 2]
    for name in INPUT_FIELDS:
        assert stacked[name].dtype == slow[name].dtype, name
        assert torch.equal(stacked[name], slow[name]), name


def test_batches_hold_every_structure_once_and_no_more_atoms_than_allowed(make_system: Callable) -> None:
    water, ring = Atoms("OHH", positions=np.eye(3)), Atoms("C40", positions=3.0 * np.arange(120).reshape(40, 3))
    structures = [water, make_system("crystal"), make_system("molecule"), ring, water, make_system("crystal"), water]
    for max_atoms in (1, 7, 8, 1000):
        seen: list[int] = []
        for indices, graph in graphs_of(structures, 4.0, max_atoms):
            seen += indices
            assert graph.num_nodes == sum(len(structures[index]) for index in indices)
            assert graph.num_nodes <= max_atoms or len(indices) == 1
            expected = np.concatenate([structures[index].positions for index in indices])
            assert np.array_equal(graph.positions.numpy(), expected)
            counts = [len(structures[index]) for index in indices]
            assert graph.batch.tolist() == np.repeat(np.arange(len(indices)), counts).tolist()
            assert graph.cell.shape == (len(indices), 3, 3)
        assert sorted(seen) == list(range(len(structures)))
    assert sum(1 for _ in graphs_of(structures, 4.0, 8)) < len(structures)  # water with water, crystal with crystal


def test_gather_is_indexing(irregular: Graph) -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 2, 3)))
    assert torch.equal(gather_neighbours(values, irregular.neighbours, irregular.reverse), values[irregular.neighbours])


@pytest.mark.parametrize("widen", [False, True])
def test_gather_gradient_and_second_gradient(irregular: Graph, widen: bool, make_system: Callable) -> None:
    graph = batch_graphs([irregular, graph_of(make_system("two atoms in a tiny cell"))]) if widen else irregular
    generator = np.random.default_rng(2)
    values = torch.from_numpy(generator.normal(size=(graph.num_nodes, 2))).requires_grad_(True)
    weights = torch.from_numpy(generator.normal(size=graph.neighbours.shape))

    def function(x: torch.Tensor) -> torch.Tensor:
        # Not linear, so that the second gradient is not zero; summed, so that the check is quick.
        return (gather_neighbours(x, graph.neighbours, graph.reverse).pow(3) * weights.unsqueeze(-1)).sum(1)

    with torch.random.fork_rng(devices=[]):  # the checks draw random numbers
        assert torch.autograd.gradcheck(function, values)
        assert torch.autograd.gradgradcheck(function, values)


def test_gather_gradient_is_that_of_plain_indexing(irregular: Graph) -> None:
    values = torch.from_numpy(np.random.default_rng(4).normal(size=(6, 2))).requires_grad_(True)
    weights = torch.from_numpy(np.random.default_rng(5).normal(size=(*irregular.neighbours.shape, 2)))
    ours = torch.autograd.grad(
        (gather_neighbours(values, irregular.neighbours, irregular.reverse) * weights).sum(), values
    )
    plain = torch.autograd.grad((values[irregular.neighbours] * weights).sum(), values)
    assert torch.allclose(ours[0], plain[0], rtol=0, atol=1e-14)


def test_pbc_without_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="cell"):
        build_graph(np.array([1]), np.zeros((1, 3)), 4.0, None, True)


@pytest.mark.parametrize("number", [1, 3, 64, 65, 100])
def test_sum_over_structures(number: int) -> None:
    generator = np.random.default_rng(number)
    batch = np.sort(np.concatenate((np.arange(number), generator.integers(0, number, 50))))
    values = generator.normal(size=len(batch))
    expected = np.bincount(batch, values, minlength=number)
    result = sum_over_structures(torch.from_numpy(values), torch.from_numpy(batch), number)
    assert result.numpy() == pytest.approx(expected, abs=1e-13)
