"""``ponita-ff finetune``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command
from ponita_ff.cli.train import STOPPED


@click.command("finetune", cls=Command, stopped=STOPPED)
@click.argument("potential")
@click.argument("data", type=options.PATH, nargs=-1, required=True)
@options.out_folder(holds="the results, new or of a stopped run")
@click.option("--test", type=options.PATH, multiple=True, help="Labelled frames for the errors; may be repeated.")
@click.option("--replay", type=options.PATH, multiple=True, help="Old training frames to replay.  [default: its own]")
@click.option("--no-replay", is_flag=True, help="Train on the new frames alone.")
@click.option("--frames", type=click.IntRange(min=1), help="Use only so many of DATA, drawn at random.")
@click.option("--resume", is_flag=True, hidden=True)  # before: now the same command goes on
@options.time_budget
@options.settings_file
@options.set_values
@options.computing_by_settings
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    data: tuple[Path, ...],
    out: Path,
    test: tuple[Path, ...],
    replay: tuple[Path, ...],
    no_replay: bool,
    frames: int | None,
    resume: bool,
    duration: str | None,
    settings_file: Path | None,
    changes: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    backend: str | None,
    force: bool,
    progress: bool,
) -> None:
    """Train POTENTIAL further on the labelled frames of DATA: a new molecule, element or level of theory.

    Prints errors before and after on the new frames and on held-out frames of the old training (replay holdout); the
    folder --out gets what "ponita-ff train" leaves there. If it holds a run that was stopped, the run goes on.
    "ponita-ff config finetune" prints all settings.

    \b
    ponita-ff finetune organic-rmd17 new.xyz --out run
    ponita-ff finetune organic-rmd17 new.xyz --out run --time 30m
    """
    from ponita_ff.outputs import check_outputs
    from ponita_ff.settings import dotted
    from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
    from ponita_ff.training.finetune import finetune as run_finetuning
    from ponita_ff.training.finetune import finetune_config
    from ponita_ff.training.run import RUN_FILES, is_started

    if no_replay and replay:
        raise click.UsageError("give --replay or --no-replay, not both")
    overrides = dotted(options.read_settings_file(settings_file))
    overrides |= options.read_overrides(changes, optimiser__time=duration, device=device, dtype=dtype, backend=backend)
    if resume:
        config = TrainConfig.from_yaml(out / "config.yaml", overrides)
    else:
        config = finetune_config(potential, data, test, replay if replay or no_replay else None, frames, overrides)
    started = resume or is_started(out)
    check_outputs([out / name for name in RUN_FILES], [*config.inputs, settings_file], force or started)
    found = run_finetuning(config, out, started, progress, force)
    click.echo(f"{'frames':<24}{'force MAE (meV/Å)':>26}{'energy MAE (meV)':>26}")
    click.echo(f"{'':<24}{'before -> after':>26}{'before -> after':>26}")
    for c in found:
        forces = f"{1e3 * c.forces_before:.1f} -> {1e3 * c.forces_after:.1f}"
        energy = f"{1e3 * c.energy_before:.1f} -> {1e3 * c.energy_after:.1f}"
        click.echo(f"{f'{c.name} ({c.frames})':<24}{forces:>26}{energy:>26}")
    if any(c.name == "replay holdout" for c in found):
        click.echo(
            "replay holdout: frames of the training of POTENTIAL, not trained on here; the rise of its error is what "
            "was forgotten (0.0 before, where POTENTIAL itself labelled them)"
        )
    click.echo(f"potential: {out / POTENTIAL_FILE}")
