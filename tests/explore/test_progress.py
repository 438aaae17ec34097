"""The estimate of the time that an exploration may take yet."""

from __future__ import annotations

import pytest

from ponita_ff.explore import ExploreSettings
from ponita_ff.explore.progress import Plan


def test_time_left_is_that_of_all_rounds_of_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ponita_ff.explore")
    values = {
        "method": "any",
        "budget": 30,
        "labels_per_round": 10,
        "members": 2,
        "selection_share": 0.5,
        "training": {"optimiser.steps": 9},
    }
    now = 0.0
    plan = Plan(ExploreSettings.from_mapping(values), clock=lambda: now)
    # Rounds of 10, 20 and 30 labels: two members of half a fine-tuning each, at last two whole ones; 60 s for a half.
    for name, labels, share, last in (("round 1", 10, 0.5, False), ("round 2", 20, 0.5, False), ("end", 30, 1.0, True)):
        plan.begin(name, labels, share, last)
        for member in range(2):
            with plan.member(member):
                now += 120 * share
    assert caplog.messages == [
        "round 1: member 1 of 2, 10 labels of at most 30",
        "round 1: member 2 of 2, 10 labels of at most 30; about 7 min left at most",
        "round 2: member 1 of 2, 20 labels of at most 30; about 6 min left at most",
        "round 2: member 2 of 2, 20 labels of at most 30; about 5 min left at most",
        "end: member 1 of 2, 30 labels of at most 30; about 4 min left at most",
        "end: member 2 of 2, 30 labels of at most 30; about 2 min left at most",
    ]
