"""``ponita-ff predict``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("predict", cls=Command)
@click.argument("potential")
@click.argument("structures", type=options.PATH)
@click.option("-o", "--out", type=options.PATH, required=True, help="File to write: .xyz, .extxyz or .traj.")
@click.option("--calibration", type=options.PATH, help="Of a committee, as ponita-ff calibrate writes it.")
@options.strict
@options.device()
@options.dtype()
@options.backend()
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    structures: Path,
    out: Path,
    calibration: Path | None,
    strict: bool,
    device: str,
    dtype: str | None,
    backend: str,
    force: bool,
    progress: bool,
) -> None:
    """Write energy, forces and, for periodic cells, stress of all STRUCTURES, any file that ASE reads.

    ASE reads the results back as those of a calculator; eV, eV/Å and eV/Å³. Several potentials joined by commas add
    their spread: energy_std and forces_std. domain_distance says how far a structure is from the training data; 1 is
    the limit of what the potential knows.

    \b
    ponita-ff predict ethanol-rmd17 in.xyz -o out.xyz
    """
    from ponita_ff.outputs import check_outputs
    from ponita_ff.potential.companions import shipped_calibration
    from ponita_ff.progress import progress_bar
    from ponita_ff.simulate.predict import (
        check_format,
        is_prediction,
        predict_frames,
        read_structures,
        write_structures,
    )
    from ponita_ff.uncertainty import Calibration

    check_format(out)
    calibration = calibration or shipped_calibration(potential)
    check_outputs([out], options.input_files(structures, potential, calibration), force, is_prediction)
    members = options.load_members(potential, device, dtype)
    if calibration is not None and len(members) < 2:
        raise click.UsageError("--calibration belongs to a committee: give several potentials joined by commas")
    frames = read_structures(structures)
    with progress_bar(progress, total=len(frames), unit="frame", desc="predicting") as bar:

        def update(done: int) -> None:
            bar.update(done - bar.n)

        known = None if calibration is None else Calibration.load(calibration)
        predicted = predict_frames(members, frames, backend, known, update, strict)
    write_structures(out, predicted)
    click.echo(f"predicted: {len(predicted)} frames in {out}")
    distances = [atoms.info["domain_distance"] for atoms in predicted if "domain_distance" in atoms.info]
    if distances:
        outside = sum(distance > 1 for distance in distances)
        click.echo(
            f"training data: {outside} frames are outside (domain_distance at most {max(distances):.2f}, limit 1)"
        )
    else:
        click.echo("training data: not known, the potential's file holds no statistics of it")
