"""Positions, cells and cutoffs as lists of neighbours take them: what is refused, and why.

Both lists are made of what is checked here, numpy's (neighbours.py) and torch's (device_neighbours.py), so that they
refuse the same input with the same words. Lengths are in Å.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MAX_COORDINATE",
    "PBC",
    "ROUNDING",
    "Bools",
    "Floats",
    "Ints",
    "as_floats",
    "check_cell",
    "check_cutoff",
    "check_lattice",
    "check_pbc",
    "check_positions",
    "complete_cell",
    "is_number",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
PBC = bool | Sequence[bool] | Bools

#: Largest coordinate accepted, in Å. Beyond it float64 resolves less than 1e-7 Å, and what is
#: really there is an exploded simulation or wrong units.
MAX_COORDINATE = 1e9

#: Thinnest cell accepted along a periodic direction, in Å.
MIN_THICKNESS = 1e-3

#: A periodic cell may be at most this many times thinner than the cutoff. Each atom would
#: otherwise see thousands of its own images, which is a broken cell, not a crystal.
MAX_IMAGES = 1000

#: Bound on relative rounding errors in wrapping atoms and in computing distances, a safe multiple
#: of the float64 epsilon of 2.2e-16.
ROUNDING = 1e-14


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number (bools do not count)."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def as_floats(values: ArrayLike, name: str) -> Floats:
    """``values`` as a float64 array; ValueError naming the argument if that is impossible."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"dtype is {array.dtype}")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers, but {error}") from error


def check_cutoff(cutoff: float | None) -> float:
    """Cutoff as a float, None as infinity."""
    if cutoff is None:
        return math.inf
    if not is_number(cutoff) or not cutoff > 0.0:
        raise ValueError(
            f"cutoff must be a length in Å greater than 0, but is {cutoff!r}: pass a positive "
            "number, or None for all pairs of a molecule"
        )
    return float(cutoff)


def check_positions(positions: ArrayLike) -> Floats:
    """Positions as float64, shape (N, 3), all finite and of sane size."""
    points = as_floats(positions, "positions")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"positions must have shape (N, 3), one row for each atom, but have shape {points.shape}")
    # One pass in the usual case: the comparison is false for NaN and infinity too.
    if len(points) and not np.abs(points).max() <= MAX_COORDINATE:
        bad = int(np.nonzero(~(np.abs(points) <= MAX_COORDINATE).all(axis=1))[0][0])
        problem = f"larger than {MAX_COORDINATE:g} Å" if np.isfinite(points[bad]).all() else "not finite"
        raise ValueError(
            f"position of atom {bad} is {points[bad].tolist()}, {problem}: check the input "
            "structure and its units, or, in a simulation, the time step and the forces"
        )
    return points


def check_pbc(pbc: PBC) -> Bools:
    """Periodicity as three bools."""
    flags = np.asarray(pbc)
    if flags.dtype != np.bool_ or flags.shape not in ((), (3,)):
        raise ValueError(f"pbc must be True, False or three bools, but is {pbc!r}")
    return np.full(3, flags) if flags.ndim == 0 else flags


def check_cell(cell: ArrayLike) -> Floats:
    """Cell as float64, shape (3, 3), all finite."""
    matrix = as_floats(cell, "cell")
    if matrix.shape != (3, 3):
        raise ValueError(f"cell must have shape (3, 3) with the cell vectors as rows, but has shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"cell must be finite, but is {matrix.tolist()}")
    return matrix


def check_lattice(cell: ArrayLike | None, pbc: PBC, cutoff: float) -> tuple[Floats, Bools]:
    """Cell (3, 3), zeros if None, and three bools, fit for each other and for the cutoff."""
    periodic = check_pbc(pbc)
    matrix = np.zeros((3, 3)) if cell is None else check_cell(cell)
    if not periodic.any():
        return matrix, periodic
    axes = [int(axis) for axis in np.nonzero(periodic)[0]]
    if cutoff == math.inf:
        raise ValueError(
            "cutoff is None or infinite (all pairs) but pbc is True along "
            f"{' and '.join('abc'[axis] for axis in axes)}, where atoms have infinitely many "
            "images: pass a finite cutoff or pbc=False"
        )
    for axis in axes:
        if not matrix[axis].any():
            raise ValueError(
                f"pbc is True along {'abc'[axis]} but cell vector {'abc'[axis]} is zero or "
                f"missing: pass a cell with that vector or set pbc to False along {'abc'[axis]}"
            )
    thinnest = max(MIN_THICKNESS, cutoff / MAX_IMAGES)
    for axis in axes:
        thickness = _thickness(matrix[axis], matrix[[other for other in axes if other != axis]])
        if thickness < thinnest:
            raise ValueError(
                f"pbc is True along {'abc'[axis]} but the cell is singular or too flat: its "
                f"thickness along {'abc'[axis]} is {thickness:.3g} Å, at least {thinnest:.3g} Å "
                f"is needed with cutoff {cutoff:g} Å. Pass linearly independent cell vectors, "
                f"got {matrix.tolist()}"
            )
    return matrix, periodic


def _thickness(vector: Floats, others: Floats) -> float:
    """Length of the part of ``vector`` (3,) orthogonal to the rows of ``others`` (0 to 2, 3)."""
    if len(others) == 0:
        return math.hypot(*vector)
    if len(others) == 1:
        unit = others[0] / math.hypot(*others[0])
        return math.hypot(*(vector - (vector @ unit) * unit))
    normal = _cross(others[0], others[1])
    area = math.hypot(*normal)
    volume = sum(v * n for v, n in zip(vector.tolist(), normal, strict=True))
    return abs(volume) / area if area else 0.0


def _cross(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Cross product of two vectors (np.cross takes 20 times as long)."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def complete_cell(cell: Floats, pbc: Bools) -> Floats:
    """Cell (3, 3) with orthonormal vectors, normal to the periodic ones, along open directions."""
    if pbc.all():
        return cell
    completed = cell.copy()
    if not pbc.any():
        completed[:] = np.eye(3)
    else:
        # The last right singular vectors span the space normal to the periodic cell vectors.
        completed[~pbc] = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :]
    return completed
