"""Statistics of time series: means of blocks, and the drift of a total energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drift", "block_means", "energy_drift"]

Array = NDArray[np.float64]

#: Blocks whose means the error of a drift is estimated from.
_BLOCKS = 10


def block_means(values: Array, blocks: int = _BLOCKS) -> Array:
    """Means of consecutive blocks of equal size; what is left at the end is dropped.

    Means of blocks longer than the correlation time are nearly independent (Flyvbjerg and Petersen 1989,
    doi:10.1063/1.457480).

    Args:
        values: Equally spaced in time, shape (n,).
        blocks: How many; fewer than n values make as many blocks as there are values, or a few more.
    """
    size = max(1, len(values) // blocks)
    number = len(values) // size
    means: Array = values[: number * size].reshape(number, size).mean(axis=1)
    return means


@dataclass(frozen=True)
class Drift:
    """How well a run conserved its total energy.

    Attributes:
        slope: Drift by linear regression, meV/atom/ns.
        error: Its standard error, from block means.
        rms: Root mean square of the fluctuation about the line, meV (all atoms together).
        line: The fitted energies, eV, shape (n,).
    """

    slope: float
    error: float
    rms: float
    line: Array


def energy_drift(time: Array, energy: Array, num_atoms: int) -> Drift:
    """Linear regression of total energy on time.

    Energies of neighbouring steps go up and down together, so that the usual standard error would be far too small:
    it is that of a line through the means of 10 blocks.

    Args:
        time: ps, equally spaced, shape (n,).
        energy: Total energy, eV, shape (n,).
        num_atoms: Atoms that it belongs to.

    Raises:
        ValueError: For fewer than 3 values.
    """
    if len(time) < 3:
        raise ValueError(f"{len(time)} values are too few for a drift")
    slope, offset = np.polyfit(time, energy, 1)
    line: Array = offset + slope * time
    t, e = block_means(time), block_means(energy)
    residuals = e - np.polyval(np.polyfit(t, e, 1), t)
    error = np.sqrt(np.sum(residuals**2) / (len(t) - 2) / np.sum((t - t.mean()) ** 2))
    # eV/ps is 10³ meV/eV × 10³ ps/ns of meV/ns.
    scale = 1e6 / num_atoms
    return Drift(slope * scale, error * scale, 1e3 * float(np.std(energy - line)), line)
