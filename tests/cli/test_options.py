"""Options that several commands share."""

from __future__ import annotations

import pytest
from click import UsageError

from ponita_ff.cli.options import _units
from ponita_ff.units import Units


def test_units_from_two_options() -> None:
    assert _units("ha", "bohr") == Units("Hartree", "Bohr")
    assert _units(None, None) is None
    with pytest.raises(UsageError, match="together"):
        _units("eV", None)
    for given in (("", ""), ("eV", ""), ("", "Angstrom")):
        with pytest.raises(ValueError, match=r"unknown (energy|length) unit ''"):
            _units(*given)
