"""Errors on labelled frames, against the same taken by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from ponita_ff.data import Frame
from ponita_ff.potential.potential import Potential
from ponita_ff.training.evaluate import evaluate, trained_on


def _off_by(potential: Potential, atoms: Atoms, energy: float, force: float, name: str) -> Frame:
    """A frame whose labels are the potential's own, but for so much."""
    found = potential.evaluate([atoms])
    forces = found.forces[0].copy()
    forces[0, 0] += force
    return Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=atoms.positions.copy(),
        energy=float(found.energies[0]) + energy,
        forces=forces,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        source=name,
    )


@pytest.fixture
def frames(tiny_potential: Potential) -> list[Frame]:
    """Two frames of water, the second with its atoms in another order, and one of carbon monoxide."""
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    turned = water[[1, 0, 2]]
    oxide = Atoms("CO", [[0.0, 0.0, 0.0], [1.13, 0.0, 0.0]])
    return [
        _off_by(tiny_potential, water, 0.1, 0.9, "first"),
        _off_by(tiny_potential, turned, -0.3, 0.0, "second"),
        _off_by(tiny_potential, oxide, 0.5, 0.6, "third"),
    ]


def test_errors_of_all_frames_and_of_each_formula(tiny_potential: Potential, frames: list[Frame]) -> None:
    errors = evaluate(tiny_potential, frames, batch_size=2).errors
    assert errors.frames == 3
    assert errors.energy_mae == pytest.approx(0.3, rel=1e-5)
    assert errors.forces_mae == pytest.approx(1.5 / 24, rel=1e-4)
    assert errors.forces_mae_by_element["O"] == pytest.approx(0.9 / 9, rel=1e-4)
    assert list(errors.by_formula) == ["CO", "H2O"]
    water, oxide = errors.by_formula["H2O"], errors.by_formula["CO"]
    assert (water.frames, oxide.frames) == (2, 1)
    assert water.energy_mae == pytest.approx(0.2, rel=1e-5)
    assert water.forces_mae == pytest.approx(0.9 / 18, rel=1e-4)
    assert oxide.energy_mae == pytest.approx(0.5, rel=1e-5)
    assert oxide.forces_mae == pytest.approx(0.6 / 6, rel=1e-4)
    assert errors.as_dict()["by_formula"]["CO"]["frames"] == 1  # type: ignore[index]


def test_one_formula_is_not_told_twice(tiny_potential: Potential, frames: list[Frame]) -> None:
    assert evaluate(tiny_potential, frames[:2]).errors.by_formula == {}


def test_no_frames_and_unknown_elements_are_refused(tiny_potential: Potential, frames: list[Frame]) -> None:
    with pytest.raises(ValueError, match="no frames"):
        evaluate(tiny_potential, [])
    gold = replace(frames[2], numbers=np.array([79, 8]))
    with pytest.raises(ValueError, match=r"third.*Au"):
        evaluate(tiny_potential, [*frames, gold])


def test_frames_of_another_level_of_theory_get_errors_after_the_best_shift(
    tiny_potential: Potential, frames: list[Frame]
) -> None:
    assert evaluate(tiny_potential, frames).shifted is None
    shift = {1: 13.0, 6: -900.0, 8: 40.0}
    moved = [replace(f, energy=f.energy + sum(shift[int(z)] for z in f.numbers)) for f in frames]
    found = evaluate(tiny_potential, moved)
    assert found.errors.energy_mae_per_atom > 20
    assert found.shifted is not None
    # Two compositions and three elements: the mean of each is met, and half of their difference is left of water's.
    assert found.shifted.energy_mae == pytest.approx((0.2 + 0.2 + 0.0) / 3, abs=1e-6)
    assert found.shifted.forces_mae == found.errors.forces_mae


def test_a_potential_knows_the_files_it_was_trained_on() -> None:
    metadata = {"data": {"sha256": "all", "files_sha256": ["a", "b"], "test_sha256": "t", "replay_files_sha256": ["r"]}}
    assert [trained_on(metadata, name) for name in ("all", "a", "b", "r", "t", "x")] == [True] * 4 + [False] * 2
    assert not trained_on({}, "a")
    assert not trained_on({"data": {"further_sha256": None}}, "a")
