"""Each kind of frames is what its settings say."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from sample_calculators import ForceField

from ponita_ff.sample import kinds
from ponita_ff.sample.geometry import Connectivity
from ponita_ff.sample.kinds import Draft, Start, relax
from ponita_ff.sample.settings import (
    BondSettings,
    ClusterScanSettings,
    ContactSettings,
    MdSettings,
    MinimumSettings,
    ModeSettings,
    TorsionSettings,
)


def make_start(atoms: Atoms | str, rattle: float = 0.0, fmax: float = 1e-3) -> Start:
    """Relaxed by the force field of the unrattled molecule."""
    whole = molecule(atoms) if isinstance(atoms, str) else atoms
    whole.calc = ForceField()
    whole.get_potential_energy()
    connectivity = Connectivity.of(whole)  # before atoms move, in ``start`` after it
    if rattle:
        whole.rattle(rattle, seed=3)
    start = relax(whole, connectivity, fmax, 200)
    return Start(start.atoms, Connectivity.of(start.atoms), start.path, start.converged)


@pytest.fixture
def generator() -> np.random.Generator:
    """The same in every test."""
    return np.random.default_rng(0)


def test_relaxation_and_the_path_to_it(generator: np.random.Generator) -> None:
    start = make_start("CH3CH2OH", rattle=0.1)
    assert start.converged and np.abs(start.atoms.get_forces()).max() < 1e-3
    assert not start.atoms.constraints
    np.testing.assert_array_equal(start.path[-1], start.atoms.positions)
    found = list(kinds.minimum(start, MinimumSettings(frames=4), generator))
    steps = [draft.info["relaxation_step"] for draft in found]
    assert steps[0] == len(start.path) - 1 and steps[1] == 0 and len(found) == 4
    energies = []
    for draft in found:
        start.atoms.positions = draft.positions
        energies.append(start.atoms.get_potential_energy())
    assert energies[1] > energies[2] > energies[3] > energies[0]
    assert [draft.info["relaxed"] for draft in found] == [True, False, False, False]


def test_a_short_path_gives_fewer_frames(generator: np.random.Generator) -> None:
    start = make_start("CH3CH2OH")
    number = len(start.path)
    assert len(list(kinds.minimum(start, MinimumSettings(frames=500), generator))) == number


def test_relaxation_ends_after_its_steps() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = ForceField()
    atoms.get_potential_energy()
    atoms.rattle(0.1, seed=0)
    start = relax(atoms, Connectivity.of(molecule("CH3CH2OH")), 1e-6, 3)
    assert not start.converged and len(start.path) == 4


def test_dynamics(generator: np.random.Generator) -> None:
    start = make_start("CH3OH")
    settings = MdSettings(frames=5, temperatures=[50.0, 500.0], equilibration=20.0, interval=5.0, timestep=0.5)
    found = list(kinds.md(start, settings, generator))
    assert [(draft.info["temperature"], draft.info["time_fs"]) for draft in found] == [
        (50.0, 25.0),
        (50.0, 30.0),
        (50.0, 35.0),
        (500.0, 25.0),
        (500.0, 30.0),
    ]
    moved = [np.abs(one.get_all_distances() - start.atoms.get_all_distances()).max() for one in at(start, found)]
    assert 0 < max(moved[:3]) < min(moved[3:])
    assert list(kinds.md(make_start(Atoms("He")), settings, generator)) == []


def test_fewer_frames_than_temperatures_are_of_random_ones(generator: np.random.Generator) -> None:
    start = make_start("H2")
    md = MdSettings(frames=1, temperatures=[100.0, 200.0, 300.0], equilibration=1.0, interval=1.0)
    modes = ModeSettings(frames=2, temperatures=[100.0, 200.0, 300.0])
    found = [draft.info["temperature"] for _ in range(20) for draft in kinds.md(start, md, generator)]
    assert len(found) == 20 and set(found) == {100.0, 200.0, 300.0}
    pairs = {tuple(draft.info["temperature"] for draft in kinds.modes(start, modes, generator)) for _ in range(20)}
    assert pairs == {(100.0, 200.0), (100.0, 300.0), (200.0, 300.0)}


def at(start: Start, drafts: list[Draft]) -> list[Atoms]:
    """The atoms at each draft's positions, with the calculator."""
    found = []
    for draft in drafts:
        atoms = start.copy()
        atoms.positions = draft.positions
        found.append(atoms)
    return found


def test_dynamics_has_its_temperature(generator: np.random.Generator) -> None:
    start = make_start("CH4")
    settings = MdSettings(frames=60, temperatures=[150.0], interval=8.0, relaxation_time=10.0, timestep=1.0)
    energies = [atoms.get_potential_energy() for atoms in at(start, list(kinds.md(start, settings, generator)))]
    # Half kT for each of the nine vibrations.
    assert np.mean(energies) == pytest.approx(4.5 * units.kB * 150.0, rel=0.3)


def test_normal_modes_have_classical_energies(generator: np.random.Generator) -> None:
    start = make_start("H2O", fmax=1e-5)
    found = list(kinds.modes(start, ModeSettings(frames=400, temperatures=[10.0, 20.0]), generator))
    rest = start.atoms.get_potential_energy()
    for number, temperature in enumerate((10.0, 20.0)):
        energies = [atoms.get_potential_energy() - rest for atoms in at(start, found[number::2])]
        assert found[number].info == {"temperature": temperature}
        assert np.mean(energies) == pytest.approx(1.5 * units.kB * temperature, rel=0.15)


def test_soft_modes_are_bounded_and_large_molecules_left_out(generator: np.random.Generator) -> None:
    start = make_start("C2H6")  # its torsion is almost free
    found = list(kinds.modes(start, ModeSettings(frames=50, temperatures=[300.0]), generator))
    assert max(np.abs(draft.positions - start.atoms.positions).max() for draft in found) < 1.0
    assert list(kinds.modes(start, ModeSettings(max_atoms=7), generator)) == []


def test_torsions_cover_the_circle(generator: np.random.Generator) -> None:
    start = make_start("CH3CH2OH")
    found = list(kinds.torsions(start, TorsionSettings(frames=12, steps=0), generator))
    by_bond: dict[str, list[float]] = {}
    for draft, atoms in zip(found, at(start, found), strict=True):
        torsion = [int(index) for index in draft.info["torsion"].split("-")]
        assert atoms.get_dihedral(*torsion) == pytest.approx(draft.info["angle"], abs=0.01)
        assert start.connectivity.bonds.largest_change(atoms) < 1e-9
        turned = (draft.info["angle"] - start.atoms.get_dihedral(*torsion)) % 360
        by_bond.setdefault(draft.info["torsion"], []).append(turned)
    assert len(by_bond) == 2
    for angles in by_bond.values():
        sixths = {int(angle // 60) for angle in angles}
        assert sixths == set(range(6))
    relaxed = list(kinds.torsions(start, TorsionSettings(frames=12, steps=5), np.random.default_rng(0)))
    energies = [[atoms.get_potential_energy() for atoms in at(start, drafts)] for drafts in (found, relaxed)]
    assert np.sum(energies[1]) < np.sum(energies[0])
    assert list(kinds.torsions(make_start("C6H6"), TorsionSettings(), generator)) == []


def test_bonds_have_the_lengths_asked_for(generator: np.random.Generator) -> None:
    start = make_start("CH3CH2OH")
    settings = BondSettings(frames=10, shortest=0.8, longest=1.4, rattle=0.0)
    found = list(kinds.bonds(start, settings, generator))
    for draft, atoms in zip(found, at(start, found), strict=True):
        first, second = (int(index) for index in draft.info["bond"].split("-"))
        ratio = atoms.get_distance(first, second) / start.atoms.get_distance(first, second)
        assert ratio == pytest.approx(draft.info["length_factor"], abs=1e-4)
        changes = np.abs(start.connectivity.bonds.changes(atoms))
        assert np.sum(changes > 1e-6) == 1  # no other bond
    parts = np.floor((np.array([draft.info["length_factor"] for draft in found]) - 0.8) / 0.06 + 1e-6)
    assert sorted(parts) == list(range(10))
    assert len(list(kinds.bonds(make_start("H2"), settings, generator))) == 10
    assert list(kinds.bonds(make_start(Atoms("He")), settings, generator)) == []


def test_contacts_cover_the_distances(generator: np.random.Generator) -> None:
    parts = [make_start("H2O"), make_start("CH3OH")]
    settings = ContactSettings(frames=6, nearest=0.7, farthest=2.0, rattle=0.0)
    found = list(kinds.contacts(parts, settings, generator))
    factors = np.log([draft.info["contact_factor"] for draft in found])
    parts_of_range = np.floor((factors - np.log(0.7)) / np.log(2.0 / 0.7) * 6 + 1e-3)
    assert sorted(parts_of_range) == list(range(6))
    assert all(len(draft.positions) == 9 for draft in found)


def test_a_scan_moves_the_last_molecule(generator: np.random.Generator) -> None:
    one, other = molecule("H2O"), molecule("H2O")
    other.positions += [0.0, 0.0, 3.0]
    pair = one + other
    start = Start(pair, Connectivity.of_parts([one, other]), [], True)
    settings = ClusterScanSettings(frames=8, nearest=0.8, farthest=2.0)
    found = list(kinds.cluster_scan(start, 3, settings, generator))
    nearest = pair.get_all_distances()[:3, 3:].min()
    for number, draft in enumerate(found):
        np.testing.assert_array_equal(draft.positions[:3], pair.positions[:3])
        step = draft.positions[3:] - pair.positions[3:]
        np.testing.assert_allclose(step, step[0][None].repeat(3, 0), atol=1e-12)
        assert np.linalg.norm(step[0]) == pytest.approx(abs(draft.info["distance_factor"] - 1) * nearest, abs=1e-3)
        if number % 2:
            assert np.abs(step[0][:2]).max() < 1e-9  # along the line of the centres
        else:
            distances = np.linalg.norm(draft.positions[3:][None] - draft.positions[:3][:, None], axis=-1)
            assert distances.min() <= draft.info["distance_factor"] * nearest + 1e-3
