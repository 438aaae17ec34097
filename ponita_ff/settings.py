"""What all settings have in common: unknown fields are refused, and every wrong one is named."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Section", "wrong_fields"]


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
