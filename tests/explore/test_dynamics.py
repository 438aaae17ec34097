"""Frames to label: displaced structures, and frames of a committee's dynamics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff import PonitaCalculator
from ponita_ff.explore import ExploreSettings
from ponita_ff.explore.dynamics import displaced_structures, run_dynamics
from ponita_ff.potential.potential import Potential
from ponita_ff.uncertainty import committee_spread

SETTINGS = ExploreSettings.from_mapping(
    {"method": "gfn2-xtb", "budget": 20, "simulation_time": 0.02, "timestep": 0.5, "sample_interval": 2.0}
)


@pytest.fixture(scope="module")
def members(make_potential: Callable[..., Potential]) -> list[Potential]:
    return [make_potential(seed=seed, scale=0.02, zbl_cutoff=1.0, channels=8, num_layers=1) for seed in range(2)]


@pytest.fixture(scope="module")
def calculator(members: list[Potential]) -> PonitaCalculator:
    return PonitaCalculator(members)


def water(number: int) -> list[Atoms]:
    frames = [molecule("H2O") for _ in range(number)]
    for index, atoms in enumerate(frames):
        atoms.rattle(0.03, seed=index)
    return frames


def test_displacements_increase_up_to_the_given_one() -> None:
    structures = [bulk("Cu", cubic=True) * 5, molecule("H2O")]
    frames = displaced_structures(structures, 5, 0.1, np.random.default_rng(0))
    assert [len(atoms) for atoms in frames] == [500, 3, 500, 3, 500]
    assert frames[0].pbc.all() and not frames[1].pbc.any()
    for index in (0, 2, 4):
        displacement = frames[index].positions - structures[0].positions
        expected = 0.1 * (0.1 + 0.9 * (index + 1) / 5)
        assert np.sqrt((displacement**2).sum(axis=1).mean()) == pytest.approx(expected, rel=0.06)
    np.testing.assert_array_equal(structures[1].positions, molecule("H2O").positions)


def test_frames_are_sampled_at_even_intervals(calculator: PonitaCalculator, members: list[Potential]) -> None:
    starts = water(2)
    result = run_dynamics(calculator, starts, SETTINGS, 1e6, np.random.default_rng(0))
    # 0.01 ps each: 20 steps, sampled every 4, but for the first tenth.
    assert result.times == [pytest.approx(0.01)] * 2 and result.stopped == 0
    assert len(result.frames) == len(result.uncertainties) == 10
    for first, start in zip((0, 5), starts, strict=True):
        moved = [np.abs(frame.positions - start.positions).max() for frame in result.frames[first : first + 5]]
        assert 1e-4 < moved[0] < 0.1
    deviations = committee_spread(members, result.frames)[3]
    largest = [np.linalg.norm(each, axis=1).max() for each in deviations]
    np.testing.assert_allclose(result.uncertainties, largest, rtol=1e-5)


def test_a_trajectory_stops_where_the_committee_is_too_uncertain(
    calculator: PonitaCalculator, members: list[Potential]
) -> None:
    free = run_dynamics(calculator, water(2), SETTINGS, 1e6, np.random.default_rng(0)).uncertainties
    starts = [np.linalg.norm(each, axis=1).max() for each in committee_spread(members, water(2))[3]]
    limit = 1.0001 * float(max(starts))  # exceeded by later frames of a trajectory, not by the first one
    assert max(free) > limit
    result = run_dynamics(calculator, water(2), SETTINGS, limit, np.random.default_rng(0))
    assert result.stopped >= 1 and len(result.frames) < 10
    # The frame at which a trajectory stops is kept, and it is its last one.
    assert sum(value >= limit for value in result.uncertainties) == result.stopped
    assert min(result.times) < 0.01


def test_the_seed_decides(calculator: PonitaCalculator) -> None:
    one, same, other = (
        run_dynamics(calculator, water(1), SETTINGS, 1e6, np.random.default_rng(seed)).frames[-1].positions
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4
