"""Drift and block means of known series."""

from __future__ import annotations

import numpy as np
import pytest

from ponita_ff.simulate.statistics import block_means, energy_drift


def test_block_means_drop_what_is_left() -> None:
    np.testing.assert_allclose(block_means(np.arange(25.0), 10), np.arange(0.5, 24.5, 2.0))


def test_drift_of_a_known_line() -> None:
    time = np.linspace(0, 2, 4001)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(time))
    # 9 µeV/ps of 9 atoms is 1 meV/atom/ns.
    drift = energy_drift(time, -1.0 + 9e-6 * 50 * time + noise, 9)
    assert drift.slope == pytest.approx(50, abs=4 * drift.error)
    # Standard error of a slope: σ / (√n · width of t), here 1 meV / (√4001 · 2/√12 ps) / 9 atoms.
    assert drift.error == pytest.approx(1e6 * 1e-3 / (4001**0.5 * 2 / 12**0.5) / 9, rel=0.6)
    assert drift.rms == pytest.approx(1.0, rel=0.05)


def test_too_few_values_for_a_drift() -> None:
    with pytest.raises(ValueError, match="2 values are too few"):
        energy_drift(np.arange(2.0), np.arange(2.0), 1)
