"""Unit conversions against values from outside this package."""

from __future__ import annotations

import pytest

from ponita_ff.units import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    Units,
    canonical_energy_unit,
    energy_factor,
    force_factor,
    length_factor,
)


# Reference values: CODATA 2018, rounded; kcal is the thermochemical one (4184 J).
@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("kcal/mol", 0.0433641043),
        ("kJ/mol", 0.0103642697),
        ("Hartree", 27.2113862),
        ("Rydberg", 13.6056931),
    ],
)
def test_energy_values(unit: str, value: float) -> None:
    assert energy_factor(unit) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize(("unit", "value"), [("Angstrom", 1.0), ("Bohr", 0.529177211), ("nm", 10.0)])
def test_length_values(unit: str, value: float) -> None:
    assert length_factor(unit) == pytest.approx(value, rel=1e-8)


def test_every_unit_in_the_tables_has_been_given_a_reference_value() -> None:
    assert set(ENERGY_UNITS) == {"eV", "meV", "kcal/mol", "kJ/mol", "Hartree", "Rydberg"}
    assert set(LENGTH_UNITS) == {"Angstrom", "Bohr", "nm"}


def test_force_divides_by_the_length() -> None:
    assert force_factor("Hartree", "Bohr") == pytest.approx(51.4220675, rel=1e-7)


def test_stress_divides_by_the_volume() -> None:
    # Hartree/Bohr³ is 29421.0157 GPa, and 1 eV/Å³ is 160.2176634 GPa.
    assert Units("Ha", "a0").stress_factor == pytest.approx(29421.0157 / 160.2176634, rel=1e-7)


@pytest.mark.parametrize("unit", ["ev", "EV", " eV ", "Electronvolt"])
def test_energy_aliases(unit: str) -> None:
    assert canonical_energy_unit(unit) == "eV"


@pytest.mark.parametrize("unit", ["Ha", "Eh", "hartree"])
def test_hartree_aliases(unit: str) -> None:
    assert canonical_energy_unit(unit) == "Hartree"


@pytest.mark.parametrize("unit", ["ang", "Ang", "angstrom", "A", "\u00c5", "\u212b", "A\u030a"])
def test_angstrom_aliases(unit: str) -> None:
    assert length_factor(unit) == 1.0


def test_units_compare_by_meaning_not_by_spelling() -> None:
    assert Units("KCAL/MOL", "ang") == Units("kcal/mol", "Angstrom")
    assert Units("eV", "Bohr") != Units("eV", "Angstrom")


@pytest.mark.parametrize("unit", ["furlong", "", "Angstrom"])
def test_unknown_energy_unit_lists_the_known(unit: str) -> None:
    with pytest.raises(ValueError, match=r"kcal/mol.*Hartree"):
        energy_factor(unit)


def test_unknown_length_unit_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"Angstrom.*Bohr"):
        Units("eV", "eV")


def test_mega_is_not_milli() -> None:
    with pytest.raises(ValueError, match="mega"):
        energy_factor("MeV")
    assert energy_factor("mev") == 1e-3
