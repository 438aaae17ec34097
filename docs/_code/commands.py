"""Reference of commands: help, usage and options of each, from click itself."""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterator

import click

from ponita_ff.cli.group import COMMANDS, main


def reference() -> str:
    """Markdown: a section for each command, in the order of their list."""
    group = main.make_context("ponita-ff", [], resilient_parsing=True)
    parts = [*_options(main, group)]
    for name in COMMANDS:
        command = main.get_command(group, name)
        assert command is not None
        context = click.Context(command, parent=group, info_name=name)
        usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
        parts += [
            f"\n## {name}\n",
            *_text(command.help or ""),
            f"\n```text\n{usage}\n```\n",
            *_options(command, context),
        ]
    return "\n".join(parts)


def _text(text: str) -> Iterator[str]:
    """Paragraphs of a docstring; those that click does not wrap (``\\b``) are code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"\n```text\n{paragraph[2:]}\n```\n"
        else:
            yield f"\n{_escaped(' '.join(paragraph.split()))}\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [record for record in (one.get_help_record(context) for one in options) if record]
    if records:
        yield "\n| option | meaning |\n| --- | --- |"
        for names, meaning in records:
            yield f"| {_code(names)} | {_escaped(' '.join(meaning.split()))} |"


def _code(text: str) -> str:
    """Code in a cell of a table, where a bar would end it."""
    return f"<code>{_escaped(text)}</code>".replace("|", "&#124;")


def _escaped(text: str) -> str:
    escaped = html.escape(text, quote=False)
    for sign in ("\\", "*", "_", "[", "]", "|", "`"):
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return escaped.replace("--", "&#45;&#45;")
