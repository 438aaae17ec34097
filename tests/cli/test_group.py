"""The group of commands: help, loading, and what happens to errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from ponita_ff.backends.predictor import BACKENDS
from ponita_ff.cli import main, options
from ponita_ff.cli.group import ALIASES, COMMANDS, Command, UserErrorExit2
from ponita_ff.potential.device import DTYPES
from ponita_ff.signals import Terminated

CONTEXT = click.Context(main)

FILES = Path(__file__).parents[1] / "files"


def command(name: str) -> click.Command:
    found = main.get_command(CONTEXT, name)
    assert found is not None
    return found


def test_the_list_of_commands_is_not_cut() -> None:
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    listed = result.output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    for line, (_, text) in zip(listed, COMMANDS.values(), strict=True):
        assert len(line) <= 80 and line.endswith(text) and "..." not in line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"], terminal_width=80)
    assert result.exit_code == 0, result.output
    found = command(name)
    assert found.name == name and isinstance(found, Command)
    # A verb in its base form comes first, as in the list of commands.
    verb = (found.help or "").split()[0]
    assert verb.isalpha() and verb[0].isupper() and not verb.endswith(("s", "ing"))
    assert COMMANDS[name][1].endswith(".")
    for parameter in found.params:
        assert isinstance(parameter, click.Argument) or parameter.hidden or parameter.help, parameter.name
    assert {"quiet", "debug"} <= {parameter.name for parameter in found.params}


@pytest.mark.parametrize(
    ("option", "commands"),
    [
        ("device", "predict relax md evaluate audit train finetune calibrate"),
        ("dtype", "predict relax md evaluate audit train finetune calibrate compile"),
        ("backend", "predict relax md evaluate train finetune"),
        ("threads", "predict relax md evaluate audit train finetune explore calibrate compile"),
        ("no_progress", "predict relax md evaluate audit train finetune sample label explore"),
        ("energy_unit", "evaluate audit calibrate"),
        (
            "force",
            "predict relax md evaluate audit train finetune sample label explore calibrate import compile "
            "lammps-plugin",
        ),
        ("length_unit", "evaluate audit calibrate"),
        ("out", "predict relax md evaluate audit train finetune sample label explore calibrate download lammps-plugin"),
    ],
)
def test_shared_options_are_wherever_they_make_sense(option: str, commands: str) -> None:
    having = [name for name in COMMANDS if option in {parameter.name for parameter in command(name).params}]
    assert having == [name for name in COMMANDS if name in commands.split()]


def test_choices_are_those_of_the_library() -> None:
    assert options.BACKENDS == BACKENDS
    assert tuple(DTYPES) == options.DTYPES


def test_names_of_before() -> None:
    for alias, name in ALIASES.items():
        assert command(alias) is command(name)
        assert alias not in main.list_commands(CONTEXT)
    assert main.get_command(CONTEXT, "packages") is None


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["md", "--help"], ["train", "--help"], ["--version"], ["potentials"]),
        *(
            ["info", str(FILES / "version2.safetensors")],
            ["config", "train"],
            ["config", "audit"],
            ["config", "explore"],
            ["config", "sample"],
        ),
    ],
    ids=" ".join,
)
def test_what_needs_no_torch_loads_none(arguments: list[str]) -> None:
    program = """
import sys
from ponita_ff.cli import main
main(standalone_mode=False)
print({"torch", "torch_geometric", "scipy", "h5py", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_calculator_needs_no_slow_imports() -> None:
    program = """
import sys
import ponita_ff.simulate.md, ponita_ff.training.run
print({"torch_geometric", "torch._dynamo", "pandas", "ase.db"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def run_failing(error: BaseException, *arguments: str, **settings: Any) -> Any:
    """A command that raises."""

    @click.command("fail", cls=Command, **settings)
    @click.option("--out", default="run")
    @options.common
    def fail(out: str) -> None:
        raise error

    return CliRunner().invoke(fail, arguments)


def test_a_mistake_is_one_sentence() -> None:
    result = run_failing(ValueError("no such thing"))
    assert (result.exit_code, result.output) == (1, "Error: no such thing\n")
    result = run_failing(OSError(28, "disk is full"), mistake=UserErrorExit2)
    assert result.exit_code == 2 and "disk is full" in result.output
    result = run_failing(ValueError("no such thing"), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.output and result.output.endswith("Error: no such thing\n")


@pytest.mark.parametrize("error", [KeyError("bug"), RecursionError("too deep"), RuntimeError("one\ntwo"), TypeError()])
def test_a_bug_says_so_in_one_line_and_how_to_see_its_traceback(error: Exception) -> None:
    result = run_failing(error)
    assert result.exit_code == 70
    first, second = result.output.splitlines()
    assert first.startswith(f"Error: this is a bug in ponita-ff, and no mistake of yours: {type(error).__name__}: ")
    assert "--debug" in second and "Traceback" not in result.output
    result = run_failing(error, "--debug")
    assert result.exit_code == 70
    assert result.output.startswith("Traceback") and f"raise error\n{type(error).__name__}" in result.output


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_no_bug(error: Exception) -> None:
    result = run_failing(error)
    assert result.exit_code == 1 and "not enough memory" in result.output


def test_a_download_that_fails_is_no_bug() -> None:
    from ponita_ff.data.download import DownloadError

    assert run_failing(DownloadError("no such host")).output == "Error: no such host\n"


def test_long_names_lose_their_middle() -> None:
    result = run_failing(OSError(36, "File name too long", "x" * 5000))
    assert result.exit_code == 1
    assert result.output.startswith("Error: [Errno 36] File name too long: 'xxx") and "x...x" in result.output
    assert len(result.output) < 500


def test_a_pipe_that_was_closed_is_no_mistake() -> None:
    assert run_failing(BrokenPipeError(32, "Broken pipe")).output == ""


def test_options_that_do_things_fail_as_commands_do() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("not that much")

    @click.command("fail", cls=Command, mistake=UserErrorExit2)
    @click.option("--much", callback=fail)
    def never(much: str) -> None:
        raise AssertionError

    result = CliRunner().invoke(never, ["--much", "1"])
    assert (result.exit_code, result.output) == (2, "Error: not that much\n")


@pytest.mark.parametrize("number", ["0", "-1", "99999999999", "1e3", "9" * 5000])
def test_numbers_of_threads_that_no_machine_has(number: str) -> None:
    result = CliRunner().invoke(main, ["compile", "ethanol-rmd17", "--threads", number])
    assert result.exit_code == 2 and "'--threads'" in result.output and "Traceback" not in result.output


def test_a_stop_says_how_to_go_on() -> None:
    for error, code in ((KeyboardInterrupt(), 130), (Terminated(), 143)):
        for mistake in (click.ClickException, UserErrorExit2):
            result = run_failing(error, "--out", "here", stopped="stopped; {out} goes on", mistake=mistake)
            assert (result.exit_code, result.output) == (code, "Error: stopped; here goes on\n")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["show"], True), (["show", "--no-progress"], False), (["show", "--quiet"], False), (["-q", "show"], False)],
)
def test_quiet_before_or_after_the_command_shows_no_progress(arguments: list[str], shown: bool) -> None:
    @click.group()
    @click.option("-q", "--quiet", is_flag=True)
    @click.pass_context
    def group(context: click.Context, quiet: bool) -> None:
        context.meta["quiet"] = quiet

    @group.command("show", cls=Command)
    @options.progress
    @options.common
    def show(progress: bool) -> None:
        click.echo(progress)

    assert CliRunner().invoke(group, arguments).output == f"{shown}\n"


def test_completion_knows_commands_options_and_choices() -> None:
    def completed(words: list[str], start: str) -> list[str]:
        found = ShellComplete(main, {}, "ponita-ff", "_PONITA_FF_COMPLETE").get_completions(words, start)
        return [item.value for item in found]

    assert completed([], "p") == ["potentials", "predict"]
    assert completed(["md"], "--thermo") == ["--thermostat", "--thermostat-time"]
    assert completed(["md", "--ensemble"], "n") == ["nve", "nvt", "npt"]
