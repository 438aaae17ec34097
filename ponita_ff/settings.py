"""Settings: read them from YAML, merge and change them, and name every wrong field."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Section", "SettingsError", "merged", "parse_assignments", "read_yaml", "with_changes", "wrong_fields"]


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the file or field, and what was expected."""


class Section(BaseModel):
    """Base class of settings: unknown fields and numbers that are not finite are errors, and defaults are validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def wrong_fields(error: ValidationError, values: bool = True) -> str:
    """Describe a validation error.

    Args:
        error: What pydantic raised.
        values: Whether to show the wrong values.

    Returns:
        A line for each wrong field: its dotted name, what is wrong, and the value (or its type) that was given.
    """
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        given = f"got {problem['input']!r}" if values else f"got a {type(problem['input']).__name__}"
        lines.append(f"  {field}: {problem['msg']} ({given})")
    return "\n".join(lines)


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """Read a mapping of settings from a YAML file.

    Args:
        path: The file; an empty file is an empty mapping.
        example: An example of such a mapping, for the error message.

    Raises:
        SettingsError: For a file that cannot be read, is not YAML, or is not a mapping.
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
    """Parse assignments of the form NAME=VALUE.

    Args:
        assignments: Texts with a dotted name and a value in YAML, e.g. ``optimiser.batch_size=10``.

    Returns:
        Values by dotted name.

    Raises:
        SettingsError: For a text that is not such an assignment.
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
    """A copy of nested settings with some fields replaced.

    Args:
        values: Nested settings.
        changes: New values by dotted name, e.g. ``{"optimiser.steps": 100}``. A mapping replaces a whole section.
        source: Where the settings are from, for the error message.

    Raises:
        SettingsError: For a name that leads through a value that is not a mapping.
    """
    result = copy.deepcopy(dict(values))
    for name, value in changes.items():
        *parents, field = name.split(".")
        section: Any = result
        for depth, parent in enumerate(parents):
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                path = ".".join(parents[: depth + 1])
                raise SettingsError(f"{source}: {path} must be a mapping of settings, got {section!r}")
        section[field] = value
    return result


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with others on top, field by field.

    Args:
        base: Nested settings.
        changes: Nested settings that replace those of ``base``; a section is merged, anything else replaced.
    """
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
