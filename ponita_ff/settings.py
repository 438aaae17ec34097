"""What all settings have in common: one way to read, merge and change them, and every wrong field is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Section", "SettingsError", "merged", "parse_assignments", "read_yaml", "with_changes", "wrong_fields"]


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the file or field, and what was expected."""


class Section(BaseModel):
    """A mapping of settings that takes no others."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def wrong_fields(error: ValidationError) -> str:
    """A line for each wrong field: its dotted name, what is wrong with it, and what was given."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        lines.append(f"  {field}: {problem['msg']} (got {problem['input']!r})")
    return "\n".join(lines)


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file; an empty one is an empty mapping.
        example: What such a file may hold, for the error message.

    Raises:
        SettingsError: For a missing file or one that holds anything else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not a YAML file: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of settings, e.g. {example!r}")
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Values by dotted name from texts NAME=VALUE, with the value in YAML.

    Raises:
        SettingsError: For a text that is no such assignment.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not name:
            raise SettingsError(f"expected NAME=VALUE, e.g. optimiser.batch_size=10; got {assignment!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SettingsError(f"{assignment}: {value!r} is not a value in YAML") from None
    return values


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any], source: str = "settings") -> dict[str, Any]:
    """A copy of nested settings in which some fields, given by dotted names, are replaced.

    Raises:
        SettingsError: Where a name leads through something that is not a mapping.
    """
    for name, value in changes.items():
        *parents, _ = name.split(".")
        inner: Any = values
        for depth, parent in enumerate(parents):
            inner = inner.get(parent, {})
            if not isinstance(inner, Mapping):
                path = ".".join(parents[: depth + 1])
                raise SettingsError(f"{source}: {path} must be a mapping of settings, got {inner!r}")
        for part in reversed(name.split(".")):
            value = {part: value}
        values = _replaced(values, value, len(parents) + 1)
    return dict(values)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others on top, field by field."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _replaced(base: Mapping[str, Any], change: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """As ``merged``, but the value at this depth replaces what was there, a mapping too."""
    [(key, value)] = change.items()
    return {**base, key: value if depth == 1 else _replaced(base.get(key, {}), value, depth - 1)}
