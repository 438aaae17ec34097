"""Errors on labelled frames."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from audit_calculators import Shifted, Springs, labelled_frames, run_check

from ponita_ff.audit import AuditSettings
from ponita_ff.audit.label_errors import nearest_neighbour_distances
from ponita_ff.data import Frame


def test_label_errors_are_those_planted(water: Atoms, fast: AuditSettings) -> None:
    springs = Springs(water)
    wrong = Shifted(springs)
    wrong.energy, wrong.hydrogen_force = 0.03, 0.12
    result = run_check("labels", wrong, water, fast, labelled_frames(springs, water))
    values = {item.name: item.value for item in result.measurements}
    assert values["energy MAE"] == pytest.approx(0.01)
    assert values["energy MAE after subtracting the mean error"] == pytest.approx(0.0, abs=1e-12)
    assert values["force MAE"] == pytest.approx(0.08)
    assert values["force MAE of H"] == pytest.approx(0.12)
    assert values["force MAE of O"] == pytest.approx(0.0, abs=1e-12)
    assert set(result.failures) == {"energy MAE", "force MAE"}
    bins = result.arrays
    assert np.sum(bins["bin_mae"] * bins["bin_atoms"]) / np.sum(bins["bin_atoms"]) == pytest.approx(0.08)


def test_nearest_neighbour_distances() -> None:
    def frame(positions: list[list[float]], pbc: bool) -> Frame:
        number = len(positions)
        return Frame(
            np.full(number, 1), np.array(positions), 2.0 * np.eye(3), np.full(3, pbc), 0.0, np.zeros((number, 3))
        )

    np.testing.assert_allclose(nearest_neighbour_distances(frame([[0, 0, 0], [0, 0, 1.5]], False)), 1.5)
    np.testing.assert_allclose(nearest_neighbour_distances(frame([[0, 0, 0], [0, 0, 1.5]], True)), 0.5)
    np.testing.assert_allclose(nearest_neighbour_distances(frame([[0, 0, 0]], True)), 2.0)
    assert np.isinf(nearest_neighbour_distances(frame([[0, 0, 0]], False)))


def test_without_frames_it_is_skipped(water: Atoms, fast: AuditSettings) -> None:
    assert "--data" in (run_check("labels", Springs(water), water, fast).skip_reason or "")
