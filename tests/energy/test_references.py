"""Reference energies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ponita_ff.energy.references import fit_reference_energies, reference_vector


def test_fitted_references_are_found_where_the_data_tells_them() -> None:
    true = {1: -13.6, 6: -1029.9, 8: -2041.8}
    counts = np.random.default_rng(0).integers(1, 9, (20, 3)).astype(float)
    fitted = fit_reference_energies([1, 6, 8], counts, counts @ np.array(list(true.values())))
    assert fitted == pytest.approx(true, rel=1e-10)


def test_fitted_references_of_a_single_molecule_give_its_own_energy() -> None:
    counts = np.array([[6.0, 2.0, 1.0]] * 4)
    fitted = fit_reference_energies([1, 6, 8], counts, np.array([-4200.1, -4200.2, -4199.9, -4199.8]))
    assert 6 * fitted[1] + 2 * fitted[6] + fitted[8] == pytest.approx(-4200.0, rel=1e-12)


def test_reference_vector_is_in_float64_and_in_the_order_of_species() -> None:
    vector = reference_vector([1, 6, 8], {8: -2041.123456789012, 1: -13.6})
    assert vector.dtype == torch.float64
    assert vector.tolist() == [-13.6, 0.0, -2041.123456789012]
