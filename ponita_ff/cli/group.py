"""The group of all commands, and the one place that turns exceptions into a sentence and an exit code."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from ponita_ff.signals import exit_code, stop_by_exception

__all__ = ["ALIASES", "COMMANDS", "Bug", "Command", "Stopped", "UserErrorExit2", "main"]

#: Commands, in the order in which a user needs them: module and what the list of commands says. Modules of commands
#: load torch only when a command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "potentials": ("potentials", "List the shipped potentials and their errors."),
    "info": ("info", "Print a potential's header and its errors."),
    "predict": ("predict", "Write energies, forces and stresses of structures."),
    "relax": ("relax", "Relax a structure to a minimum of the energy."),
    "md": ("md", "Run molecular dynamics."),
    "evaluate": ("evaluate", "Print errors on labelled frames."),
    "audit": ("audit", "Check the physics of potentials on one page."),
    "train": ("train", "Train a potential from labelled frames."),
    "finetune": ("finetune", "Train a potential further on new frames."),
    "sample": ("sample", "Make diverse frames of molecules."),
    "label": ("label", "Compute reference energies and forces."),
    "explore": ("explore", "Learn a new structure by active learning."),
    "calibrate": ("calibrate", "Compare a committee's spread with its errors."),
    "config": ("config", "Print all settings as a YAML file."),
    "download": ("download", "Fetch a public data set and verify it."),
    "import": ("import_", "Convert a checkpoint of the published code."),
    "compile": ("compile", "Compile a potential ahead of time."),
    "lammps-plugin": ("lammps_plugin", "Compile the pair style for LAMMPS."),
}

#: Names of before that still work and are not shown. Options of before are declared as hidden ones beside their
#: successors, in the modules of train, finetune and explore.
ALIASES = {"package": "compile"}


class UserErrorExit2(click.ClickException):
    """A user's mistake in a command whose exit code 1 means that something was found."""

    exit_code = 2


class Bug(click.ClickException):
    """An exception that no mistake of a user should cause."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class Stopped(click.ClickException):
    """A stop signal: the exit code is 130 after Ctrl-C and 143 after SIGTERM."""

    def __init__(self, message: str, error: KeyboardInterrupt) -> None:
        super().__init__(message)
        self.exit_code = exit_code(error)  # type: ignore[misc]


class Command(click.Command):
    """A command whose users' mistakes end in one clear sentence; anything else is a bug, which says so.

    Args:
        mistake: What a user's mistake becomes; it carries the exit code.
        stopped: What is said when it is interrupted: how it goes on; ``{name}`` stands for a parameter's value.
    """

    def __init__(
        self,
        *args: Any,
        mistake: type[click.ClickException] = click.ClickException,
        stopped: str = "stopped",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mistake = mistake
        self.stopped = stopped

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; options do things, too."""
        with self._errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with self._errors(ctx):
            return super().invoke(ctx)

    @contextmanager
    def _errors(self, ctx: click.Context) -> Iterator[None]:
        """Turn exceptions into what click prints; after ``--debug`` the traceback comes first."""
        try:
            yield
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt as error:
            raise Stopped(self.stopped.format(**ctx.params), error) from None
        except Exception as error:
            if getattr(error, "errno", None) == errno.EPIPE:  # the reader of a pipe has gone, which click handles
                raise
            if ctx.meta.get("debug"):
                traceback.print_exc()
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> click.ClickException:
        text = "\n".join(map(_without_middle, str(error).splitlines()))
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in text):
            return self.mistake(f"there is not enough memory for this: {text or 'no amount is known'}")
        if isinstance(error, ValueError | OSError | FloatingPointError) or _is_download_error(error):
            return self.mistake(text or type(error).__name__)
        line = text.splitlines()[0] if text else "no message"
        return Bug(
            f"this is a bug in ponita-ff, and no mistake of yours: {type(error).__name__}: {line}\n"
            "Please report it, with the traceback that --debug prints."
        )


def _is_download_error(error: Exception) -> bool:
    """Whether it is one, without loading all readers of data to ask."""
    module = sys.modules.get("ponita_ff.data.download")
    return module is not None and isinstance(error, module.DownloadError)


#: Longest word of a message that is shown whole, in letters: a path may have some thousand.
_LONG_WORD = 300


def _without_middle(line: str) -> str:
    words = (
        w if len(w) <= _LONG_WORD else f"{w[: _LONG_WORD // 2]}...{w[-_LONG_WORD // 2 :]}" for w in line.split(" ")
    )
    return " ".join(words)


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads the module of one when it is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, which a stop signal ends in order."""
        with stop_by_exception():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:  # while the command was being loaded
                raise Stopped("stopped", error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or of this alias."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = import_module(f"ponita_ff.cli.{COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ponita-ff")
@click.option("-q", "--quiet", is_flag=True, help="Print results and warnings only.")
@click.option("--debug", is_flag=True, help="Print the traceback of an error as well.")
@click.pass_context
def main(context: click.Context, quiet: bool, debug: bool) -> None:
    """Make and use PONITA force fields.

    A POTENTIAL is the name of a shipped potential or the path of a potential file; several joined by commas make a
    committee. After a stop, train, finetune, sample, label, explore and md go on when the same command is given again.

    Completion of commands and options: put eval "$(_PONITA_FF_COMPLETE=bash_source ponita-ff)" into ~/.bashrc, or the
    same with zsh_source into ~/.zshrc.
    """
    context.meta["quiet"], context.meta["debug"] = quiet, debug
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s")
