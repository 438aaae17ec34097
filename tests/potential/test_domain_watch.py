"""The watch warns once for each system, looks seldom, and refuses when it is strict."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.domain_watch import DomainWatch, OutsideTrainingData, domain_distances, familiarity
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import graphs_of


def thermal(name: str, number: int) -> list[Atoms]:
    """Displaced copies of a molecule."""
    rng = np.random.default_rng(0)
    frames = [molecule(name) for _ in range(number)]
    for atoms in frames:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return frames


@pytest.fixture
def potential(tiny_potential: Potential) -> Potential:
    """Says that it was trained on ethanol."""
    graphs = [graph for _, graph in graphs_of(thermal("CH3CH2OH", 60), tiny_potential.cutoff, 1000)]
    tiny_potential.domain = TrainingDomain.from_graphs(graphs, tiny_potential.species, tiny_potential.cutoff)
    tiny_potential.metadata["name"] = "tiny"
    return tiny_potential


def energy(atoms: Atoms, calculator: PonitaCalculator) -> float:
    """Of a copy, so that the calculator sees atoms that it has not seen."""
    copy = atoms.copy()
    copy.calc = calculator
    return float(copy.get_potential_energy())


def test_its_own_molecule_is_no_reason_to_warn(potential: Potential, caplog: pytest.LogCaptureFixture) -> None:
    calculator = PonitaCalculator(potential)
    energy(molecule("CH3CH2OH"), calculator)
    assert not caplog.records
    assert calculator.domain_watch.report().startswith("0 of 1 structures")


def test_another_molecule_is_told_once(potential: Potential, caplog: pytest.LogCaptureFixture) -> None:
    calculator = PonitaCalculator(potential)
    water = molecule("H2O")
    for _ in range(50):
        water.rattle(0.3, rng=np.random.default_rng(1))  # beyond the skin: each time a new list
        energy(water, calculator)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("tiny does not know this structure: the surroundings of atom")
    assert 2 <= calculator.domain_watch.looks <= 3  # at the first of 50 calculations, then at every 20th
    energy(molecule("CH3OCH3"), calculator)
    assert len(caplog.records) == 2


def test_a_molecule_that_comes_apart_on_the_way_is_told(potential: Potential, caplog: pytest.LogCaptureFixture) -> None:
    calculator, atoms = PonitaCalculator(potential), molecule("CH3CH2OH")
    for _ in range(60):
        energy(atoms, calculator)
        atoms.positions[3] += [0.05, 0.02, 0.0]
    assert len(caplog.records) == 1


def test_a_cell_around_a_molecule_of_the_gas_phase_is_told(
    potential: Potential, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = molecule("CH3CH2OH", cell=[15, 15, 15], pbc=True)
    energy(atoms, PonitaCalculator(potential))
    assert caplog.messages == ["tiny was trained on molecules in the gas phase only, and this structure is periodic"]


def test_strict_refuses_at_every_step(potential: Potential) -> None:
    calculator = PonitaCalculator(potential, strict=True)
    ethanol = molecule("CH3CH2OH")
    before = energy(ethanol, calculator)
    with pytest.raises(OutsideTrainingData, match=r"tiny does not know this structure: .* atom 0 \(O\)"):
        energy(molecule("H2O"), calculator)
    moved = ethanol.copy()
    moved.positions[4] += [0.9, 0.0, 0.0]
    with pytest.raises(OutsideTrainingData):
        energy(moved, calculator)
    assert energy(ethanol, calculator) == pytest.approx(before)


def test_strict_needs_statistics(tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match="strict=True needs statistics of the training data"):
        PonitaCalculator(tiny_potential, strict=True)


def test_without_statistics_nothing_is_said(tiny_potential: Potential, caplog: pytest.LogCaptureFixture) -> None:
    calculator = PonitaCalculator(tiny_potential)
    energy(molecule("H2O"), calculator)
    assert not caplog.records
    assert "not known" in calculator.domain_watch.report()
    assert calculator.familiarity(molecule("H2O")) is None
    assert domain_distances([tiny_potential], [molecule("H2O")]) is None


def test_of_a_committee_the_member_that_knows_it_least_counts(potential: Potential, make_potential) -> None:
    other = make_potential(seed=1)
    graphs = [graph for _, graph in graphs_of(thermal("H2O", 60), other.cutoff, 1000)]
    other.domain = TrainingDomain.from_graphs(graphs, other.species, other.cutoff)
    for name in ("H2O", "CH3CH2OH"):
        each = [familiarity([member], molecule(name)) for member in (potential, other)]
        both = familiarity([potential, other], molecule(name))
        assert both is not None
        assert both.distance == max(one.distance for one in each if one is not None) > 1
        assert domain_distances([potential, other], [molecule(name)]) == pytest.approx([both.distance])


def test_the_watch_of_a_moving_structure_finds_what_a_single_look_does(potential: Potential) -> None:
    watch = DomainWatch([potential])
    atoms = molecule("H2O")
    ((_, graph),) = graphs_of([atoms], potential.cutoff, 10)
    watch.see(graph)
    found = familiarity([potential], atoms)
    assert found is not None
    assert watch.largest == pytest.approx(found.distance)
    assert (watch.looks, watch.outside) == (1, 1)
