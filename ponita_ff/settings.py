"""Settings: read them from YAML, merge and change them, and name every wrong field."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ponita_ff.files import read_text

__all__ = [
    "Section",
    "SettingsError",
    "dotted",
    "merged",
    "parse_assignments",
    "read_yaml",
    "shown",
    "with_changes",
    "wrong_fields",
]

#: Deepest nesting of settings, and most values in all of them: a value may be named and repeated in YAML, so that a
#: short file can stand for more than any memory holds, or contain itself.
_MAX_DEPTH, _MAX_VALUES = 20, 100_000


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the file or field, and what was expected."""


class Section(BaseModel):
    """Base class of settings: unknown fields and numbers that are not finite are errors, and defaults are validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class _Shown(reprlib.Repr):
    """Python's spelling of a value, in bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 200, 200, 60
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 20


def shown(value: object) -> str:
    """A value as messages show it: Python's spelling, its middle left out where it is long or nested."""
    try:
        return _Shown().repr(value)
    except ValueError:  # Python spells no number of more than some thousand digits
        return f"a {type(value).__name__} too long to show"


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
        field = ".".join(_short(str(part)) for part in problem["loc"]) or "(top level)"
        given = f"got {shown(problem['input'])}" if values else f"got a {type(problem['input']).__name__}"
        lines.append(f"  {field}: {problem['msg']} ({given})")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:50]}...{name[-47:]}"


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """Read a mapping of settings from a YAML file.

    Args:
        path: The file; an empty file is an empty mapping.
        example: An example of such a mapping, for the error message.

    Raises:
        SettingsError: For a file that cannot be read, is not YAML, is not a mapping, or is nested too deeply.
    """
    try:
        values = _load(read_text(path), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not a YAML file: {error}") from None
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of settings, e.g. {example!r}")
    return values


def _load(text: str, source: str) -> Any:
    """Values from YAML.

    Raises:
        yaml.YAMLError: For text that is not YAML.
        SettingsError: For values that are no settings, whatever their field: nested too deeply, or with keys that are
            not text.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise SettingsError(f"{source} is nested more than {_MAX_DEPTH} levels deep, which no settings are") from None
    except Exception as error:  # PyYAML's constructors of dates, numbers and tags raise what Python's own do
        raise yaml.YAMLError(f"a value cannot be read ({error})") from None
    _check_nesting(values, source)
    return values


def _check_nesting(values: Any, source: str) -> None:
    todo, count = [(values, 0)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise SettingsError(
                f"{source} is nested more than {_MAX_DEPTH} levels deep, or has more than {_MAX_VALUES} values: no "
                "settings are, or do"
            )
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise SettingsError(
                        f"{source}: {shown(key)} is no name of a setting: names are text (in quotes where YAML takes "
                        "them for something else)"
                    )
            todo += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list | tuple | set):
            todo += [(one, depth + 1) for one in value]


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
            raise SettingsError(f"expected NAME=VALUE, e.g. optimiser.batch_size=10; got {shown(assignment)}")
        if name.count(".") > _MAX_DEPTH:
            raise SettingsError(f"{_short(name)} is nested more than {_MAX_DEPTH} levels deep, which no setting is")
        try:
            values[name] = _load(value, _short(name))
        except yaml.YAMLError:
            raise SettingsError(f"{_short(assignment)}: {shown(value)} is not a value in YAML") from None
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
                raise SettingsError(f"{source}: {path} must be a mapping of settings, got {shown(section)}")
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


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
