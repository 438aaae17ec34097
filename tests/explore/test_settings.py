"""Settings are checked before any work, and those of earlier versions are understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ponita_ff.explore import ExploreError, ExploreSettings
from ponita_ff.settings import parse_assignments

GOOD: dict[str, Any] = {"method": "gfn2-xtb", "budget": 50}
FILES = Path(__file__).parents[1] / "files"


def test_defaults_are_valid() -> None:
    assert ExploreSettings.from_mapping(GOOD).initial_labels == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 5}, r"initial_labels \(10\) must not be above the budget \(5\)"),
        ({"members": 1}, "members"),
        ({"stop_threshold": 0.05}, r"stop_threshold \(0.05 eV/Å\) must be above threshold \(0.1 eV/Å\)"),
        ({"temprature": 300}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"first": 4, "initial_labels": 5}, "first is an old name of initial_labels: give initial_labels only"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        ExploreSettings.from_mapping({**GOOD, **wrong})


def test_what_may_change_when_an_exploration_is_continued() -> None:
    begun = ExploreSettings.from_mapping(GOOD)
    assert begun.same_exploration(ExploreSettings.from_mapping({**GOOD, "budget": 80, "processes": 4}))
    assert not begun.same_exploration(ExploreSettings.from_mapping({**GOOD, "temperature": 300}))


def test_settings_of_the_fine_tuning_by_dotted_name() -> None:
    """As ``--set`` gives them; ``training`` itself takes a mapping."""
    assignments = ["training.optimiser.steps=7", "training.seed=3", "training={optimiser.steps: 5, name: water}"]
    settings = ExploreSettings.from_mapping({**GOOD, **parse_assignments(assignments)})
    assert settings.training == {"optimiser.steps": 7, "seed": 3, "name": "water"}


def test_settings_with_names_of_earlier_versions() -> None:
    old = json.loads((FILES / "explore_settings_before_renames.json").read_text(encoding="utf-8"))
    settings = ExploreSettings.from_mapping(old)
    found = (settings.initial_labels, settings.labels_per_round, settings.simulation_time, settings.trajectories)
    assert found == (6, 2, 0.08, 2)
    assert (settings.sample_interval, settings.threshold, settings.stop_threshold) == (2.0, 1e-4, 50.0)
    assert settings.training == {"optimiser.steps": 120}
    on_command_line = parse_assignments(["stop=3", "every=20"])
    changed = ExploreSettings.from_mapping({**GOOD, **on_command_line})
    assert (changed.stop_threshold, changed.sample_interval) == (3.0, 20.0)
