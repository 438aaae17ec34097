"""``ponita-ff train``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

STOPPED = "stopped; the same command goes on from the last checkpoint"


@click.command("train", cls=Command, stopped=STOPPED)
@click.argument("config", type=options.PATH, required=False)
@click.option("--out", type=options.PATH, help="Folder for the results, or of a run to go on with.")
@click.option("--resume", type=options.PATH, hidden=True)  # before: what --out does alone
@options.time_budget
@options.set_values
@options.computing_by_settings
@options.threads
@options.force
@options.progress
@options.common
def command(
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    duration: str | None,
    changes: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    backend: str | None,
    force: bool,
    progress: bool,
) -> None:
    """Train a potential as CONFIG, a YAML file, says.

    The folder --out gets potential.safetensors, the settings, the split of the data, errors as JSON and plots. If it
    holds a run that was stopped, the run goes on; CONFIG may then be left out. "ponita-ff config train" prints all
    settings.

    \b
    ponita-ff train md_examples/quickstart.yaml --out run
    ponita-ff train --out run
    """
    from ponita_ff.outputs import check_outputs
    from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
    from ponita_ff.training.run import RUN_FILES, is_started
    from ponita_ff.training.run import train as run_training

    folder = resume or out
    if folder is None:
        raise click.UsageError("give --out DIR, the folder of the run")
    kept = folder / "config.yaml"
    if resume is not None and not kept.is_file():
        raise ValueError(f"nothing to resume: {resume} holds no config.yaml of a run")
    if resume is not None or (config is None and kept.is_file()):
        config = kept
    if config is None:
        raise click.UsageError(f"give the CONFIG of a new run: {folder} holds none to go on with")
    overrides = options.read_overrides(changes, optimiser__time=duration, device=device, dtype=dtype, backend=backend)
    values = TrainConfig.from_yaml(config, overrides)
    started = resume is not None or is_started(folder)
    check_outputs([folder / name for name in RUN_FILES], [config, *values.inputs], force or started)
    run_training(values, folder, started, progress, force)
    click.echo(f"potential: {folder / POTENTIAL_FILE}")
