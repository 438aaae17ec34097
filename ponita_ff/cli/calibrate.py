"""``ponita-ff calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

if TYPE_CHECKING:
    from ponita_ff.units import Units


@click.command("calibrate", cls=Command)
@click.argument("members", nargs=-1, required=True, metavar="POTENTIAL...")
@click.option("--data", type=options.PATH, required=True, help="Labelled frames that no member was trained on.")
@click.option("--out", type=options.PATH, required=True, help="The calibration, a JSON file.")
@options.units
@options.device()
@options.dtype()
@options.threads
@options.force
@options.common
def command(
    members: tuple[str, ...],
    data: Path,
    out: Path,
    units: Units | None,
    device: str,
    dtype: str | None,
    force: bool,
) -> None:
    """Compare a committee's spread with its errors, and write factors that make them equal.

    The file serves --calibration of md and predict, and PonitaCalculator(calibration=…).
    """
    from ponita_ff.data import read_frames
    from ponita_ff.outputs import check_outputs
    from ponita_ff.uncertainty import NORMAL_SHARES, is_calibration
    from ponita_ff.uncertainty import calibrate as run_calibration

    check_outputs([out], options.input_files(*members, data), force, is_calibration)
    potentials = options.load_members(",".join(members), device, dtype)
    found = run_calibration(potentials, read_frames(data, units=units))
    found.save(out)
    (one, two), (normal_one, normal_two) = found.forces_within, NORMAL_SHARES
    click.echo(
        f"factors: energy {found.energy:.2f}, forces {found.forces:.2f} ({found.frames} frames)\n"
        f"force errors within 1 and 2 deviations: {one:.1%}, {two:.1%} (normal: {normal_one:.1%}, "
        f"{normal_two:.1%})\n"
        f"rank correlation of an atom's force error and deviation: {found.forces_rank_correlation:.2f}\n"
        f"calibration: {out}"
    )
