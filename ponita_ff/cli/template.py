"""Settings files with every setting, its default and its comment, made from pydantic models and their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["attribute_docs", "described", "section_type", "settings_template", "shown_default", "summary"]

_WIDTH = 100
_INDENT = "  "


def settings_template(model: type[BaseModel], chosen: Collection[str] = ()) -> str:
    """A YAML file that validates as the model's defaults, once what has no default is filled in.

    Args:
        model: The settings.
        chosen: Dotted names of settings and sections to comment out: what the command chooses by itself.
    """
    return "\n".join(_lines(model, {}, "", chosen)).lstrip("\n") + "\n"


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """Texts of the ``Attributes`` sections of a class and its bases, by name; names of one entry share its text."""
    docs: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            docs |= _own_docs(kind)
    return docs


def _own_docs(model: type[BaseModel]) -> dict[str, str]:
    """Those of the class's own docstring."""
    text = inspect.cleandoc(model.__dict__.get("__doc__") or "")
    _, _, listed = text.partition("Attributes:\n")
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        entry = re.match(r" {4}(\w[\w, ]*?): (.*)", line)
        if line and not line.startswith(" "):
            break
        if entry:
            names = [name.strip() for name in entry[1].split(",")]
            docs.update(dict.fromkeys(names, entry[2]))
        else:
            for name in names:
                docs[name] = f"{docs[name]} {line.strip()}".strip()
    return {name: text.replace("``", "") for name, text in docs.items()}


def _lines(model: type[BaseModel], values: Mapping[str, Any], prefix: str, chosen: Collection[str]) -> Iterator[str]:
    """Lines of a model's fields; ``values`` replace the fields' own defaults."""
    docs = attribute_docs(model)
    after_section = False
    for name, field in model.model_fields.items():
        section = section_type(field.annotation)
        if section is None:
            if after_section:
                yield ""
            yield from _value(name, field, docs.get(name, ""), values, prefix + name in chosen)
        else:
            yield ""
            yield from _comment(docs.get(name) or summary(section))
            yield from _section(name, field, section, values, prefix + name, chosen)
        after_section = section is not None


def _value(name: str, field: FieldInfo, doc: str, values: Mapping[str, Any], chosen: bool) -> Iterator[str]:
    """A field that is no section, below its comment."""
    yield from _comment(described(doc, field))
    required = field.is_required() and name not in values
    value = _example(field.annotation) if required else _yaml(values[name]) if name in values else shown_default(field)
    note = "  # chosen by the command" if chosen else "  # required" if required else ""
    yield f"{'# ' if chosen or required else ''}{name}: {value}{note}"


def _section(
    name: str,
    field: FieldInfo,
    section: type[BaseModel],
    values: Mapping[str, Any],
    dotted_name: str,
    chosen: Collection[str],
) -> list[str]:
    """A section with its fields; commented out where it is optional, or chosen by the command."""
    default = values.get(name, None if field.is_required() else _default(field))
    inner = default.model_dump() if isinstance(default, BaseModel) else default or {}
    if isinstance(default, section):
        section = type(default)  # a base class stands for all of its kind
    lines = [f"{name}:", *(f"{_INDENT}{line}" for line in _lines(section, inner, f"{dotted_name}.", chosen) if line)]
    if dotted_name in chosen:
        lines[0] += "  # chosen by the command"
    elif default is None and not field.is_required():
        lines[0] += "  # left out unless given"
    else:
        return lines
    return [f"# {line}" for line in lines]


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def shown_default(field: FieldInfo) -> str:
    """The default of a field in YAML."""
    return _yaml(_default(field))


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone or optionally."""
    for kind in _alternatives(annotation):
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, without what annotates them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def described(doc: str, field: FieldInfo) -> str:
    """The comment of a field, with its choices where it has some."""
    choices = [
        str(value)
        for kind in _alternatives(field.annotation)
        if get_origin(kind) is Literal
        for value in get_args(kind)
    ]
    if len(choices) < 2:
        return doc
    return f"{doc} (one of: {', '.join(choices)})" if doc else f"One of: {', '.join(choices)}."


def _example(annotation: Any) -> str:
    """A placeholder for a value that must be given."""
    kind = _alternatives(annotation)[0]
    return {Path: "FILE", str: "TEXT", int: "NUMBER", float: "NUMBER"}.get(kind, "VALUE")


def _yaml(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()


def summary(model: type[BaseModel]) -> str:
    """First paragraph of a model's docstring."""
    return inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("``", "")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
