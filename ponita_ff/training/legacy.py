"""Names of settings and metadata in files of earlier versions, and the names that they have now.

This is the only place that knows the earlier names. Everything that reads settings (YAML files, ``--set``, the settings
in a checkpoint) or metadata (``report.json``, headers of potential files) translates them here first.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from ponita_ff.settings import SettingsError

__all__ = [
    "RENAMED_METADATA",
    "RENAMED_ROWS",
    "RENAMED_SETTINGS",
    "rename_metadata",
    "rename_overrides",
    "rename_settings",
]

logger = logging.getLogger(__name__)

#: Settings of a training run: earlier dotted name → present one. A name stands for the fields below it, too.
RENAMED_SETTINGS = {
    "data.further": "data.extra_train",
    "optimiser.trains": "optimiser.trainable",
    "optimiser.muon_rate": "optimiser.muon_lr_multiplier",
    "finish": "final_stage",
}

#: Metadata of a trained potential: earlier dotted name → present one.
RENAMED_METADATA = {
    "data.further": "data.extra_train",
    "data.further_file": "data.extra_train_file",
    "data.further_sha256": "data.extra_train_sha256",
}

#: Rows of the errors before and after fine-tuning (``finetuning`` in the metadata): earlier name → present one.
RENAMED_ROWS = {"known: replay": "replay holdout"}


def rename_settings(values: Any, source: str = "settings") -> Any:
    """Nested settings with present names in place of earlier ones; each translated name is logged.

    Args:
        values: Settings of a training run; anything but a mapping is returned as it is.
        source: Where they are from, for messages.

    Raises:
        SettingsError: For a setting that is given by both of its names.
    """
    return _renamed(values, RENAMED_SETTINGS, source)


def rename_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name with present names in place of earlier ones; each translated name is logged.

    Raises:
        SettingsError: For a setting that is given by both of its names.
    """
    renamed: dict[str, Any] = {}
    for name, value in overrides.items():
        present = _present_name(name)
        if present != name:
            logger.info("setting %s is now called %s", name, present)
        if present in renamed:
            raise SettingsError(f"{present} is given twice, once by an earlier name; give {present} alone")
        renamed[present] = value
    return renamed


def rename_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a potential (from its file or its ``report.json``) with present names in place of earlier ones."""
    renamed = _renamed(metadata, RENAMED_METADATA)
    rows = renamed.get("finetuning")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            row["name"] = RENAMED_ROWS.get(row["name"], row["name"])
    return dict(renamed)


def _present_name(name: str) -> str:
    """The present form of a dotted name."""
    for old, new in RENAMED_SETTINGS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _renamed(values: Any, table: Mapping[str, str], source: str | None = None) -> Any:
    """A copy of nested values with fields renamed within their sections; logged where a source is given."""
    if not isinstance(values, Mapping):
        return values
    result = copy.deepcopy(dict(values))
    for old, new in table.items():
        section, _, old_field = old.rpartition(".")
        fields = result.get(section) if section else result
        if not isinstance(fields, dict) or old_field not in fields:
            continue
        new_field = new.rpartition(".")[2]
        if new_field in fields:
            raise SettingsError(f"{source}: {old} is the earlier name of {new}; give {new} alone")
        fields[new_field] = fields.pop(old_field)
        if source is not None:
            logger.info("%s: setting %s is now called %s", source, old, new)
    return result
