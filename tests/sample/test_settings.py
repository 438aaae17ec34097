"""Settings of sampling: defaults that hold, and mistakes that are named."""

from __future__ import annotations

from typing import Any

import pytest

from ponita_ff.sample import SampleError, SampleSettings
from ponita_ff.sample.settings import KINDS


def test_defaults_and_dotted_names() -> None:
    settings = SampleSettings.make({"method": "gfn2-xtb", "md": {"frames": 3}}, {"md.timestep": 1.0, "seed": 7})
    assert (settings.md.frames, settings.md.timestep, settings.seed) == (3, 1.0, 7)
    assert settings.kinds == list(KINDS)


def test_the_order_of_kinds_does_not_matter() -> None:
    one, other = (
        SampleSettings.make({"method": "a:B", "kinds": kinds}) for kinds in (["md", "bonds"], ["bonds", "md"])
    )
    assert one == other and one.kinds == ["md", "bonds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": None}, "method"),
        ({"kinds": ["dynamics"]}, r"kinds.0: .*'md'"),
        ({"kinds": []}, "kinds"),
        ({"md.frames": 0}, "md.frames"),
        ({"md.temperatures": [0.0]}, "md.temperatures.0"),
        ({"md.temperature": 300}, "md.temperature: Extra inputs"),
        ({"clusters.sizes": [1]}, "clusters.sizes.0"),
        ({"contacts.nearest": 3.0}, "contacts.nearest must not be above contacts.farthest"),
        ({"bonds.longest": 0.5}, "bonds.shortest must not be above bonds.longest"),
        ({"hold_out.scaffold_percent": 101}, "hold_out.scaffold_percent"),
        ({"method.name": 3}, "method must be a mapping"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        SampleSettings.make({"method": "gfn2-xtb"}, change)
