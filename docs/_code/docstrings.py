"""Docstrings as the reference shows them: without roles of Sphinx, and with an entry for each argument."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ")


def as_markdown(text: str) -> str:
    """A docstring that griffe and Markdown understand: ``:class:`Potential``` is ```Potential```."""
    return "\n".join(_one_entry_each(_ROLE.sub(r"`\1`", text).splitlines()))


def _one_entry_each(lines: list[str]) -> list[str]:
    """Repeat an entry such as ``energy, forces: Weights of …`` for each of its names."""
    found: list[str] = []
    index = 0
    while index < len(lines):
        shared = _SHARED.match(lines[index])
        end = index + 1
        if shared is None:
            found.append(lines[index])
        else:
            indent = len(shared[1])
            while end < len(lines) and lines[end].strip() and len(lines[end]) - len(lines[end].lstrip()) > indent:
                end += 1
            for name in shared[2].split(", "):
                found.append(f"{shared[1]}{name}: {lines[index][shared.end() :]}")
                found += lines[index + 1 : end]
        index = end
    return found


class Roles(Extension):
    """Rewrites the docstring of every object that is read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
