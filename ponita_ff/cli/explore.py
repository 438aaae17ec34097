"""``ponita-ff explore``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("explore", cls=Command, stopped="stopped; the same command goes on where it was")
@click.argument("potential")
@click.argument("structures", required=False)
@click.option("--base", hidden=True)  # before: explore STRUCTURES --base POTENTIAL
@click.option("--method", help="Label by gfn2-xtb, pbe/def2-svp, ani-2x, package.module:Calculator, …")
@click.option("--budget", type=click.IntRange(min=1), help="Labels in all.")
@options.out_folder(holds="the exploration, new or stopped")
@click.option("--processes", type=click.IntRange(min=1), help="Frames labelled at a time.  [default: 1]")
@click.option("--charge", type=int, help="Of every frame.  [default: 0]")
@click.option("--multiplicity", type=click.IntRange(min=1), help="2S + 1 of every frame.  [default: 1]")
@options.settings_file
@options.set_values
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    structures: str | None,
    base: str | None,
    method: str | None,
    budget: int | None,
    out: Path,
    processes: int | None,
    charge: int | None,
    multiplicity: int | None,
    settings_file: Path | None,
    changes: tuple[str, ...],
    force: bool,
    progress: bool,
) -> None:
    """Train POTENTIAL further on STRUCTURES, a file, by active learning.

    Runs dynamics, labels frames on which a committee disagrees, trains, and begins again. The folder --out gets the
    committee, all labels, report.json and report.png. If it was stopped, the same command goes on. "ponita-ff config
    explore" prints all settings.

    \b
    ponita-ff explore organic-wb97x molecule.xyz --method gfn2-xtb --budget 100 --out explored
    """
    from ponita_ff.explore import ExploreSettings
    from ponita_ff.explore import explore as run_exploration
    from ponita_ff.explore.run import exploration_files, is_started
    from ponita_ff.labels.structures import read_structures
    from ponita_ff.outputs import check_outputs

    if base is not None:
        potential, structures = base, potential
    if structures is None:
        raise click.UsageError("give STRUCTURES, the file to begin from, after the potential")
    given = options.read_overrides(
        changes, method=method, budget=budget, processes=processes, charge=charge, multiplicity=multiplicity
    )
    settings = ExploreSettings.from_mapping({**options.read_settings_file(settings_file), **given})
    inputs = options.input_files(potential, structures, settings_file)
    check_outputs([out / name for name in exploration_files(settings)], inputs, force or is_started(out))
    found = run_exploration(read_structures(Path(structures))[1], potential, settings, out, progress=progress)
    click.echo(f"ended: {found.outcome} ({found.labels} labels, {len(found.rounds)} rounds)")
    click.echo(f"report: {out / 'report.json'}, {out / 'report.png'}")
    click.echo(f"committee: {' '.join(str(member) for member in found.members)}")
