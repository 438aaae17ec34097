"""The gallery of shipped potentials: a row and a picture each, from their files and their ``card.json``."""

from __future__ import annotations

import json
from typing import Any

from ponita_ff.potential.header import read_header
from ponita_ff.potential.shipped import ShippedPotential, list_shipped

_COLUMNS = (
    "potential",
    "elements",
    "labels",
    "frames",
    "force MAE (meV/Å)",
    "energy MAE (meV)",
    "over rotations (meV)",
    "drift (meV/atom/ns)",
    "whole at 500 K (ps)",
    "ms",
    "network",
)


def table() -> str:
    """A Markdown table with a row for each potential."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(one))} |" for one in list_shipped())])


def pictures() -> str:
    """Parity of each potential, linked to its card; Markdown."""
    return "\n".join(
        f"[![Parity of {one.name} on its test frames](../potentials/{one.name}/parity.png)<br>{one.name}]"
        f"(../potentials/{one.name}/README.md)"
        for one in list_shipped()
    )


def _cells(one: ShippedPotential) -> tuple[str, ...]:
    header = read_header(one.file)
    card: dict[str, Any] = json.loads(one.file.with_name("card.json").read_text(encoding="utf-8"))
    network, test = header["network"], header["metadata"]["errors"]["test"]
    turned, nve, nvt = card["rotations"][0], card["nve"], card["nvt"]
    broken = nvt["broken_at_ps"]
    return (
        f"[{one.name}](../potentials/{one.name}/README.md)",
        " ".join(one.elements),
        one.level or "see card",
        f"{one.training_frames:,}",
        f"{1e3 * test['forces_mae']:.2f}",
        f"{1e3 * test['energy_mae']:.2f}",
        f"{turned['peak_to_peak_meV']:.2f}",
        f"{nve['drift_meV_per_atom_per_ns']:.2f} ± {nve['drift_standard_error']:.2f}",
        f"{nvt['picoseconds']:g}" if broken is None else f"{broken:g}, then broken",
        f"{turned['ms_per_evaluation']:.1f}",
        f"{network['num_layers']} layers, {network['channels']} channels, {one.num_ori} orientations",
    )
