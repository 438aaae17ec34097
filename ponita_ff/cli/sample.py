"""``ponita-ff sample``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

#: Reasons of failures that are shown.
_SHOWN = 3


@click.command("sample", cls=Command, stopped="stopped; what is finished is kept, and the same command goes on")
@click.argument("molecules", nargs=-1, required=True)
@click.option("--method", help="gfn2-xtb, ani-2x, a potential, FUNCTIONAL/BASIS, package.module:Calculator.")
@options.out_folder(holds="the frames, new or stopped")
@click.option("--frames", type=click.IntRange(min=1), help="Largest number of frames.  [default: all]")
@click.option("--kinds", help="Kinds of frames, joined by commas: md,modes,…  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), help="Of all random numbers.  [default: 1]")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Molecules at a time.")
@click.option(
    "--threads-per-process", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads of each."
)
@click.option("--retry-failed", is_flag=True, help="Try the molecules again that failed before.")
@options.settings_file
@options.set_values
@options.force
@options.progress
@options.common
def command(
    molecules: tuple[str, ...],
    method: str | None,
    out: Path,
    frames: int | None,
    kinds: str | None,
    seed: int | None,
    processes: int,
    threads_per_process: int,
    retry_failed: bool,
    settings_file: Path | None,
    changes: tuple[str, ...],
    force: bool,
    progress: bool,
) -> None:
    """Make diverse frames of MOLECULES: files of SMILES or of structures, or SMILES themselves.

    Conformers, molecular dynamics, displacements along normal modes, torsions, stretched bonds, dimers and clusters at
    many distances, all by a cheap method. The folder --out gets frames.xyz, skipped.csv and report.json. The frames
    depend on molecules, settings and seed alone. If it was stopped, the same command goes on. "ponita-ff config sample"
    prints all settings.

    \b
    ponita-ff sample molecules.smi --method gfn2-xtb --out sampled --processes 4
    ponita-ff sample CCO O --method gfn2-xtb --kinds md,modes,contacts --frames 50 --out sampled
    """
    from ponita_ff.sample import SampleSettings
    from ponita_ff.sample import sample as run_sampling

    given = options.read_overrides(
        changes,
        method=method,
        seed=seed,
        kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",")],
        selection__frames=frames,
    )
    settings = SampleSettings.make(options.read_settings_file(settings_file), given)
    found = run_sampling(
        molecules,
        settings,
        out,
        processes=processes,
        threads_per_process=threads_per_process,
        retry_failed=retry_failed,
        force=force,
        progress=progress,
    )
    if found.failures:
        _print_failures(list(found.failures.values()), found.tasks)
    kept = ", ".join(f"{number} {kind}" for kind, number in found.kinds.items())
    click.echo(f"frames: {found.frames} in {found.path} ({kept})")
    if found.skipped:
        click.echo(f"skipped: {len(found.skipped)} molecules, with the reasons in {out / 'skipped.csv'}")
    click.echo(f"report: {found.report}")


def _print_failures(reasons: list[str], tasks: int) -> None:
    click.echo(f"Warning: {len(reasons)} of {tasks} molecules and clusters have no frames:", err=True)
    for reason in reasons[:_SHOWN]:
        click.echo(f"  {reason}", err=True)
    if len(reasons) > _SHOWN:
        click.echo(f"  … and {len(reasons) - _SHOWN} more", err=True)
    click.echo("All reasons are in report.json; --retry-failed tries these again.", err=True)
