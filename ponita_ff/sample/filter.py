"""Which frames are left out, whatever the others are."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from ponita_ff.sample.geometry import Connectivity, closest_ratio
from ponita_ff.sample.settings import FilterSettings

__all__ = ["refusal"]


def refusal(atoms: Atoms, connectivity: Connectivity | None, settings: FilterSettings) -> str | None:
    """Why a frame is left out, in a few words; None if it is kept.

    Args:
        atoms: With a calculator.
        connectivity: Bonds that it must have; None if it may have any.
        settings: What is left out.
    """
    if not np.isfinite(atoms.positions).all():
        return "positions not finite"
    if closest_ratio(atoms) < settings.closest:
        return "atoms too close"
    if settings.broken and connectivity is not None and connectivity.problem(atoms) is not None:
        return "broken"
    if settings.max_force is None:
        return None
    try:
        largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except Exception as error:  # calculators may raise anything, of a geometry that others need not share
        return f"no forces ({type(error).__name__})"
    if not np.isfinite(largest):
        return "forces not finite"
    return "force too large" if largest > settings.max_force else None
