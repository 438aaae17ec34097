"""Bonds by covalent radii."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from ponita_ff.audit.bonds import find_bonds


def test_bonds_across_a_boundary_keep_their_length(copper: Atoms) -> None:
    bonds = find_bonds(copper)
    assert len(bonds) == 4 * 12 // 2
    assert bonds.largest_change(copper) == pytest.approx(0.0, abs=1e-10)


def test_vectors_follow_a_moved_atom() -> None:
    water = molecule("H2O")
    bonds = find_bonds(water)
    assert bonds.pairs.tolist() == [[0, 1], [0, 2]]
    stretched = water.copy()
    stretched.positions[2] += 0.3 * bonds.vectors(water)[1] / bonds.lengths[1]
    np.testing.assert_allclose(np.linalg.norm(bonds.vectors(stretched), axis=1), bonds.lengths + np.array([0.0, 0.3]))
    assert bonds.largest_change(stretched) == pytest.approx(0.3)
