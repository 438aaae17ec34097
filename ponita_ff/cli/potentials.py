"""``ponita-ff potentials``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("potentials", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON, eV and Å.")
@options.common
def command(as_json: bool) -> None:
    """List the shipped potentials: elements, training data, force error on test frames, size of the file."""
    from ponita_ff.potential.shipped import list_shipped

    shipped = list_shipped()
    if as_json:
        click.echo(json.dumps([asdict(potential) for potential in shipped], indent=2, default=str))
        return
    name = max([len(potential.name) for potential in shipped], default=4)
    elements = max([len(" ".join(potential.elements)) for potential in shipped], default=8)
    level = max([len(potential.level or "") for potential in shipped], default=5)
    line = f"{{:<{name}}}  {{:<{max(8, elements)}}}  {{:<{max(5, level)}}}  {{:>6}}  {{:>9}}  {{:>6}}"
    click.echo(line.format("name", "elements", "level", "frames", "force MAE", "size"))
    click.echo(line.format("", "", "", "", "(meV/Å)", "(MB)"))
    for potential in shipped:
        click.echo(
            line.format(
                potential.name,
                " ".join(potential.elements),
                potential.level or "-",
                potential.training_frames or "-",
                "-" if potential.force_mae is None else f"{1e3 * potential.force_mae:.2f}",
                f"{potential.size / 1e6:.2f}",
            )
        )
