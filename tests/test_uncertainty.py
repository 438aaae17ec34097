"""Uncertainty of a committee: calibration, and an observer of dynamics."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from ponita_ff import PonitaCalculator, save_potential
from ponita_ff.data import Frame
from ponita_ff.potential.potential import Potential
from ponita_ff.uncertainty import (
    Calibration,
    UncertainForces,
    UncertaintyMonitor,
    calibrate,
    committee_spread,
    spread_factor,
)


@pytest.fixture(scope="module")
def members(make_potential: Callable[..., Potential]) -> list[Potential]:
    return [make_potential(seed=seed, channels=8, num_layers=1) for seed in range(4)]


def structures(number: int) -> list[Atoms]:
    generator = np.random.default_rng(0)
    found = [molecule(name) for name in ("CH3OH", "H2O") for _ in range(number)]
    for atoms in found:
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
    return found


@pytest.fixture(scope="module")
def frames(members: list[Potential]) -> list[Frame]:
    """Labels that differ from the committee's mean by normal errors of 3 (forces) and 2 (energy) deviations."""
    generator = np.random.default_rng(1)
    some = structures(40)
    energies, forces, energy_std, forces_std = committee_spread(members, some)
    return [
        Frame(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            energy=float(energy + 2.0 * e_std * generator.normal()),
            forces=force + 3.0 * f_std * generator.normal(size=force.shape),
        )
        for atoms, energy, force, e_std, f_std in zip(some, energies, forces, energy_std, forces_std, strict=True)
    ]


def test_spread_is_that_of_the_members(members: list[Potential]) -> None:
    some = structures(2)
    energies, forces, energy_std, forces_std = committee_spread(members, some)
    for index, atoms in enumerate(some):
        each = [member.evaluate([atoms]) for member in members]
        assert energies[index] == pytest.approx(np.mean([p.energies[0] for p in each]))
        assert energy_std[index] == pytest.approx(np.std([p.energies[0] for p in each]))
        np.testing.assert_allclose(forces[index], np.mean([p.forces[0] for p in each], axis=0), atol=1e-10)
        np.testing.assert_allclose(forces_std[index], np.std([p.forces[0] for p in each], axis=0), atol=1e-10)


def test_factors_are_found(members: list[Potential], frames: list[Frame]) -> None:
    found = calibrate(members, frames)
    assert found.forces == pytest.approx(3.0, rel=0.08)
    assert found.energy == pytest.approx(2.0, rel=0.25)
    np.testing.assert_allclose(found.forces_within, (0.683, 0.954), atol=0.04)
    assert 0.3 < found.forces_rank_correlation < 1.0
    assert found.frames == 80


@pytest.mark.parametrize("number", [2, 3])
def test_few_members_that_agree_by_chance(number: int) -> None:
    """Members that are wrong independently: σ²/M of their mean against the expectation σ²·(M-1)/M of their variance."""
    wrong = np.random.default_rng(3).normal(size=(number, 3000, 3))
    wrong[:, 0] = wrong[0, 0]
    factor = spread_factor(wrong.mean(axis=0), wrong.std(axis=0))
    assert factor == pytest.approx(1.0 / np.sqrt(number - 1), rel=0.05)


def test_errors_that_have_nothing_to_do_with_the_spread(members: list[Potential], frames: list[Frame]) -> None:
    """Are seen as such."""
    generator = np.random.default_rng(2)
    _, forces, _, _ = committee_spread(members, [frame.to_atoms() for frame in frames])
    other = [
        dataclasses.replace(frame, forces=force + generator.normal(size=force.shape))
        for frame, force in zip(frames, forces, strict=True)
    ]
    assert abs(calibrate(members, other).forces_rank_correlation) < 0.15


def test_equal_errors_have_the_mean_of_their_ranks(members: list[Potential], frames: list[Frame]) -> None:
    """Every atom twice: the correlation is the same only if ties have equal ranks."""
    once, twice = calibrate(members, frames[:10]), calibrate(members, [*frames[:10], *frames[:10]])
    assert twice.forces_rank_correlation == pytest.approx(once.forces_rank_correlation, abs=1e-12)


def test_the_calculator_applies_them(members: list[Potential], frames: list[Frame], tmp_path: Path) -> None:
    found = calibrate(members, frames)
    found.save(tmp_path / "committee.json")
    assert Calibration.load(tmp_path / "committee.json") == found
    atoms = molecule("CH3OH")
    plain, calibrated = PonitaCalculator(members), PonitaCalculator(members, calibration=tmp_path / "committee.json")
    for calculator in (plain, calibrated):
        calculator.calculate(atoms, ["energy", "forces"])
    assert calibrated.results["energy_std"] == pytest.approx(found.energy * plain.results["energy_std"])
    np.testing.assert_allclose(calibrated.results["forces_std"], found.forces * plain.results["forces_std"])
    np.testing.assert_array_equal(calibrated.results["forces"], plain.results["forces"])


def test_a_calibration_knows_its_members(members: list[Potential], frames: list[Frame], tmp_path: Path) -> None:
    found = calibrate(members, frames)
    paths = []
    for index, member in enumerate(reversed(members)):
        paths.append(tmp_path / f"{index}.safetensors")
        save_potential(member, paths[-1])
    PonitaCalculator(paths, dtype="float32", rotations=2, calibration=found)
    with pytest.raises(ValueError, match="calibration is of another committee"):
        PonitaCalculator(paths[:-1], calibration=found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("forces", value) for value in (float("nan"), float("inf"), -1.0, 0.0, [2.0], None, "2", True)),
        *(("energy", value) for value in (float("nan"), -2.0, {})),
        ("frames", 0),
        ("forces_within", [0.5, 1.5]),
        ("forces_within", [0.5]),
        ("members", []),
    ],
)
def test_figures_that_no_calibration_gives(field: str, value: Any, tmp_path: Path) -> None:
    good = Calibration(1.5, 2.0, 10, (0.6, 0.9), 0.5, 0.1, ("a", "b"))
    good.save(tmp_path / "good.json")
    assert Calibration.load(tmp_path / "good.json") == good
    values = json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) | {field: value}
    (tmp_path / "bad.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.json is not a calibration .*{field}"):
        Calibration.load(tmp_path / "bad.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"energy": 1.0}', "not json"])
def test_a_file_that_is_no_calibration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"wrong\.json is not a calibration"):
        Calibration.load(path)
    with pytest.raises(ValueError, match=r"there is no calibration .*absent\.json"):
        Calibration.load(tmp_path / "absent.json")


def test_what_cannot_be_calibrated(members: list[Potential], frames: list[Frame]) -> None:
    with pytest.raises(ValueError, match="two members or more"):
        calibrate(members[:1], frames)
    with pytest.raises(ValueError, match="no frames"):
        calibrate(members, [])
    with pytest.raises(ValueError, match="the same potential"):
        calibrate([members[0], members[0]], frames)


@pytest.fixture
def moving(members: list[Potential]) -> tuple[Atoms, VelocityVerlet]:
    """Methanol on a committee of random potentials, at some temperature."""
    atoms = molecule("CH3OH")
    atoms.calc = PonitaCalculator(members)
    atoms.set_velocities(0.02 * np.random.default_rng(0).normal(size=(6, 3)))
    return atoms, VelocityVerlet(atoms, 0.5 * units.fs)


def test_the_monitor_stops_a_run(moving: tuple[Atoms, VelocityVerlet]) -> None:
    atoms, dynamics = moving
    watching = UncertaintyMonitor(atoms)
    dynamics.attach(watching, interval=5)
    dynamics.run(20)
    assert len(watching.history) == 5
    last = np.linalg.norm(atoms.calc.results["forces_std"], axis=1).max()
    assert watching.history[-1] == pytest.approx(last)
    dynamics.attach(UncertaintyMonitor(atoms, stop=0.5 * last), interval=1)
    with pytest.raises(UncertainForces, match=r"uncertain by .* eV/Å at atom \d .*the limit is"):
        dynamics.run(5)
    assert dynamics.get_number_of_steps() <= 21


def test_the_monitor_warns_once_for_each_crossing(members: list[Potential], caplog: pytest.LogCaptureFixture) -> None:
    calm, strange = molecule("H2O"), molecule("H2O")
    strange.positions[1] += 0.4
    atoms = calm.copy()
    atoms.calc = PonitaCalculator(members)
    monitor = UncertaintyMonitor(atoms)
    for positions in (calm.positions, strange.positions):
        atoms.positions = positions
        monitor()
    low, high = sorted(monitor.history)
    assert high > 1.1 * low
    monitor = UncertaintyMonitor(atoms, warn=(low * high) ** 0.5)
    calmer, wilder = (calm, strange) if monitor_order(members, calm) == low else (strange, calm)
    with caplog.at_level(logging.WARNING):
        for positions in (calmer, wilder, wilder, calmer, wilder):
            atoms.positions = positions.positions
            monitor()
    assert sum("may be outside the training data" in record.message for record in caplog.records) == 2


def monitor_order(members: list[Potential], atoms: Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = PonitaCalculator(members)
    monitor = UncertaintyMonitor(atoms)
    monitor()
    return monitor.history[0]


def test_one_potential_is_no_committee(members: list[Potential]) -> None:
    atoms = molecule("H2O")
    atoms.calc = PonitaCalculator(members[0])
    with pytest.raises(ValueError, match="must be a committee"):
        UncertaintyMonitor(atoms)()


@pytest.mark.parametrize("limits", [{"warn": 0.0}, {"stop": -1.0}, {"stop": float("nan")}])
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        UncertaintyMonitor(Atoms("H"), **limits)
