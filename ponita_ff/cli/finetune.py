"""``ponita-ff finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command
from ponita_ff.cli.train import STOPPED

if TYPE_CHECKING:
    from ponita_ff.training.finetune import ErrorChange

#: Settings of the training on the teacher's labels begin with this.
_TEACHER = "teacher."


@click.command("finetune", cls=Command, stopped=STOPPED)
@click.argument("potential")
@click.argument("data", type=options.PATH, nargs=-1, required=True)
@options.out_folder(holds="the results, new or of a stopped run")
@click.option("--test", type=options.PATH, multiple=True, help="Labelled frames for the errors; may be repeated.")
@click.option("--replay", type=options.PATH, multiple=True, help="Old training frames to replay.  [default: its own]")
@click.option("--no-replay", is_flag=True, help="Train on the new frames alone.")
@click.option("--frames", type=click.IntRange(min=1), help="Use only so many of DATA, drawn at random.")
@click.option(
    "--teacher", help="Learn cheap labels first: gfn2-xtb, another potential, or as of label.  [default: none]"
)
@click.option(
    "--teacher-frames", type=click.IntRange(min=20), default=2000, show_default=True, help="That the teacher labels."
)
@click.option("--charge", type=int, help="Of every frame, for the teacher.  [default: 0]")
@click.option("--multiplicity", type=click.IntRange(min=1), help="2S + 1 of every frame, likewise.  [default: 1]")
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="That sample and label for the teacher.",
)
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
    teacher: str | None,
    teacher_frames: int,
    charge: int | None,
    multiplicity: int | None,
    processes: int,
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

    With --teacher, frames around those of DATA are sampled and labelled by a cheap method, and learned first. Settings
    teacher.NAME are of that training, e.g. --set teacher.optimiser.steps=5000.

    \b
    ponita-ff finetune organic-wb97x new.xyz --out run
    ponita-ff finetune organic-wb97x new.xyz --out run --time 30m
    ponita-ff finetune organic-wb97x new.xyz --out run --teacher gfn2-xtb --processes 4
    """
    from ponita_ff.data import read_frames
    from ponita_ff.outputs import check_outputs
    from ponita_ff.potential.header import find_potential
    from ponita_ff.settings import dotted
    from ponita_ff.teaching import TEACHER_FOLDER, TeacherSettings, taught
    from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
    from ponita_ff.training.finetune import finetune as run_finetuning
    from ponita_ff.training.finetune import finetune_config
    from ponita_ff.training.run import RUN_FILES, is_started, prepare_data

    if no_replay and replay:
        raise click.UsageError("give --replay or --no-replay, not both")
    overrides = dotted(options.read_settings_file(settings_file))
    overrides |= options.read_overrides(changes, optimiser__time=duration, device=device, dtype=dtype, backend=backend)
    replayed = list(replay) if replay or no_replay else None
    started = resume or is_started(out)
    base = None
    if teacher is not None:
        if resume:
            raise click.UsageError("give the whole command again instead of --resume: it goes on, too")
        settings = TeacherSettings.make(
            method=teacher, frames=teacher_frames, charge=charge, multiplicity=multiplicity, processes=processes
        )
        base = find_potential(potential)
        check_outputs([out / name for name in RUN_FILES], [base, *data, *test, settings_file], force or started)
        training = {name: value for name, value in overrides.items() if name in ("device", "dtype", "backend")}
        training |= {
            name.removeprefix(_TEACHER): overrides.pop(name) for name in [*overrides] if name.startswith(_TEACHER)
        }
        # Wrong settings and data are told before hours of work.
        finetune_config(base, data, overrides=training)
        prepare_data(finetune_config(base, data, test, [], frames, overrides).data, out)
        folder = out / TEACHER_FOLDER
        known = (frame.to_atoms() for path in data for frame in read_frames(path))
        potential = str(taught(potential, known, settings, folder, training, replay=replayed, progress=progress))
        replayed = []
    if resume:
        config = TrainConfig.from_yaml(out / "config.yaml", overrides)
    else:
        config = finetune_config(potential, data, test, replayed, frames, overrides)
    check_outputs([out / name for name in RUN_FILES], [*config.inputs, settings_file], force or started)
    found = run_finetuning(config, out, started, progress, force, base)
    _print_changes(found)
    if any(c.name == "replay holdout" for c in found):
        click.echo(
            "replay holdout: frames of the training of POTENTIAL, not trained on here; the rise of its error is what "
            "was forgotten (0.0 before, where POTENTIAL itself labelled them)"
        )
    click.echo(f"potential: {out / POTENTIAL_FILE}")


def _print_changes(found: Sequence[ErrorChange]) -> None:
    """Errors before, after the teacher if there was one, and after."""
    taught = any(change.forces_taught is not None for change in found)
    steps = "before -> taught -> after" if taught else "before -> after"
    click.echo(f"{'frames':<24}{'force MAE (meV/Å)':>28}{'energy MAE (meV)':>28}")
    click.echo(f"{'':<24}{steps:>28}{steps:>28}")
    for c in found:
        forces = _arrow(c.forces_before, c.forces_taught, c.forces_after)
        energy = _arrow(c.energy_before, c.energy_taught, c.energy_after)
        click.echo(f"{f'{c.name} ({c.frames})':<24}{forces:>28}{energy:>28}")


def _arrow(*errors: float | None) -> str:
    """Errors in thousandths, those that there are."""
    return " -> ".join(f"{1e3 * error:.1f}" for error in errors if error is not None)
