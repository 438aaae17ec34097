"""What a potential was trained on: it knows its own molecule, however it is turned, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.structure.graph import Graph, graphs_of

SPECIES, CUTOFF = (1, 6, 8), 5.0


def rattled(name: str, number: int, seed: int = 0) -> list[Atoms]:
    """Thermal-like displacements of a molecule."""
    rng = np.random.default_rng(seed)
    frames = [molecule(name) for _ in range(number)]
    for atoms in frames:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return frames


def graph_of(*structures: Atoms) -> Graph:
    """All in one batch."""
    ((_, graph),) = graphs_of(structures, CUTOFF, 10_000)
    return graph


@pytest.fixture(scope="module")
def domain() -> TrainingDomain:
    """Of 100 frames of ethanol."""
    frames = rattled("CH3CH2OH", 100)
    return TrainingDomain.from_graphs([graph_of(*frames[:50]), graph_of(*frames[50:])], SPECIES, CUTOFF)


def test_new_frames_of_the_molecule_are_inside(domain: TrainingDomain) -> None:
    frames = rattled("CH3CH2OH", 100, seed=1)
    distances = domain.distances(graph_of(*frames))
    assert distances.shape == (100,)
    assert (distances <= 1).mean() >= 0.99
    assert domain.familiarity(graph_of(molecule("CH3CH2OH"))).reason is None


@pytest.mark.parametrize("name", ["H2O", "CH3OH", "CH3COCH3", "C6H6", "HCOOH", "CH3OCH3"])
def test_other_molecules_are_outside(domain: TrainingDomain, name: str) -> None:
    found = domain.familiarity(graph_of(molecule(name)))
    assert found.distance > 1.5
    assert found.reason is not None
    assert domain.distances(graph_of(molecule(name))) == pytest.approx([found.distance])


def test_the_reason_names_atom_element_and_neighbours(domain: TrainingDomain) -> None:
    reason = domain.familiarity(graph_of(molecule("H2O"))).reason
    assert reason is not None
    assert "the surroundings of atom 0 (O)" in reason
    assert "2 neighbours within 5 Å, and there it has 8" in reason


def test_atoms_too_close_are_named_with_their_distance(domain: TrainingDomain) -> None:
    atoms = molecule("CH3CH2OH")
    hydroxyl = int(np.flatnonzero(atoms.symbols == "O")[0])
    hydrogen = min(np.flatnonzero(atoms.symbols == "H"), key=lambda h: atoms.get_distance(hydroxyl, h))
    atoms.set_distance(hydroxyl, int(hydrogen), 0.4, fix=0)
    reason = domain.familiarity(graph_of(atoms)).reason
    assert reason is not None
    assert "0.40 Å apart, where the shortest" in reason


def test_a_pair_of_elements_that_never_met_is_named(domain: TrainingDomain) -> None:
    reason = domain.familiarity(graph_of(molecule("HCOOH"))).reason
    assert reason is not None
    assert "no O and O come within 5 Å" in reason


def test_rotation_and_order_of_atoms_change_nothing(domain: TrainingDomain) -> None:
    atoms = molecule("CH3OCH3")
    turned = atoms.copy()
    turned.rotate(50, "x")
    turned.rotate(20, "z")
    turned = turned[np.random.default_rng(0).permutation(len(atoms))]
    first, second = (domain.familiarity(graph_of(each)).distance for each in (atoms, turned))
    assert first == pytest.approx(second, rel=1e-9)


def test_a_batch_has_the_distances_of_each_alone(domain: TrainingDomain) -> None:
    structures = [molecule("H2O"), molecule("CH3CH2OH"), molecule("C6H6")]
    together = np.empty(3)
    for indices, graph in graphs_of(structures, CUTOFF, 10_000):
        together[indices] = domain.distances(graph)
    alone = [domain.distances(graph_of(atoms))[0] for atoms in structures]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_an_element_that_the_frames_lack_is_outside(domain: TrainingDomain) -> None:
    frames = rattled("CH4", 20)
    methane = TrainingDomain.from_graphs([graph_of(*frames)], SPECIES, CUTOFF)
    found = methane.familiarity(graph_of(Atoms("O")))
    assert found.distance == np.inf
    assert found.reason == "atom 0 is O, and the training data hold no O"
    assert methane.familiarity(graph_of(*frames)).reason is None


def test_a_single_frame_gives_no_limit_but_its_closest_pairs() -> None:
    frame = rattled("CH3CH2OH", 1)[0]
    single = TrainingDomain.from_graphs([graph_of(frame)], SPECIES, CUTOFF)
    assert single.familiarity(graph_of(frame)).reason is None
    closer = frame.copy()
    closer.positions *= 0.7
    assert single.familiarity(graph_of(closer)).reason is not None


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        TrainingDomain.from_graphs([], SPECIES, CUTOFF)


def test_periodic_frames_are_remembered() -> None:
    crystal = Atoms("CO", [[0, 0, 0], [1.5, 1.5, 1.5]], cell=[3, 3, 3], pbc=True)
    assert TrainingDomain.from_graphs([graph_of(crystal, crystal)], SPECIES, CUTOFF).periodic
    assert not TrainingDomain.from_graphs([graph_of(molecule("CO"))], SPECIES, CUTOFF).periodic


def test_the_same_frames_give_the_same_domain(domain: TrainingDomain) -> None:
    frames = rattled("CH3CH2OH", 100)
    again = TrainingDomain.from_graphs([graph_of(*frames[:50]), graph_of(*frames[50:])], SPECIES, CUTOFF)
    for name, tensor in domain.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_parts_of_a_file_give_the_same_distances(domain: TrainingDomain) -> None:
    again = TrainingDomain.from_parts(SPECIES, domain.facts(), domain.tensors())
    graph = graph_of(molecule("CH3OCH3"))
    assert again.familiarity(graph).distance == pytest.approx(domain.familiarity(graph).distance, rel=1e-4)
    assert again.facts() == domain.facts()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": "5"}, "radius"),
        ({"radius": 50.0}, "radius"),
        ({"periodic": 1}, "periodic"),
        ({"frames": 0}, "frames"),
    ],
)
def test_facts_that_no_domain_has_are_refused(domain: TrainingDomain, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingDomain.from_parts(SPECIES, {**domain.facts(), **change}, domain.tensors())


def test_tensors_of_other_species_are_refused(domain: TrainingDomain) -> None:
    with pytest.raises(ValueError, match="closest of the training data has shape"):
        TrainingDomain.from_parts((1, 6), domain.facts(), domain.tensors())


def test_many_elements_have_fewer_functions_each() -> None:
    species = tuple(range(1, 60))
    frames = rattled("CH3CH2OH", 10)
    wide = TrainingDomain.from_graphs([graph_of(*frames)], species, CUTOFF)
    assert wide.whitening.shape[1] <= 128
    assert wide.familiarity(graph_of(molecule("H2O"))).reason is not None
