"""Native training kernels against eager torch in float64: energies, forces, stress and gradients of a loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from ponita_ff.backends.native.training import Evaluation, NativeDifferentiation
from ponita_ff.energy.derivatives import differentiate
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

SMALL = {"cutoff": 3.5, "channels": 10, "num_layers": 2, "num_bessel": 4, "radial_hidden": 6, "radial_basis": 5}


def make_potential(zbl_cutoff: float | None = None, **settings: object) -> Potential:
    """A potential of H, C and O whose weights, biases too, are far from their first values."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = Ponita(PonitaConfig(**{**SMALL, **settings}), 3)
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Potential(network, [1, 6, 8], {1: -1.0, 6: -2.0, 8: -3.0}, scale=1.7, zbl_cutoff=zbl_cutoff).double()


def graph_of(structures: list[Atoms], cutoff: float) -> Graph:
    graphs = []
    for atoms in structures:
        cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
        graphs.append(build_graph(atoms.numbers, atoms.positions, cutoff, cell, atoms.pbc))
    return batch_graphs(graphs)


@pytest.fixture
def molecules() -> list[Atoms]:
    """Of several sizes, one of them larger than the cutoff, one a single atom."""
    generator = np.random.default_rng(1)
    structures = [molecule(name) for name in ("CH3CH2OH", "H2O", "C6H6")] + [Atoms("O")]
    for atoms in structures:
        atoms.positions += 0.1 * generator.normal(size=atoms.positions.shape)
    return structures


@pytest.fixture
def crystals() -> list[Atoms]:
    """So small that atoms see several images of each other and of themselves."""
    generator = np.random.default_rng(2)
    structures = [bulk("C"), bulk("C", cubic=True)]
    for atoms in structures:
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
        atoms.cell = atoms.cell.array + 0.05 * generator.normal(size=(3, 3))
    return structures


def random_loss(values: list[Tensor], seed: int = 5) -> Tensor:
    """A different factor for every number."""
    generator = torch.Generator().manual_seed(seed)
    return sum((value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum() for value in values)


def assert_equal_to_eager(potential: Potential, graph: Graph, stress: bool = False) -> None:
    """Values, and the gradient of a random linear loss with respect to every weight."""
    evaluation = NativeDifferentiation(potential)(graph, stress)
    given = (evaluation.energies, evaluation.forces, evaluation.stress)
    found_values = [value for value in given if value is not None]
    eager = [value for value in differentiate(potential, graph, stress=stress, create_graph=True) if value is not None]
    assert len(found_values) == len(eager) == 2 + stress
    for one, other in zip(found_values, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    names, parameters = zip(*potential.named_parameters(), strict=True)
    found = evaluation.gradients(random_loss(found_values))
    assert set(found) == set(names)
    expected = torch.autograd.grad(random_loss(eager), parameters, materialize_grads=True)
    for name, other in zip(names, expected, strict=True):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(found[name], other, rtol=1e-9, atol=1e-10 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_ori": 6, "l_max": 2},
        {"num_ori": 12, "l_max": 4, "channels": 32, "widening": 2},
        {"num_ori": 6, "l_max": 1, "num_layers": 1},
        {"num_ori": 6, "l_max": 8, "channels": 7, "widening": 3},
        {"num_ori": 0},
        {"num_ori": 20, "l_max": 0},
        {"num_ori": 6, "l_max": 2, "radial_basis": 40, "radial_hidden": 17, "num_bessel": 9},
    ],
    ids=str,
)
def test_same_as_eager(settings: dict[str, int], molecules: list[Atoms]) -> None:
    potential = make_potential(**settings)
    assert_equal_to_eager(potential, graph_of(molecules, potential.cutoff))


def test_stress_in_crystals(crystals: list[Atoms]) -> None:
    potential = make_potential(num_ori=6, l_max=3)
    graph = graph_of(crystals, potential.cutoff)
    assert (graph.neighbours == torch.arange(len(graph.neighbours))[:, None])[graph.used].any()
    assert_equal_to_eager(potential, graph, stress=True)


def test_zbl_is_added(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=6, l_max=2, zbl_cutoff=1.5)
    assert_equal_to_eager(potential, graph_of(molecules, potential.cutoff))


def test_no_pairs_at_all() -> None:
    potential = make_potential(num_ori=6, l_max=2)
    graph = graph_of([Atoms("O"), Atoms("CH", [(0, 0, 0), (9, 0, 0)])], potential.cutoff)
    found = NativeDifferentiation(potential)(graph, False)
    torch.testing.assert_close(found.energies, differentiate(potential, graph)[0])
    assert not found.forces.any()
    gradients = found.gradients(random_loss([found.energies, found.forces]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert not gradients["network.layers.0.convolution.radial.weight"].any()


def test_float32(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=12, l_max=4, channels=16).float()
    graph = graph_of(molecules, potential.cutoff)
    found = NativeDifferentiation(potential)(graph, False)
    exact_energies, exact_forces, _ = differentiate(potential.double(), graph)
    torch.testing.assert_close(found.energies.double(), exact_energies, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.forces, exact_forces, rtol=1e-4, atol=1e-4)


def test_same_bits_for_any_number_of_threads(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=12, l_max=4, channels=16).float()
    graph = graph_of(molecules, potential.cutoff)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found = NativeDifferentiation(potential)(graph, False)
            gradients = found.gradients(random_loss([found.energies, found.forces]))
            results.append([found.energies, found.forces, *gradients.values()])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_weights_are_read_afresh_and_memory_is_used_again(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=6, l_max=2)
    native = NativeDifferentiation(potential)
    for structures in (molecules, molecules[:2], molecules):
        graph = graph_of(structures, potential.cutoff)
        found = native(graph, False)
        torch.testing.assert_close(found.energies, differentiate(potential, graph)[0])
        gradients = found.gradients(random_loss([found.energies, found.forces]))
        with torch.no_grad():
            for name, parameter in potential.named_parameters():
                parameter.sub_(1e-3 * gradients[name])


def test_two_evaluations_at_once(molecules: list[Atoms]) -> None:
    """The gradients of the first are not touched by the second."""
    potential = make_potential(num_ori=6, l_max=2)
    native = NativeDifferentiation(potential)
    graphs = [graph_of(molecules[:1], potential.cutoff), graph_of(molecules[2:], potential.cutoff)]

    def gradients(found: Evaluation) -> dict[str, Tensor]:
        return found.gradients(random_loss([found.energies, found.forces]))

    alone = [gradients(native(graph, False)) for graph in graphs]
    for found, expected in zip([native(graph, False) for graph in graphs], alone, strict=True):
        for name, gradient in gradients(found).items():
            assert torch.equal(gradient, expected[name])


def test_gradients_are_written_where_they_are_wanted(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=6, l_max=2)
    native, graph = NativeDifferentiation(potential), graph_of(molecules, potential.cutoff)
    name = "network.layers.1.contract.weight"
    place = torch.full_like(potential.get_parameter(name), torch.nan)
    found = native(graph, False)
    gradients = found.gradients(random_loss([found.forces]), {name: place})
    assert gradients[name] is place
    again = native(graph, False)
    assert torch.equal(place, again.gradients(random_loss([again.forces]))[name])


def test_a_second_gradient_is_refused(molecules: list[Atoms]) -> None:
    potential = make_potential(num_ori=6, l_max=2)
    found = NativeDifferentiation(potential)(graph_of(molecules, potential.cutoff), False)
    found.gradients(found.energies.sum())
    with pytest.raises(RuntimeError, match="second time"):
        found.gradients(found.energies.sum())


def test_an_unknown_element_is_refused() -> None:
    potential = make_potential(num_ori=6, l_max=2)
    graph = graph_of([molecule("NH3")], potential.cutoff)
    with pytest.raises(ValueError, match=r"atom 0 is N .* knows H, C, O"):
        NativeDifferentiation(potential)(graph, False)


def test_what_it_cannot_do_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        published = PublishedPonita(PublishedConfig(num_ori=0, channels=4, num_layers=1, basis_dim=4), 3)
    with pytest.raises(KernelError, match="force-field form"):
        NativeDifferentiation(Potential(published, [1, 6, 8], {1: 0.0, 6: 0.0, 8: 0.0}))
    with pytest.raises(KernelError, match="float32 and float64"):
        NativeDifferentiation(make_potential(num_ori=6).half())
    with pytest.raises(KernelError, match="up to 64 layers, not 65"):
        NativeDifferentiation(make_potential(num_ori=6, num_layers=65, channels=2))
    turned = make_potential(num_ori=6)
    turned.average_rotations(2)
    with pytest.raises(KernelError, match="rotations"):
        NativeDifferentiation(turned)
