"""Picture of a run of molecular dynamics: temperature, energy, bonds, and what else its log holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponita_ff.simulate.plots import COLOURS, picture, plot_with_mean
from ponita_ff.simulate.statistics import Drift

__all__ = ["plot_md"]

Array = NDArray[np.float64]


def plot_md(
    log: Mapping[str, Array],
    title: str,
    path: Path,
    target: float | None = None,
    bond_limit: float | None = None,
    drift: Drift | None = None,
) -> None:
    """Panels over time, as many as the log has to tell.

    Args:
        log: Columns by name, as ``read_log`` gives them; two rows or more.
        title: Of the picture.
        path: PNG file.
        target: Temperature of the thermostat, K; None for none.
        bond_limit: Å, drawn beside the bonds' changes; None for no limit.
        drift: Of the total energy, of a run at constant energy; the potential energy is shown where there is none.
    """
    periodic, committee = "volume_A3" in log, "forces_std_eV_per_A" in log
    rows = 3 + 2 * periodic + committee
    with picture(path, rows=rows, size=(8.0, 1.0 + 1.9 * rows)) as panels:
        remaining = iter(panels)
        time = log["time_ps"]
        panels[0].set_title(title)
        _temperature(next(remaining), time, log["temperature_K"], target)
        _energy(next(remaining), log, drift)
        _bonds(next(remaining), time, log["bond_change_A"], bond_limit)
        if periodic:
            _series(next(remaining), time, log["pressure_GPa"], "pressure\n(GPa)", COLOURS[1])
            _series(next(remaining), time, log["volume_A3"], "volume\n(Å³)", COLOURS[2])
        if committee:
            panel = next(remaining)
            _series(panel, time, log["forces_std_eV_per_A"], "largest force\nuncertainty\n(eV/Å)", COLOURS[3])
            panel.set_ylim(bottom=0)
        panels[-1].set_xlabel("time (ps)")
        panels[-1].set_xlim(time[0], time[-1])


def _series(panel: Any, time: Array, values: Array, label: str, colour: str, legend: str = "running mean") -> None:
    """One quantity faintly, its running mean on top."""
    plot_with_mean(panel, time, values, colour, legend)
    panel.set_ylabel(label)


def _temperature(panel: Any, time: Array, values: Array, target: float | None) -> None:
    _series(panel, time, values, "temperature\n(K)", COLOURS[1])
    if target is not None:
        panel.axhline(target, color="black", linestyle="--", linewidth=1, label=f"thermostat: {target:g} K")
    panel.axhline(values.mean(), color=COLOURS[1], linestyle=":", linewidth=1, label=f"mean: {values.mean():.0f} K")
    panel.set_ylim(0, 1.4 * values.max())
    panel.legend(ncols=3, loc="upper right", fontsize=9)


def _energy(panel: Any, log: Mapping[str, Array], drift: Drift | None) -> None:
    """Total energy with its drift, or potential energy, from the first one."""
    time = log["time_ps"]
    if drift is None:
        change = log["potential_eV"] - log["potential_eV"][0]
        _series(panel, time, change, "potential energy\n− first (eV)", COLOURS[0])
        return
    change = 1e3 * (log["total_eV"] - log["total_eV"][0])
    _series(panel, time, change, "total energy\n− first (meV)", COLOURS[0])
    label = f"drift {drift.slope:.2g} ± {drift.error:.1g} meV/atom/ns"
    panel.plot(time, 1e3 * (drift.line - log["total_eV"][0]), color="black", label=label, zorder=4)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.4 * (high - low))
    panel.legend(ncols=2, loc="upper right", fontsize=9)


def _bonds(panel: Any, time: Array, changes: Array, limit: float | None) -> None:
    panel.plot(time, changes, color=COLOURS[2], linewidth=0.8)
    panel.set_ylabel("largest bond\nchange (Å)")
    if limit is not None:
        panel.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"broken beyond {limit:g} Å")
        panel.legend(loc="upper right", fontsize=9)
    panel.set_ylim(0, 1.35 * max(limit or 0.0, changes.max(), 1e-3))
