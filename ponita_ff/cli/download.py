"""``ponita-ff download``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("download", cls=Command, stopped="stopped; the same command goes on with the download")
@click.argument("dataset", type=click.Choice(["rmd17", "md22"]))
@click.argument("molecule")
@options.out_folder("data", "the files")
@options.common
def command(dataset: str, molecule: str, out: Path) -> None:
    """Fetch a public data set into a folder and verify it; a broken download goes on."""
    from ponita_ff.data.download import download as fetch

    click.echo(f"ready: {fetch(dataset, molecule, out)}")
