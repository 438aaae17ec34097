"""The C++ engine against the network as torch runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ponita_ff.backends.native.engine import NativeNetwork, radial_table
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph, edge_vectors

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

#: Every path through the kernels: channels that fill vectors and that do not, all degrees with code of their own and
#: those without, one orientation, one layer; and through 1, 4 and 9 harmonics.
SHAPES = [
    {"num_ori": 20, "channels": 32, "num_layers": 3, "l_max": 4},
    {"num_ori": 12, "channels": 13, "num_layers": 2, "l_max": 2, "widening": 3},
    {"num_ori": 6, "channels": 1, "num_layers": 1, "l_max": 1, "widening": 1},
    {"num_ori": 8, "channels": 17, "num_layers": 2, "l_max": 0},
    {"num_ori": 12, "channels": 16, "num_layers": 2, "l_max": 3},
    {"num_ori": 12, "channels": 16, "num_layers": 2, "l_max": 5},
    {"num_ori": 12, "channels": 24, "num_layers": 2, "l_max": 6},
    {"num_ori": 32, "channels": 8, "num_layers": 2, "l_max": 8},
    {"num_ori": 32, "channels": 13, "num_layers": 3, "l_max": 2, "widening": 3},
    {"num_ori": 12, "channels": 16, "num_layers": 1, "l_max": 1},
    {"num_ori": 0, "channels": 20, "num_layers": 4},
]


@pytest.fixture
def network(make_potential: Callable[..., Potential]) -> Ponita:
    """12 orientations, 16 channels, 2 layers, cutoff 4 Å, float64."""
    return make_potential().network


@pytest.fixture(params=[{}, {"num_ori": 20, "l_max": 2}], ids=["without harmonics", "through harmonics"])
def either(request: pytest.FixtureRequest, make_potential: Callable[..., Potential]) -> Ponita:
    """The same, and one whose fibre convolution goes through harmonics."""
    return make_potential(**request.param).network


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def graph_of(atoms: Atoms, cutoff: float = 4.3) -> Graph:
    """A graph with edges beyond the network's cutoff too, as with a skin."""
    cell = np.array(atoms.cell) if atoms.pbc.any() else None
    return build_graph(atoms.numbers, atoms.positions, cutoff, cell, atoms.pbc)


def species_of(graph: Graph) -> Tensor:
    """Index among H, C, O."""
    return torch.searchsorted(torch.tensor([1, 6, 8]), graph.atomic_numbers)


def by_torch(network: Ponita, graph: Graph, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Atomic energies, gradient and strain derivative by autograd."""
    positions = graph.positions.clone().requires_grad_(True)
    strain = torch.zeros(graph.cell.shape[0], 3, 3, dtype=torch.float64, requires_grad=True)
    symmetric = (0.5 * (strain + strain.transpose(1, 2)))[graph.batch]
    vectors = edge_vectors(positions, graph.offsets, graph.neighbours, graph.reverse)
    vectors = vectors + vectors @ symmetric
    if rotation is not None:
        vectors = vectors @ rotation
    weight = network.embedding.weight
    energies = network(graph, species_of(graph), vectors.to(weight.dtype)).double()
    return energies.detach(), *torch.autograd.grad(energies.sum(), (positions, strain))


def box(number: int, seed: int = 0) -> Atoms:
    """A dense periodic box of H, C and O."""
    rng = np.random.default_rng(seed)
    cell = np.diag([(number / 0.1) ** (1 / 3)] * 3) + 0.4 * rng.standard_normal((3, 3))
    atoms = Atoms(rng.choice([1, 6, 8], number), cell=cell, pbc=True)
    side = int(np.ceil(number ** (1 / 3)))
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:number] / side
    atoms.set_scaled_positions(lattice)
    atoms.rattle(0.3, seed=seed)
    return atoms


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_where_the_tables_are_fine(shape: dict[str, int], make_potential: Callable, system: Atoms) -> None:
    network = make_potential(**shape).network
    graph = graph_of(system)
    expected = by_torch(network, graph)
    found = NativeNetwork(network, error=1e-8)(graph, species_of(graph))
    for value, reference in zip(found, expected, strict=True):
        assert value == pytest.approx(reference, abs=3e-8 * max(1.0, float(reference.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[-3:], ids=str)
def test_stated_errors(shape: dict[str, int], dtype: torch.dtype, make_potential: Callable, system: Atoms) -> None:
    """Energies to 1e-6 of what the atoms contribute, forces to 1e-5, against float64 without tables."""
    potential = make_potential(**shape)
    graph = graph_of(system)
    energies, gradient, strain = by_torch(potential.network, graph)
    found = NativeNetwork(potential.network.to(dtype))(graph, species_of(graph))
    assert float((found[0] - energies).abs().max()) < 1e-6 * max(1.0, float(energies.abs().max()))
    assert float((found[1] - gradient).abs().max()) < 1e-5
    assert float((found[2] - strain).abs().max()) < 1e-5 * max(1.0, float(strain.abs().max()))


def test_batch_of_different_structures(either: Ponita, make_system: Callable) -> None:
    names = ["crystal", "one atom in a tiny cell", "molecule", "two atoms in a tiny cell"]
    graphs = [graph_of(make_system(name)) for name in names]
    engine = NativeNetwork(either)
    whole = batch_graphs(graphs)
    energies, gradient, virial = engine(whole, species_of(whole))
    alone = [engine(graph, species_of(graph)) for graph in graphs]
    assert torch.equal(energies, torch.cat([value[0] for value in alone]))
    assert torch.equal(gradient, torch.cat([value[1] for value in alone]))
    assert torch.equal(virial, torch.cat([value[2] for value in alone]))


def test_lonely_atoms(either: Ponita) -> None:
    graph = graph_of(Atoms("HCO", positions=[[0, 0, 0], [9, 0, 0], [0, 9, 0]]))
    energies, gradient, virial = NativeNetwork(either)(graph, species_of(graph))
    assert energies == pytest.approx(by_torch(either, graph)[0], rel=1e-12)
    assert not gradient.any()
    assert not virial.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_with_any_number_of_threads(
    dtype: torch.dtype, either: Ponita, threads: Callable[[int], None]
) -> None:
    engine = NativeNetwork(either.to(dtype))
    graph = graph_of(box(150))
    results = []
    for number in (1, 2, 3, 7):
        threads(number)
        results.append(engine(graph, species_of(graph)))
    reference = by_torch(either, graph)[1]
    assert float((results[0][1] - reference).abs().max()) < 1e-5
    for result in results[1:]:
        assert all(torch.equal(value, first) for value, first in zip(result, results[0], strict=True))


def test_systems_in_turn_share_no_state(network: Ponita, make_system: Callable) -> None:
    engine = NativeNetwork(network)
    small, large = graph_of(make_system("molecule")), graph_of(box(80))
    first = engine(small, species_of(small))
    engine(large, species_of(large))
    again = engine(small, species_of(small))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_turned_copies(network: Ponita, make_system: Callable) -> None:
    """The mean over rotations, of a batch of two structures, whatever the number of threads."""
    generator = torch.Generator().manual_seed(3)
    rotations = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64, generator=generator))[0]
    graph = batch_graphs([graph_of(make_system(name)) for name in ("crystal", "molecule")])
    single = [by_torch(network, graph, rotation) for rotation in rotations]
    for number in (1, 3):
        found = NativeNetwork(network)(graph, species_of(graph), rotations[:number])
        for index, value in enumerate(found):
            expected = torch.stack([each[index] for each in single[:number]]).mean(0)
            assert value == pytest.approx(expected, abs=1e-5)
            assert float((expected - by_torch(network, graph)[index]).abs().max()) > 1e-3


def test_gradient_is_that_of_the_energy(either: Ponita, make_system: Callable) -> None:
    """Of the tabulated energy itself, whatever the tables' error: dynamics conserve it."""
    engine = NativeNetwork(either, error=1e-3)
    graph = graph_of(make_system("crystal"))
    species = species_of(graph)
    gradient = engine(graph, species)[1]
    step = 1e-5
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        ends = []
        for sign in (1, -1):
            moved = graph.clone()
            moved.positions = graph.positions.clone()
            moved.positions[atom, axis] += sign * step
            ends.append(float(engine(moved, species)[0].sum()))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[atom, axis]), abs=1e-7)


def test_any_layout_of_the_inputs(network: Ponita, make_system: Callable) -> None:
    graph = graph_of(make_system("crystal"))
    engine, species = NativeNetwork(network), species_of(graph)
    expected = engine(graph, species)
    for name in ("positions", "offsets", "neighbours", "reverse"):
        value = graph[name]
        graph[name] = value.movedim(0, -1).contiguous().movedim(-1, 0)
        assert not graph[name].is_contiguous()
    found = engine(graph, species.to(torch.int32))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_snapshot_of_the_weights(network: Ponita, make_system: Callable) -> None:
    graph = graph_of(make_system("molecule"))
    engine = NativeNetwork(network)
    before = engine(graph, species_of(graph))[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert torch.equal(engine(graph, species_of(graph))[0], before)
    assert not torch.allclose(NativeNetwork(network)(graph, species_of(graph))[0], before)


def test_another_grid(network: Ponita, make_system: Callable) -> None:
    network.set_grid(32)
    graph = graph_of(make_system("molecule"))
    found = NativeNetwork(network)(graph, species_of(graph))
    assert found[1] == pytest.approx(by_torch(network, graph)[1], abs=1e-5)


def test_networks_that_it_cannot_run(network: Ponita) -> None:
    with pytest.raises(KernelError, match="force-field form"), torch.random.fork_rng(devices=[]):
        NativeNetwork(PublishedPonita(PublishedConfig(num_ori=0, channels=4, num_layers=1, basis_dim=4), 3))
    with pytest.raises(KernelError, match="up to 64 layers, not 65"), torch.random.fork_rng(devices=[]):
        NativeNetwork(Ponita(PonitaConfig(num_ori=6, channels=2, num_layers=65), 3))
    with pytest.raises(KernelError, match="bfloat16"):
        NativeNetwork(network.to(torch.bfloat16))


@pytest.mark.parametrize("error", [1e-3, 1e-6, 1e-8])
def test_table_is_as_exact_as_asked(network: Ponita, error: float) -> None:
    cutoff, basis, weights = 4.0, network.radial_basis, network.layers[0].convolution.radial.weight
    table = radial_table(basis, weights, cutoff, error)
    points = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * cutoff
    found, found_derivatives = interpolated(table, points, cutoff)
    exact, derivatives = torch.func.jvp(lambda r: basis(r) @ weights.T, (points,), (torch.ones_like(points),))
    assert float((found - exact).abs().max() / exact.abs().max()) < 1.5 * error
    assert float((found_derivatives - derivatives).abs().max() / derivatives.abs().max()) < 1.5 * error
    # And no finer than needed.
    assert len(table) == 33 or len(radial_table(basis, weights, cutoff, 64 * error)) < len(table)


def interpolated(table: Tensor, points: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """The polynomial of degree 5 that has the table's values and derivatives at both ends of each point's interval."""
    spacing = cutoff / (len(table) - 1)
    cell = (points / spacing).floor().long()
    t = points / spacing - cell
    powers = torch.arange(6, dtype=torch.float64)
    ends = []
    for end in (0.0, 1.0):
        x = torch.tensor(end, dtype=torch.float64)
        curve = powers * (powers - 1) * x ** (powers - 2).clamp(min=0)
        ends += [x**powers, powers * x ** (powers - 1).clamp(min=0), curve]
    entries = torch.cat((table[cell], table[cell + 1]), dim=1)
    coefficients = torch.linalg.solve(torch.stack(ends), entries)
    values = torch.einsum("np,npf->nf", t.unsqueeze(1) ** powers, coefficients)
    derivatives = torch.einsum("np,npf->nf", powers * t.unsqueeze(1) ** (powers - 1).clamp(min=0), coefficients)
    return values, derivatives / spacing


def test_rough_functions_have_no_table() -> None:
    with pytest.raises(KernelError, match="too rough"):
        radial_table(lambda r: torch.sin(1e5 * r).unsqueeze(-1), torch.ones(1, 1, dtype=torch.float64), 5.0, 1e-6)
