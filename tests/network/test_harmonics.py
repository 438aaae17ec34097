"""Spherical harmonics: addition theorem, orthogonality, and the known ones of degree 1."""

from __future__ import annotations

import numpy as np
import torch

from ponita_ff.network.harmonics import degrees_of_harmonics, spherical_harmonics
from ponita_ff.network.invariants import legendre
from ponita_ff.network.orientations import orientation_grid


def test_addition_theorem() -> None:
    units = torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64), dim=-1)
    harmonics, expected = spherical_harmonics(units, 6), legendre(units @ units.T, 6)
    degrees = degrees_of_harmonics(6, units.device)
    assert harmonics.shape == (7, 49)
    for degree in range(7):
        part = harmonics[:, degrees == degree]
        assert part.shape[1] == 2 * degree + 1
        assert torch.allclose(part @ part.T, expected[:, degree], rtol=0, atol=1e-13)


def test_they_are_orthogonal_on_the_sphere() -> None:
    grid = orientation_grid(62)  # integrates products of degree 5 and 5 exactly
    harmonics = spherical_harmonics(torch.from_numpy(grid.orientations), 5).numpy()
    degrees = degrees_of_harmonics(5, torch.device("cpu")).numpy()
    overlaps = harmonics.T @ (grid.weights[:, None] * harmonics)
    assert np.abs(overlaps - np.diag(1.0 / (2 * degrees + 1))).max() < 1e-12


def test_degree_one_is_the_direction_itself() -> None:
    direction = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    assert torch.allclose(spherical_harmonics(direction, 1), torch.tensor([1.0, 0.0, -0.8, 0.6], dtype=torch.float64))
