"""``ponita-ff compile``."""

from __future__ import annotations

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("compile", cls=Command)
@click.argument("potential")
@options.dtype()
@options.threads
@options.force
@options.common
def command(potential: str, dtype: str | None, force: bool) -> None:
    """Compile POTENTIAL ahead of time for this machine and systems of any size; takes a minute or two.

    Leaves a file (.pt2) beside the potential's, where --backend compiled finds it. It must be made anew after an update
    of torch and on another machine.
    """
    from ponita_ff.backends.ahead_of_time import compile_ahead_of_time, compiled_path, is_compiled
    from ponita_ff.outputs import check_outputs
    from ponita_ff.potential.device import choose_dtype
    from ponita_ff.potential.file import find_potential, load_potential

    path = find_potential(potential)
    check_outputs([compiled_path(path)], [path], force, is_compiled)
    loaded = load_potential(path)
    compile_ahead_of_time(loaded.to(dtype=choose_dtype(dtype) or loaded.dtype), compiled_path(path))
    click.echo(f"compiled: {compiled_path(path)}")
