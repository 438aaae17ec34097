"""``ponita-ff evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ponita_ff.data import Frame
    from ponita_ff.potential.potential import Potential
    from ponita_ff.training.evaluate import Errors
    from ponita_ff.units import Units


@click.command("evaluate", cls=Command)
@click.argument("potential")
@click.argument("data", type=options.PATH)
@click.option("--out", type=options.PATH, help="Folder for errors.json and parity.png.")
@click.option("--batch-size", default=10, show_default=True, type=click.IntRange(min=1), help="Frames in a batch.")
@options.units
@options.device()
@options.dtype()
@options.backend()
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    data: Path,
    out: Path | None,
    batch_size: int,
    units: Units | None,
    device: str,
    dtype: str | None,
    backend: str,
    force: bool,
    progress: bool,
) -> None:
    """Print errors of POTENTIAL on the labelled frames of DATA; --out keeps them as JSON, with a parity plot."""
    from ponita_ff.data import read_frames
    from ponita_ff.files import write_json
    from ponita_ff.outputs import check_outputs, claim_folder
    from ponita_ff.progress import progress_bar
    from ponita_ff.training.evaluate import evaluate as run_evaluation
    from ponita_ff.training.plots import plot_parity

    files = ("errors.json", "parity.png")
    if out is not None:
        check_outputs([out / name for name in files], options.input_files(potential, data), force)
    members = options.load_members(potential, device, dtype)
    if len(members) > 1:
        raise click.UsageError("evaluate takes one potential: for a committee there is ponita-ff calibrate")
    frames = read_frames(data, units=units)
    with progress_bar(progress, total=len(frames), unit="frame", desc="evaluating") as bar:

        def update(done: int) -> None:
            bar.update(done - bar.n)

        result = run_evaluation(members[0], frames, batch_size, update, backend)
    _print_errors(result.errors)
    if result.shifted is not None:
        _print_other_level(result.shifted)
    _print_training_data(members[0], data, frames)
    if out is not None:
        shifted = {} if result.shifted is None else {"after_shift_per_element": result.shifted.as_dict()}
        with claim_folder(out, files):
            write_json(out / files[0], {**result.errors.as_dict(), **shifted})
            plot_parity(result, f"{potential} on {data.name}", out / files[1])


def _print_other_level(shifted: Errors) -> None:
    click.echo(
        "The labels are of another level of theory than the potential: energies differ by more than 1 eV/atom. "
        "After the best shift for each element:"
    )
    click.echo(f"energy MAE            {1e3 * shifted.energy_mae:.3f} meV")
    click.echo(f"energy RMSE           {1e3 * shifted.energy_rmse:.3f} meV")
    click.echo(f"energy MAE per atom   {1e3 * shifted.energy_mae_per_atom:.4f} meV")


def _print_training_data(potential: Potential, data: Path, frames: Sequence[Frame]) -> None:
    """Whether the potential was trained on this file, and how many frames are unlike its training data."""
    from ponita_ff.data import file_sha256
    from ponita_ff.potential.domain_watch import domain_distances
    from ponita_ff.training.evaluate import trained_on

    if trained_on(potential.metadata, file_sha256(data)):
        click.echo(f"The potential was trained on frames of {data.name}: these errors are no test of it.")
    distances = domain_distances([potential], [frame.to_atoms() for frame in frames])
    if distances is None:
        click.echo("training data         not known: the potential's file holds no statistics of it")
        return
    outside = int((distances > 1).sum())
    click.echo(f"training data         {outside} frames are outside (distance at most {distances.max():.2f}, limit 1)")


def _print_errors(errors: Errors) -> None:
    click.echo(f"frames                {errors.frames}")
    click.echo(f"energy MAE            {1e3 * errors.energy_mae:.3f} meV")
    click.echo(f"energy RMSE           {1e3 * errors.energy_rmse:.3f} meV")
    click.echo(f"energy MAE per atom   {1e3 * errors.energy_mae_per_atom:.4f} meV")
    click.echo(f"force MAE             {1e3 * errors.forces_mae:.3f} meV/Å")
    click.echo(f"force RMSE            {1e3 * errors.forces_rmse:.3f} meV/Å")
    for symbol, value in errors.forces_mae_by_element.items():
        click.echo(f"force MAE of {symbol:<8} {1e3 * value:.3f} meV/Å")
    for formula, found in errors.by_formula.items():
        click.echo(
            f"{formula:<21} energy MAE {1e3 * found.energy_mae:.3f} meV, force MAE {1e3 * found.forces_mae:.3f} "
            f"meV/Å ({found.frames} frames)"
        )
    if errors.stress_mae is not None:
        click.echo(f"stress MAE            {1e3 * errors.stress_mae:.4f} meV/Å³")
