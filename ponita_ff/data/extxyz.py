"""Labelled frames of extended XYZ files. Their text is read by `ponita_ff.data.xyz`, and parsed by ASE.

ASE defines eV and Å for this format, but other programs write other units. So a file is read as eV and Å only if no
entry of a comment line states other units (``units``, ``energy_unit``, ``length_unit``, ``forces_unit`` and similar
names).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ponita_ff.data.frames import (
    DataError,
    Frame,
    require_units,
    stress_matrix,
)
from ponita_ff.data.xyz import XyzText, iter_texts
from ponita_ff.units import EV_ANGSTROM, Units, canonical_energy_unit, canonical_length_unit

__all__ = ["iter_extxyz", "marked_units", "read_isolated_atoms"]

_LOG = logging.getLogger(__name__)

_ENERGY_UNIT_KEY = re.compile(r"e(nergy)?_?units?|units?_energy", re.IGNORECASE)
_LENGTH_UNIT_KEY = re.compile(r"(r|length|distance|positions?)_?units?|units?_(length|positions?)", re.IGNORECASE)
_FORCE_UNIT_KEY = re.compile(r"f(orces?)?_?units?|units?_forces?", re.IGNORECASE)
_UNITS_KEY = re.compile(r"units?", re.IGNORECASE)
_ALL_UNIT_KEYS = (_ENERGY_UNIT_KEY, _LENGTH_UNIT_KEY, _FORCE_UNIT_KEY, _UNITS_KEY)


@dataclass(frozen=True)
class _StatedUnits:
    """Units that the comment line of one frame states; None where it states none."""

    energy: str | None = None
    length: str | None = None

    def units(self) -> Units | None:
        if self.energy is None and self.length is None:
            return None
        # What is not stated is as ASE defines it.
        return Units(self.energy or "eV", self.length or "Angstrom")


def _split_compound(text: str) -> tuple[str | None, str | None]:
    """Parse ``"kcal/mol/Ang"``, ``"eV, Å"`` or ``"eV"`` as (energy, length)."""
    try:
        return canonical_energy_unit(text), None
    except ValueError:
        energy, separator, length = re.sub(r"\s*[,;]\s*|\s+and\s+", "/", text).rpartition("/")
        if not separator:
            return None, canonical_length_unit(text)
        return canonical_energy_unit(energy), canonical_length_unit(length)


def _stated_units(info: Mapping[str, Any], where: str, stated: Units | None) -> _StatedUnits:
    """The units that one frame states.

    Raises:
        DataError: An entry is not understood and the user states no units, or two entries of the frame contradict each
            other.
    """
    energies: dict[str, str] = {}
    lengths: dict[str, str] = {}
    for key, value in info.items():
        try:
            energy, length = _parse_entry(key, _entry_text(value))
        except ValueError as error:
            if stated is None:
                text = f"{where}: {key}={value!r} is not understood; state the units ({error})"
                raise DataError(text) from error
            _LOG.warning("%s: %s=%r is not understood; read as %s", where, key, value, stated)
            continue
        if energy is not None:
            energies[key] = energy
        if length is not None:
            lengths[key] = length
    for found in (energies, lengths):
        if len(set(found.values())) > 1:
            raise DataError(f"{where}: mixed units in one frame: {found}")
    return _StatedUnits(next(iter(energies.values()), None), next(iter(lengths.values()), None))


def marked_units(info: Mapping[str, Any], where: str) -> Units | None:
    """The units that a frame's comment line states; None where it states none.

    Raises:
        DataError: An entry is not understood, or two of them contradict each other; the message names ``where``.
    """
    return _stated_units(info, where, None).units()


def _entry_text(value: Any) -> str:
    # ASE reads a quoted list of words ("eV, Angstrom") as an array of strings.
    return "/".join(str(v) for v in value) if isinstance(value, np.ndarray | list) else str(value)


def _parse_entry(key: str, text: str) -> tuple[str | None, str | None]:
    if _ENERGY_UNIT_KEY.fullmatch(key):
        return canonical_energy_unit(text), None
    if _LENGTH_UNIT_KEY.fullmatch(key):
        return None, canonical_length_unit(text)
    if _FORCE_UNIT_KEY.fullmatch(key) or _UNITS_KEY.fullmatch(key):
        return _split_compound(text)
    return None, None


@dataclass(frozen=True)
class _Read:
    """One frame of the file: ASE's atoms, and the entries of its comment line before ASE moved some of them."""

    number: int
    where: str
    atoms: Atoms
    entries: Mapping[str, Any]


def _iter_frames(path: Path, index: slice | None, labels: frozenset[str]) -> Iterator[_Read]:
    """The selected frames. The file is read up to the last of them."""

    def matters(key: str) -> bool:
        return key in labels or any(pattern.fullmatch(key) for pattern in _ALL_UNIT_KEYS)

    for text in _select(path, slice(None) if index is None else index):
        atoms, entries = text.parse(matters)
        yield _Read(text.number, text.source, atoms, entries)


def _select(path: Path, index: slice) -> Iterator[XyzText]:
    if all(value is None or value >= 0 for value in (index.start, index.stop, index.step)):
        yield from islice(iter_texts(path), index.start, index.stop, index.step)
        return
    # An index from the end needs the number of frames.
    chosen = range(sum(1 for _ in iter_texts(path)))[index]
    texts = (text for text in iter_texts(path) if text.number in chosen)
    yield from texts if chosen.step > 0 else reversed(list(texts))


def _results(atoms: Atoms) -> Mapping[str, Any]:
    return {} if atoms.calc is None else atoms.calc.results


def _label(atoms: Atoms, key: str, *, per_atom: bool) -> Any | None:
    """A label by name. ASE moves names that it knows from the atoms to their calculator."""
    entries = atoms.arrays if per_atom else atoms.info
    return entries[key] if key in entries else _results(atoms).get(key)


def _missing(atoms: Atoms, key: str, what: str, where: str) -> DataError:
    found = sorted(set(atoms.info) | set(_results(atoms)))
    arrays = sorted(set(atoms.arrays) - {"numbers", "positions"})
    # ``energy_spread`` and ``forces_spread`` are no labels, but how much an ensemble disagrees about them.
    names = (name for name in (*found, *arrays) if not name.lower().endswith("_spread"))
    similar = [name for name in names if what in name.lower() and name != key]
    hint = f"; is it {what}_key={similar[0]!r}?" if similar else ""
    return DataError(
        f"{where}: no {what} (looked for {key!r}). The frame has {found} per frame and {arrays} per atom{hint}"
    )


def _stress(frame: _Read, key: str | None) -> np.ndarray | None:
    """The stress in the units of the file."""
    if key in (None, "stress"):
        # ASE keeps six of the nine numbers.
        value = frame.entries.get("stress")
        if value is None and key is None:
            return None
    else:
        value = _label(frame.atoms, key, per_atom=False)
    return stress_matrix(_found(value, frame, key or "stress", "stress"), frame.where)


def _found(value: Any | None, frame: _Read, key: str, what: str) -> Any:
    if value is None:
        raise _missing(frame.atoms, key, what, frame.where)
    return value


def iter_extxyz(
    path: str | Path,
    *,
    units: Units | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    index: slice | None = None,
    read_stress: bool = True,
) -> Iterator[Frame]:
    """Frames of an extended XYZ file, one after the other; arguments as for `read_frames`.

    Only one frame is in memory at a time, so that a large file can be passed on to `write_hdf5`.

    Raises:
        DataError: Damaged file; missing labels (the message lists those of the frame); units that contradict each
            other; a stress in some frames only.
    """
    path = Path(path)
    labels = frozenset({energy_key or "energy", forces_key or "forces", stress_key or "stress"})
    first: tuple[int, _StatedUnits, bool] | None = None
    for frame in _iter_frames(path, index, labels):
        stated = _stated_units(frame.atoms.info, frame.where, units)
        stress = _stress(frame, stress_key) if read_stress else None
        this = (frame.number, stated, stress is not None)
        if first is None:
            first = this
            _warn_about_other_energies(frame.atoms, energy_key, frame.where)
        _check_consistent(path, first, this, units)
        # If neither the frame nor the user states units, they are those that ASE defines for the format.
        default = EV_ANGSTROM if units is None else None
        frame_units = require_units(path, units, stated.units() or default, f"frame {frame.number} states")
        yield _to_frame(frame, frame_units, energy_key or "energy", forces_key or "forces", stress)


def _check_consistent(
    path: Path,
    first: tuple[int, _StatedUnits, bool],
    this: tuple[int, _StatedUnits, bool],
    units: Units | None,
) -> None:
    (number_1, stated_1, stress_1), (number_2, stated_2, stress_2) = first, this
    # Units from the user are compared with each frame elsewhere, and apply to frames that state none.
    if units is None and stated_1 != stated_2:
        raise DataError(
            f"{path}: mixed units: frame {number_1} states {stated_1.units()}, frame {number_2} {stated_2.units()}"
        )
    if stress_1 != stress_2:
        with_stress, without = (number_1, number_2) if stress_1 else (number_2, number_1)
        raise DataError(
            f"{path}: frame {with_stress} has a stress and frame {without} has none; "
            "complete the file or read it without stresses (read_stress=False)"
        )


def _warn_about_other_energies(atoms: Atoms, energy_key: str | None, where: str) -> None:
    if energy_key is not None:
        return
    others = [key for key in atoms.info if key.lower().endswith("_energy") and key != "free_energy"]
    if others and "energy" in _results(atoms):
        _LOG.warning("%s: reading 'energy'; the file also has %s", where, ", ".join(others))


def _to_frame(frame: _Read, units: Units, energy_key: str, forces_key: str, stress: np.ndarray | None) -> Frame:
    atoms = frame.atoms
    return Frame.in_units(
        units,
        numbers=atoms.numbers,
        positions=atoms.positions,
        # The cell of a frame without periodicity has no meaning and must not be used.
        cell=atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3)),
        pbc=atoms.pbc,
        energy=_found(_label(atoms, energy_key, per_atom=False), frame, energy_key, "energy"),
        forces=_found(_label(atoms, forces_key, per_atom=True), frame, forces_key, "forces"),
        stress=stress,
        source=frame.where,
    )


def read_isolated_atoms(
    path: str | Path, *, units: Units | None = None, energy_key: str | None = None
) -> dict[int, float]:
    """Energies of isolated atoms from an extended XYZ file of frames with one atom each; forces are not needed.

    Returns:
        Atomic number to energy in eV.

    Raises:
        DataError: A frame without exactly one atom or without an energy, an element given twice, no frames, units that
            contradict each other.
    """
    path, key = Path(path), energy_key or "energy"
    energies: dict[int, float] = {}
    for frame in _iter_frames(path, None, frozenset({key})):
        atoms, where = frame.atoms, frame.where
        if len(atoms) != 1:
            raise DataError(f"{where}: {len(atoms)} atoms in a file of isolated atoms")
        element = int(atoms.numbers[0])
        if element in energies:
            raise DataError(f"{where}: {atoms.symbols[0]} is given twice")
        stated = _stated_units(atoms.info, where, units).units()
        default = EV_ANGSTROM if units is None else None
        used = require_units(path, units, stated or default, f"frame {frame.number} states")
        # Its energy passes the checks of a frame; forces are those of a free atom.
        energy = _found(_label(atoms, key, per_atom=False), frame, key, "energy")
        unlabelled = np.zeros((1, 3))
        energies[element] = Frame.in_units(
            used,
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=np.bool_),
            energy=energy,
            forces=unlabelled,
            source=where,
        ).energy
    if not energies:
        raise DataError(f"{path}: no frames")
    return energies
