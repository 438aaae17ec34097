"""Settings are checked before any work."""

from __future__ import annotations

from typing import Any

import pytest

from ponita_ff.explore import ExploreError, ExploreSettings

GOOD: dict[str, Any] = {"method": "gfn2-xtb", "budget": 50}


def test_defaults_are_valid() -> None:
    assert ExploreSettings.from_mapping(GOOD).first == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 5}, "first 10 labels are more than the budget of 5"),
        ({"members": 1}, "members"),
        ({"stop": 0.05}, r"stop \(0.05 eV/Å\) must be above threshold \(0.1 eV/Å\)"),
        ({"temprature": 300}, "temprature"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        ExploreSettings.from_mapping({**GOOD, **wrong})


def test_what_may_change_when_it_goes_on() -> None:
    begun = ExploreSettings.from_mapping(GOOD)
    assert begun.same_exploration(ExploreSettings.from_mapping({**GOOD, "budget": 80, "processes": 4}))
    assert not begun.same_exploration(ExploreSettings.from_mapping({**GOOD, "temperature": 300}))
