"""How many cases the property-based tests try, and the count of what came of them.

``make test`` tries a few cases of each, the same in every run. ``make fuzz`` tries ``FUZZ_CASES`` of each, new ones,
and writes the counts to ``FUZZ_REPORT``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

_CASES = int(os.environ.get("FUZZ_CASES", "0"))
_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

settings.register_profile(
    "short",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=_QUIET,
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile(
    "long", max_examples=max(_CASES, 1), deadline=None, print_blob=True, suppress_health_check=_QUIET
)
settings.load_profile("long" if _CASES else "short")

#: By test and outcome.
_counts: Counter[tuple[str, str]] = Counter()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``count("refused")`` counts one case of the test with that outcome."""
    module = Path(request.node.path).stem.removeprefix("test_")
    name = f"{module}: {request.node.originalname.removeprefix('test_').replace('_', ' ')}"

    def one(outcome: str) -> None:
        _counts[name, outcome] += 1

    return one


def pytest_sessionfinish() -> None:
    """Write the counts, and add to those of an earlier session, which a parallel run has several of."""
    report = os.environ.get("FUZZ_REPORT")
    if report and _counts:
        rows = [[name, outcome, number] for (name, outcome), number in sorted(_counts.items())]
        with Path(report).open("a") as file:
            file.write(json.dumps(rows) + "\n")
