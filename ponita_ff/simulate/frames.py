"""Structures with their results, as files keep them: those that ASE knows, and a committee's spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

__all__ = ["as_traj_keeps_it", "spread_of", "with_results"]

#: Standard deviations over a committee's members, eV and eV/Å: results that ASE's classes for stored results refuse.
_SPREAD = ("energy_std", "forces_std")


def spread_of(calculator: Any) -> dict[str, Any]:
    """A committee's last spread by name; empty for other calculators."""
    results = getattr(calculator, "results", {})
    return {name: results[name] for name in _SPREAD if name in results}


def with_results(atoms: Atoms, results: Mapping[str, Any]) -> Atoms:
    """A copy with results of a calculator.

    Args:
        atoms: Any.
        results: By ASE's names; ``energy_std`` (eV) goes to ``info``, ``forces_std`` (n, 3) in eV/Å to ``arrays``.
    """
    frame = atoms.copy()
    for name in _SPREAD:  # of an earlier calculator, from the file that the structure came from
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    known = {name: value for name, value in results.items() if name not in _SPREAD}
    frame.calc = SinglePointCalculator(frame, **known)
    if "energy_std" in results:
        frame.info["energy_std"] = float(results["energy_std"])
    if "forces_std" in results:
        frame.arrays["forces_std"] = results["forces_std"].copy()
    return frame


def as_traj_keeps_it(frame: Atoms) -> Atoms:
    """The frame, its ``forces_std`` moved to ``info``: ASE's ``.traj`` files keep ``info``, but no further arrays."""
    if "forces_std" not in frame.arrays:
        return frame
    kept = frame.copy()
    kept.calc = frame.calc
    kept.info["forces_std"] = kept.arrays.pop("forces_std")
    return kept
