"""Names of earlier versions: settings of an exploration, and files in the folder of a stopped one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ponita_ff.files import write_json
from ponita_ff.settings import SettingsError

__all__ = ["current_settings", "rename_files"]

#: Old name of a setting -> current name.
_SETTINGS = {
    "first": "initial_labels",
    "per_round": "labels_per_round",
    "picoseconds": "simulation_time",
    "walkers": "trajectories",
    "every": "sample_interval",
    "stop": "stop_threshold",
}

#: Old name of an entry of a round's dynamics -> current name.
_DYNAMICS = {"spread": "uncertainties", "ended": "times"}


def current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with old names replaced.

    Raises:
        SettingsError: A setting is given by its old and its current name.
    """
    for old, new in _SETTINGS.items():
        if old in values and new in values:
            raise SettingsError(f"{old} is an old name of {new}: give {new} only")
    return {_SETTINGS.get(name, name): value for name, value in values.items()}


def rename_files(out: Path) -> None:
    """Rename files of an exploration that an earlier version began, so that it can be continued.

    Args:
        out: Folder of the exploration.
    """
    for old in out.glob("round-*/walked.json"):
        frames = old.with_suffix(".xyz")
        if frames.is_file():
            frames.rename(old.with_name("dynamics.xyz"))
        values = json.loads(old.read_text(encoding="utf-8"))
        write_json(old.with_name("dynamics.json"), {_DYNAMICS.get(name, name): value for name, value in values.items()})
        old.unlink()
