"""Settings of any names, types and values: settings that can be used, or an error that says which cannot."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ponita_ff.audit.settings import AuditSettings
from ponita_ff.explore.settings import ExploreSettings
from ponita_ff.network.config import PonitaConfig
from ponita_ff.settings import SettingsError, parse_assignments, read_yaml, with_changes
from ponita_ff.training.config import TrainConfig

Count = Callable[[str], None]

TRAIN: dict[str, Any] = {
    "data": {"path": "frames.xyz", "train": 5, "validation": 2, "units": {"energy": "eV", "length": "Angstrom"}},
    "model": {"channels": 8, "num_layers": 2},
    "potential": {"reference_energies": {"H": -13.6}, "extra_species": ["O"]},
    "loss": {},
    "optimiser": {"steps": 10},
    "final_stage": {"num_ori": 32},
}
EXPLORE: dict[str, Any] = {"method": "gfn2-xtb", "budget": 20, "training": {"optimiser.steps": 5}}
AUDIT: dict[str, Any] = {"nve": {"picoseconds": 1.0}, "nvt": {"temperature_factors": [1.0]}, "labels": {}, "scans": {}}


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """Defaults of all settings and sections by their dotted names; None where there is none."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        found[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= {f"{name}.{inner}": value for inner, value in defaults_of(kind).items()}
    return found


def plausible(default: Any) -> st.SearchStrategy[Any]:
    """Values that may do for a setting with such a default."""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return st.sampled_from([default, default, 1, 0.5, "text", None])
    return st.sampled_from([default, default, 2 * default, 1, 3, 0.9 * default])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [0, 1, 10**9, 10**400, -1, 0.5, 1e308, math.nan, math.inf, "", "auto", "native", "30m", "1e5", "x" * 3000]
    ),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
)
KEYS = st.text(max_size=5) | st.integers(0, 9) | st.none()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def in_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n")


#: Texts that YAML reads in some way, or not at all.
TEXTS = st.one_of(
    VALUES.map(in_yaml),
    st.text(alphabet="[]{}:,&*!|>-'\"#%@ a1.\n\t\\x", max_size=12),
    st.sampled_from(
        ["!!int x", "!!bool x", "!!timestamp x", "!!float x", "2001-99-99", "&a [*a]", "[" * 500, "0x" + "f" * 9000]
    ),
)


def check(settings: BaseModel) -> None:
    """Settings that were accepted are whole: every number finite, and equal to themselves after a round trip."""
    values = settings.model_dump(mode="json")
    finite(values)
    assert type(settings).model_validate(values) == settings


def finite(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            finite(one)
    assert not isinstance(value, float) or math.isfinite(value)


def outcome(make: Callable[[], BaseModel]) -> str:
    try:
        settings = make()
    except SettingsError as error:
        assert 10 < len(str(error)) < 20_000
        return "refused"
    check(settings)
    return "accepted"


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Mapping[str, Any]], BaseModel]]] = {
    "train": (TRAIN, defaults_of(TrainConfig), TrainConfig.from_mapping),
    "explore": (EXPLORE, defaults_of(ExploreSettings), ExploreSettings.from_mapping),
    "audit": (AUDIT, defaults_of(AuditSettings), AuditSettings.make),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def set_at(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


@st.composite
def named_values(draw: st.DrawFn, defaults: dict[str, Any]) -> tuple[str, Any]:
    """A setting and a value, which are as they should be as often as not."""
    name = draw(st.sampled_from(sorted(defaults)))
    value = draw(st.one_of(plausible(defaults[name]), plausible(defaults[name]), VALUES))
    return draw(st.sampled_from([name, name, name, name, f"{name}.more", draw(st.text(max_size=6))])), value


@kinds
@given(data=st.data())
def test_yaml_files(kind: str, data: st.DataObject, tmp_path: Path, count: Count) -> None:
    good, defaults, make = KINDS[kind]
    values = copy.deepcopy(good)
    for name, value in data.draw(st.lists(named_values(defaults), min_size=1, max_size=3)):
        set_at(values, name, value)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    if kind == "train":
        count(outcome(lambda: TrainConfig.from_yaml(path)))
    else:
        count(outcome(lambda: make(read_yaml(path, "a: 1"))))


@kinds
@given(data=st.data())
def test_assignments(kind: str, data: st.DataObject, tmp_path: Path, count: Count) -> None:
    good, defaults, make = KINDS[kind]
    named = named_values(defaults).map(lambda pair: f"{pair[0]}={in_yaml(pair[1])}")
    odd = st.tuples(st.sampled_from(sorted(defaults)), TEXTS).map("=".join) | st.text(max_size=4)
    texts = data.draw(st.lists(st.one_of(named, named, odd), min_size=1, max_size=3))
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(good), encoding="utf-8")
    if kind == "train":
        count(outcome(lambda: TrainConfig.from_yaml(path, parse_assignments(texts))))
    elif kind == "audit":
        count(outcome(lambda: make(with_changes(good, parse_assignments(texts)))))
    else:
        count(outcome(lambda: make({**good, **parse_assignments(texts)})))


@given(content=st.binary(max_size=60) | TEXTS.map(str.encode))
def test_any_file(content: bytes, tmp_path: Path, count: Count) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    try:
        read_yaml(path, "a: 1")
    except SettingsError as error:
        assert "settings.yaml" in str(error)
        count("refused")
    else:
        count("accepted")


@given(
    values=st.dictionaries(
        st.sampled_from(sorted(PonitaConfig.model_fields)),
        st.integers(1, 64) | st.integers() | st.integers(0, 10**12) | st.floats(1, 64),
    )
)
def test_sizes_of_networks(values: dict[str, Any], count: Count) -> None:
    """No settings are accepted of which a network would not fit into memory."""
    found = outcome(lambda: TrainConfig.from_mapping({**TRAIN, "model": values}))
    if found == "accepted":
        assert PonitaConfig.model_validate(values).num_weights(1) <= 1e9
    count(found)
