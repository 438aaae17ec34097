"""Check: energy and forces are continuous along scans of the energy surface, and consistent with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.scan_paths import PathPoint, ScanPath, all_paths
from ponita_ff.audit.settings import ScanSettings
from ponita_ff.audit.target import Array, AuditTarget

__all__ = ["Scan", "scan", "smoothness"]

#: Intervals on either side that an interval is compared with.
_HALF_WINDOW = 5

#: Points per interval of the refined test of the slope.
_REFINEMENT = 16

#: Difference between the ends a and b of an interval of a given width (Å).
Difference = Callable[[PathPoint, PathPoint, float], float]


def second_differences(values: Array) -> Array:
    """Return how far the change over each interval is from the mean change over its neighbours.

    Args:
        values: Values at equally spaced points, shape (k, ...).

    Returns:
        Shape (k − 1,): the largest over all other axes. Small where ``values`` are smooth.
    """
    differences = np.diff(values.reshape(len(values), -1), axis=0)
    padded = np.pad(differences, ((1, 1), (0, 0)), mode="edge")
    return np.asarray(np.abs(differences - 0.5 * (padded[:-2] + padded[2:])).max(axis=1))


def suspicious_intervals(values: Array, number: int) -> list[int]:
    """Return the intervals that may contain a jump.

    Args:
        values: Values at equally spaced points, shape (k, ...).
        number: How many intervals to take by each of two criteria: the largest second difference, absolute and
            relative to the median of the surroundings.
    """
    absolute = second_differences(values)
    padded = np.pad(absolute, _HALF_WINDOW, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HALF_WINDOW + 1)
    relative = absolute / (np.median(windows, axis=1) + 1e-3 * np.median(absolute) + 1e-12)
    return sorted({int(i) for criterion in (absolute, relative) for i in np.argsort(criterion)[-number:]})


def energy_residuals(points: list[PathPoint], spacing: float) -> Array:
    """Return the energies minus the trapezoidal integral of the slopes, eV, shape (k,).

    Nearly constant for a smooth energy; a jump stays.
    """
    energies = np.array([point.energy for point in points])
    slopes = np.array([0.0 if point.slope is None else point.slope for point in points])
    energies[1:] -= np.cumsum(0.5 * spacing * (slopes[:-1] + slopes[1:]))
    return energies


def energy_difference(a: PathPoint, b: PathPoint, width: float) -> float:
    """Return |E_b − E_a| minus the trapezoidal integral of the slope, eV."""
    integral = 0.0 if a.slope is None or b.slope is None else 0.5 * width * (a.slope + b.slope)
    return abs(b.energy - a.energy - integral)


def force_difference(a: PathPoint, b: PathPoint, _: float) -> float:
    """Return the largest difference of a force component, eV/Å."""
    return float(np.abs(b.forces - a.forces).max())


def jump_size(path: ScanPath, low: float, high: float, difference: Difference, bisections: int) -> float:
    """Return the size of the jump inside an interval, found by bisection.

    The interval is halved again and again, keeping the half with the larger difference. The difference of a continuous
    function shrinks with the interval; that of a jump does not. What one more bisection would remove, extrapolated from
    the last one, is subtracted, so that a steep slope does not count as a jump.

    Args:
        path: The path.
        low: Lower end of the interval, Å.
        high: Upper end, Å.
        difference: The difference to follow.
        bisections: Number of bisections.
    """
    a, b = path.point(low), path.point(high)
    before = difference(a, b, high - low)
    for _ in range(bisections):
        middle = 0.5 * (low + high)
        c = path.point(middle)
        before = difference(a, b, high - low)
        if difference(a, c, middle - low) >= difference(c, b, high - middle):
            high, b = middle, c
        else:
            low, a = middle, c
    return max(2 * difference(a, b, high - low) - before, 0.0)


def slope_errors(points: list[PathPoint], spacing: float) -> Array:
    """Return (E_k+1 − E_k) minus the integral of the slope, divided by the spacing, eV/Å.

    The integral is that of the cubic through four points: h/24 (−g_k−1 + 13 g_k + 13 g_k+1 − g_k+2).

    Returns:
        Shape (k − 3,): all intervals but the first and the last. NaN where there is no slope.
    """
    slopes = np.array([np.nan if point.slope is None else point.slope for point in points])
    energies = np.array([point.energy for point in points])
    integral = (-slopes[:-3] + 13 * slopes[1:-2] + 13 * slopes[2:-1] - slopes[3:]) / 24
    return np.asarray(np.diff(energies)[1:-1] / spacing - integral)


def refined_slope_error(path: ScanPath, low: float, high: float) -> float:
    """Return the slope error of one interval from a finer grid, which removes the error of the integration, eV/Å."""
    spacing = (high - low) / _REFINEMENT
    points = [path.point(low + k * spacing) for k in range(-1, _REFINEMENT + 2)]
    return float(abs(slope_errors(points, spacing).mean()))


@dataclass(frozen=True)
class Scan:
    """Result of the scan of one path.

    Attributes:
        energy: Largest jump of the energy, eV.
        force: Largest jump of a force component, eV/Å.
        slope: Largest difference of the force along the path from the derivative of the energy, eV/Å; NaN if there is
            no slope.
        arrays: Data of the plot; see `smoothness`.
    """

    energy: float
    force: float
    slope: float
    arrays: dict[str, Array | float]


def _largest_jump(path: ScanPath, values: Array, difference: Difference, settings: ScanSettings) -> tuple[float, float]:
    """Return the size of the largest jump and where it is, Å."""
    found = [(0.0, float(path.values[0]))]
    for i in suspicious_intervals(values, settings.bisected_intervals):
        low, high = float(path.values[i]), float(path.values[i + 1])
        found.append((jump_size(path, low, high, difference, settings.bisections), low))
    return max(found)


def _largest_slope_error(path: ScanPath, points: list[PathPoint], settings: ScanSettings) -> tuple[float, float]:
    """Return the largest slope error, eV/Å, and where it is, Å; NaN if there is no slope."""
    errors = np.abs(slope_errors(points, settings.spacing))
    if not len(errors) or not np.isfinite(errors).all():
        return float("nan"), float(path.values[0])
    worst = np.argsort(errors)[-settings.bisected_intervals :]
    intervals = [path.values[[i + 1, i + 2]].tolist() for i in worst]
    return max((refined_slope_error(path, low, high), low) for low, high in intervals)


def scan(path: ScanPath, settings: ScanSettings) -> Scan:
    """Calculate all points of a path, and search it for jumps and wrong slopes."""
    points = [path.point(float(s)) for s in path.values]
    energies, forces = np.array([point.energy for point in points]), np.array([point.forces for point in points])
    slopes = np.array([np.nan if point.slope is None else point.slope for point in points])
    energy = _largest_jump(path, energy_residuals(points, settings.spacing), energy_difference, settings)
    force = _largest_jump(path, forces, force_difference, settings)
    slope = _largest_slope_error(path, points, settings)
    origin = int(np.abs(path.values).argmin())
    arrays: dict[str, Array | float] = {"s": path.values, "energy": energies - energies[origin], "slope": slopes}
    arrays |= {"energy_worst_at": energy[1], "force_worst_at": force[1], "slope_worst_at": slope[1]}
    return Scan(energy[0], force[0], slope[0], arrays)


def smoothness(target: AuditTarget) -> CheckResult:
    """Scan bonds, a detached atom and the rotated molecule; for periodic structures bonds and the expanded cell.

    Returns:
        One mapping of arrays per path: ``s`` (k,), Å; ``energy`` (k,), eV, relative to the undisplaced structure;
        ``slope`` (k,), eV/Å, from the forces; ``energy_worst_at``, ``force_worst_at`` and ``slope_worst_at``, Å.

    Raises:
        CheckSkipped: For a single atom.
    """
    settings = target.settings.scans
    scans = {path.name: scan(path, settings) for path in all_paths(target)}
    if not scans:
        raise CheckSkipped("a single atom has no scans")
    measurements, notes = [], []
    for title, attribute, unit, limit in (
        ("largest jump of the energy", "energy", "eV", settings.energy_limit),
        ("largest jump of a force component", "force", "eV/Å", settings.force_limit),
        ("force along the scan against dE/ds", "slope", "eV/Å", settings.slope_limit),
    ):
        sizes = {name: getattr(found, attribute) for name, found in scans.items()}
        finite = {name: size for name, size in sizes.items() if np.isfinite(size)}
        if not finite:
            measurements.append(Measurement(title, None, unit, note="needs the calculator's stress"))
            continue
        worst = max(finite, key=finite.__getitem__)
        measurements.append(Measurement(title, finite[worst], unit, limit))
        if measurements[-1].verdict == "fail":
            place = scans[worst].arrays[f"{attribute}_worst_at"]
            notes.append(f"{title[0].upper()}{title[1:]}: {worst}, at {place:.2f} Å.")
    return CheckResult(measurements, {name: found.arrays for name, found in scans.items()}, notes)
