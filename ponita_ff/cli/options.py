"""Options that mean the same in every command, declared once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ponita_ff.potential.potential import Potential
    from ponita_ff.units import Units

__all__ = [
    "PATH",
    "backend",
    "common",
    "computing_by_settings",
    "device",
    "dtype",
    "force",
    "input_files",
    "load_members",
    "out_folder",
    "progress",
    "read_overrides",
    "read_settings_file",
    "set_values",
    "settings_file",
    "strict",
    "threads",
    "time_budget",
    "units",
]

PATH = click.Path(path_type=Path)

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

#: As in ponita_ff.backends.predictor and ponita_ff.potential.device, which load torch; a test compares them.
BACKENDS = ("auto", "native", "compiled", "eager")
DTYPES = ("float32", "float64")


def _store_flag(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Keep a flag where the group keeps it: it may stand before or after the command's name."""
    assert parameter.name is not None
    context.meta[parameter.name] = context.meta.get(parameter.name, False) or value
    if parameter.name == "quiet" and value:
        logging.getLogger().setLevel(logging.WARNING)


def common(function: Function) -> Function:
    """``--quiet`` and ``--debug``."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_store_flag, help="Print results and warnings only."
    )
    debug = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_store_flag,
        help="Print the traceback of an error as well.",
    )
    return quiet(debug(function))


def progress(function: Function) -> Function:
    """``--no-progress``; the command gets ``progress``, which is also False after ``--quiet``."""

    @wraps(function)
    def with_progress(*args: Any, no_progress: bool, **kwargs: Any) -> Any:
        quiet = click.get_current_context().meta.get("quiet", False)
        return function(*args, progress=not (no_progress or quiet), **kwargs)

    return click.option("--no-progress", is_flag=True, help="Show no progress bar.")(with_progress)


def _set_threads(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None:
        import torch

        torch.set_num_threads(value)


#: More threads than this are a slip: the OpenMP runtime ends the process where it cannot start them.
_MAX_THREADS = max(1024, os.cpu_count() or 1)

threads = click.option(
    "--threads",
    type=click.IntRange(min=1, max=_MAX_THREADS),
    callback=_set_threads,
    expose_value=False,
    help="CPU threads to use.  [default: all cores]",
)


def device(default: str | None = "auto") -> Decorator:
    """``--device``; None where a settings file may say it."""
    return _computing("--device", default, "as the settings say", "Where to compute: auto, cpu, cuda, …")


def dtype(default: str | None = None, otherwise: str = "the potential's own") -> Decorator:
    """``--dtype``; ``otherwise`` says what holds where it is not given and there is no default."""
    return _computing("--dtype", default, otherwise, "Number format.", click.Choice(DTYPES))


def backend(default: str | None = "auto") -> Decorator:
    """``--backend``; None where a settings file may say it."""
    return _computing("--backend", default, "as the settings say", "How to compute.", click.Choice(BACKENDS))


def _computing(
    name: str, default: str | None, otherwise: str, text: str, kind: click.ParamType[Any] | None = None
) -> Decorator:
    help_text = text if default else f"{text}  [default: {otherwise}]"
    return click.option(name, type=kind, default=default, show_default=bool(default), help=help_text)


def computing_by_settings(function: Function) -> Function:
    """``--device``, ``--dtype`` and ``--backend`` for commands whose settings say them, too."""
    return device(None)(dtype(None, "as the settings say")(backend(None)(function)))


def out_folder(default: str | None = None, holds: str = "the results") -> Decorator:
    """``--out``, a folder; required where there is no default."""
    return click.option(
        "--out",
        type=PATH,
        default=None if default is None else Path(default),
        required=default is None,
        show_default=default is not None,
        help=f"Folder for {holds}.",
    )


strict = click.option("--strict", is_flag=True, help="Refuse structures unlike the training data.")

force = click.option("--force", is_flag=True, help="Overwrite files that the command did not write.")


def input_files(*given: str | Path | None) -> list[str | Path]:
    """What a command reads, for :func:`ponita_ff.outputs.check_outputs`: a committee's files one by one."""
    from ponita_ff.potential.companions import COMMITTEE

    texts = [str(text) for text in given if text is not None]
    return [part.removesuffix(COMMITTEE) for text in texts for part in (text, *text.split(","))]


time_budget = click.option("--time", "duration", help="Wall-clock time that the schedule fits itself to: 30m, 2h, …")
set_values = click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Replace a setting; see ponita-ff config."
)


settings_file = click.option("--settings", "settings_file", type=PATH, help="YAML file; see ponita-ff config.")


def read_settings_file(path: Path | None) -> dict[str, Any]:
    """The mapping in a settings file; empty without one."""
    from ponita_ff.settings import read_yaml

    return {} if path is None else read_yaml(path, "seed: 1")


def read_overrides(changes: tuple[str, ...], **named: Any) -> dict[str, Any]:
    """Values by dotted name from ``--set``, and from options of their own where these were given.

    Args:
        changes: Texts NAME=VALUE.
        named: Values of options by the setting's name with ``__`` for the dot; None where not given.
    """
    from ponita_ff.settings import parse_assignments

    given = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    return {**given, **parse_assignments(changes)}


def units(function: Function) -> Function:
    """``--energy-unit`` and ``--length-unit``; the command gets ``units``, None where they were not given."""

    @wraps(function)
    def with_units(*args: Any, energy_unit: str | None, length_unit: str | None, **kwargs: Any) -> Any:
        return function(*args, units=_units(energy_unit, length_unit), **kwargs)

    energy = click.option("--energy-unit", help="Energy unit of data that do not state one: eV, kcal/mol, Hartree, …")
    length = click.option("--length-unit", help="Length unit of data that do not state one: Angstrom, Bohr, …")
    return energy(length(with_units))


def _units(energy: str | None, length: str | None) -> Units | None:
    from ponita_ff.units import Units

    if (energy is None) != (length is None):
        raise click.UsageError("give --energy-unit and --length-unit together")
    return None if energy is None or length is None else Units(energy, length)


def load_members(text: str, device: str, dtype: str | None) -> list[Potential]:
    """The potentials of a text, one or several joined by commas, on a device and in a number format."""
    from ponita_ff.potential.companions import committee_members
    from ponita_ff.potential.device import choose_device, choose_dtype
    from ponita_ff.potential.file import load_potential

    members = [load_potential(name) for name in committee_members(text)]
    return [member.to(device=choose_device(device), dtype=choose_dtype(dtype) or member.dtype) for member in members]
