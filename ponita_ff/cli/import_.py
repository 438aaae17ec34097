"""``ponita-ff import``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("import", cls=Command)
@click.argument("checkpoint", type=options.PATH)
@click.argument("potential", type=options.PATH)
@click.option("--ori-grid", type=options.PATH, help="Grid of the training run (.npy or .npz) if the file holds none.")
@click.option("--radius", type=float, help="Cutoff in Å if the file does not tell it.")
@click.option("--species", help="Chemical symbols that the network was trained on, e.g. H,C,O.  [default: Z = 1 to 8]")
@click.option("--scale", default=1.0, show_default=True, help="eV per unit of the network's output.")
@click.option("--energy-per-atom", default=0.0, show_default=True, help="eV added for every atom.")
@options.force
@options.common
def command(
    checkpoint: Path,
    potential: Path,
    ori_grid: Path | None,
    radius: float | None,
    species: str | None,
    scale: float,
    energy_per_atom: float,
    force: bool,
) -> None:
    """Convert a CHECKPOINT of the published PONITA code to a POTENTIAL file (.safetensors).

    No code in the checkpoint is run. The authors save neither grid nor scale with the weights: give them here.
    """
    from ase.data import atomic_numbers

    from ponita_ff.outputs import check_outputs
    from ponita_ff.potential.file import save_potential
    from ponita_ff.potential.import_published import import_checkpoint, is_imported

    symbols = [symbol.strip() for symbol in species.split(",")] if species else None
    unknown = [symbol for symbol in symbols or () if symbol not in atomic_numbers]
    if unknown:
        raise click.UsageError(f"--species: {', '.join(unknown)} is no chemical symbol; give e.g. H,C,O")
    check_outputs([potential], options.input_files(checkpoint, ori_grid), force, is_imported)
    imported = import_checkpoint(
        checkpoint,
        None if radius is None else {"radius": radius},
        ori_grid=ori_grid,
        species=None if symbols is None else sorted(atomic_numbers[symbol] for symbol in symbols),
        scale=scale,
        energy_per_atom=energy_per_atom,
    )
    save_potential(imported, potential)
    click.echo(f"potential: {potential}")
