"""Conversion of energies and lengths to the units of this package, eV and Å.

Everything in ``ponita_ff`` is in eV, Å, eV/Å (forces) and eV/Å³ (stress, with the sign of ASE). Values of the units are
those of ``ase.units``. No other module handles other units.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ase import units as _ase

__all__ = [
    "ENERGY_UNITS",
    "EV_ANGSTROM",
    "LENGTH_UNITS",
    "Units",
    "canonical_energy_unit",
    "canonical_length_unit",
    "energy_factor",
    "force_factor",
    "length_factor",
]

ENERGY_UNITS: Mapping[str, float] = MappingProxyType(
    {
        "eV": 1.0,
        "meV": 1e-3,
        "kcal/mol": _ase.kcal / _ase.mol,
        "kJ/mol": _ase.kJ / _ase.mol,
        "Hartree": _ase.Hartree,
        "Rydberg": _ase.Rydberg,
    }
)
"""Accepted energy units, and their values in eV."""

LENGTH_UNITS: Mapping[str, float] = MappingProxyType({"Angstrom": 1.0, "Bohr": _ase.Bohr, "nm": _ase.nm})
"""Accepted length units, and their values in Å."""

_ENERGY_ALIASES = {
    "electronvolt": "eV",
    "kcal mol-1": "kcal/mol",
    "kcal mol^-1": "kcal/mol",
    "kj mol-1": "kJ/mol",
    "kj mol^-1": "kJ/mol",
    "ha": "Hartree",
    "eh": "Hartree",
    "ry": "Rydberg",
}
_LENGTH_ALIASES = {
    "ang": "Angstrom",
    "angstroms": "Angstrom",
    "a": "Angstrom",
    "å": "Angstrom",
    "ångström": "Angstrom",
    "a0": "Bohr",
    "nanometer": "nm",
    "nanometre": "nm",
}


def _fold(unit: str) -> str:
    # NFKC maps the Angstrom sign (U+212B) to the letter Å, so that both are recognised.
    return unicodedata.normalize("NFKC", unit).strip().casefold()


def _table(names: Mapping[str, float], aliases: Mapping[str, str]) -> dict[str, str]:
    return {_fold(name): name for name in names} | {_fold(k): v for k, v in aliases.items()}


_ENERGY_NAMES = _table(ENERGY_UNITS, _ENERGY_ALIASES)
_LENGTH_NAMES = _table(LENGTH_UNITS, _LENGTH_ALIASES)


def canonical_energy_unit(unit: str) -> str:
    """The name in `ENERGY_UNITS` for any accepted spelling of a unit.

    Raises:
        ValueError: The unit is unknown; the message lists the accepted ones.
    """
    # Case is ignored except here: mega and milli differ by a factor of 10⁹.
    if unit.strip() == "MeV":
        raise ValueError("energy unit 'MeV' means mega-electronvolt; write 'meV' for milli-electronvolt")
    name = _ENERGY_NAMES.get(_fold(unit))
    if name is None:
        raise ValueError(
            f"unknown energy unit {unit!r}; accepted: {', '.join(ENERGY_UNITS)} "
            f"(also {', '.join(_ENERGY_ALIASES)}; case is ignored)"
        )
    return name


def canonical_length_unit(unit: str) -> str:
    """The name in `LENGTH_UNITS` for any accepted spelling of a unit.

    Raises:
        ValueError: The unit is unknown; the message lists the accepted ones.
    """
    name = _LENGTH_NAMES.get(_fold(unit))
    if name is None:
        raise ValueError(
            f"unknown length unit {unit!r}; accepted: {', '.join(LENGTH_UNITS)} "
            f"(also {', '.join(_LENGTH_ALIASES)}; case is ignored)"
        )
    return name


def energy_factor(unit: str) -> float:
    """Value of one ``unit`` of energy in eV.

    Raises:
        ValueError: The unit is unknown.
    """
    return ENERGY_UNITS[canonical_energy_unit(unit)]


def length_factor(unit: str) -> float:
    """Value of one ``unit`` of length in Å.

    Raises:
        ValueError: The unit is unknown.
    """
    return LENGTH_UNITS[canonical_length_unit(unit)]


def force_factor(energy_unit: str, length_unit: str) -> float:
    """Value of one ``energy_unit``/``length_unit`` in eV/Å.

    Raises:
        ValueError: One of the units is unknown.
    """
    return energy_factor(energy_unit) / length_factor(length_unit)


@dataclass(frozen=True)
class Units:
    """Units of a file: forces are in energy/length, stress in energy/length³.

    Attributes:
        energy, length: Canonical names; the constructor accepts any known spelling.

    Raises:
        ValueError: One of the units is unknown.
    """

    energy: str
    length: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", canonical_energy_unit(self.energy))
        object.__setattr__(self, "length", canonical_length_unit(self.length))

    @property
    def energy_factor(self) -> float:
        """Factor from energies of the file to eV."""
        return ENERGY_UNITS[self.energy]

    @property
    def length_factor(self) -> float:
        """Factor from lengths of the file to Å."""
        return LENGTH_UNITS[self.length]

    @property
    def force_factor(self) -> float:
        """Factor from forces of the file to eV/Å."""
        return self.energy_factor / self.length_factor

    @property
    def stress_factor(self) -> float:
        """Factor from stresses of the file to eV/Å³."""
        return self.energy_factor / self.length_factor**3

    def __str__(self) -> str:
        return f"{self.energy} and {self.length}"


EV_ANGSTROM = Units("eV", "Angstrom")
"""Units of this package and of ASE."""
