"""Reference of settings: a table for each section, made from the pydantic models and their docstrings."""

from __future__ import annotations

import html
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ponita_ff.cli.template import attribute_docs, described, section_type, shown_default, summary


def settings_tables(model: type[BaseModel], prefix: str = "") -> str:
    """Markdown: the fields of a model, then its sections, each below a heading with its dotted name."""
    return "\n".join(_lines(model, prefix))


def _lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    docs = attribute_docs(model)
    fields = model.model_fields
    plain = {name: field for name, field in fields.items() if section_type(field.annotation) is None}
    if plain:
        yield "\n| setting | default | meaning |\n| --- | --- | --- |"
        for name, field in plain.items():
            yield f"| `{prefix}{name}` | {_default(field)} | {_cell(described(docs.get(name, ''), field))} |"
    for name, field in fields.items():
        section = section_type(field.annotation)
        if section is not None:
            note = " Left out unless given." if field.get_default(call_default_factory=True) is None else ""
            text = _cell(docs.get(name) or summary(section))
            yield f"\n### `{prefix}{name}`\n\n{text}{'' if field.is_required() else note}"
            yield from _lines(section, f"{prefix}{name}.")


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{shown_default(field)}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")
