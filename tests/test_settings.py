"""Settings: read from YAML, merged, changed, and every wrong field named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from ponita_ff.settings import (
    Section,
    SettingsError,
    merged,
    parse_assignments,
    read_yaml,
    shown,
    with_changes,
    wrong_fields,
)


class Inner(Section):
    number: int = 1


class Outer(Section):
    inner: Inner = Inner()
    numbers: list[int] = Field(default=[])
    word: str


def test_a_mapping_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: 1\nb: {c: [x, 2.5]}\nname: Å\n", encoding="utf-8")
    assert read_yaml(path, "a: 1") == {"a": 1, "b": {"c": ["x", 2.5]}, "name": "Å"}
    path.write_text("# nothing but a comment\n", encoding="utf-8")
    assert read_yaml(path, "a: 1") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "must be a mapping of settings, e.g. 'a: 1'"),
        (b"just words", "must be a mapping of settings"),
        (b"a: [unclosed", "is not a YAML file"),
        (b"a: \xff\xfe", "is not a YAML file"),
    ],
)
def test_a_file_that_is_not_a_mapping(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        read_yaml(path, "a: 1")
    assert "broken.yaml" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file /dev/zero: larger than 10000000 bytes"):
        read_yaml(Path("/dev/zero"), "a: 1")
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*nowhere\.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml", "a: 1")
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*: Is a directory"):
        read_yaml(tmp_path, "a: 1")


def test_assignments_have_values_in_yaml() -> None:
    texts = ["a.b=10", "rate=1.0e-3", "flag=true", "none=null", "list=[1, 2]", "text=x=y", "empty=", "word=30m"]
    assert parse_assignments(texts) == {
        "a.b": 10,
        "rate": 1e-3,
        "flag": True,
        "none": None,
        "list": [1, 2],
        "text": "x=y",
        "empty": None,
        "word": "30m",
    }
    assert parse_assignments([]) == {}


@pytest.mark.parametrize("text", ["optimiser.steps", "", "=5"])
def test_a_text_that_is_no_assignment(text: str) -> None:
    with pytest.raises(SettingsError, match=rf"expected NAME=VALUE, e\.g\. .*; got {text!r}"):
        parse_assignments(["a=1", text])


def test_an_assignment_whose_value_is_not_yaml() -> None:
    with pytest.raises(SettingsError, match=r"a=\[1: '\[1' is not a value in YAML"):
        parse_assignments(["a=[1"])


def test_changes_by_dotted_name() -> None:
    values = {"a": {"b": 1, "c": 2}, "d": 3}
    changed = with_changes(values, {"a.b": 10, "e.f.g": 5, "d": None})
    assert changed == {"a": {"b": 10, "c": 2}, "d": None, "e": {"f": {"g": 5}}}
    assert values == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_change_replaces_a_whole_mapping() -> None:
    assert with_changes({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"c": 2}}


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        ({"a": 1}, "a.b", "file: a must be a mapping of settings, got 1"),
        ({"a": {"b": [1]}}, "a.b.c", r"file: a\.b must be a mapping of settings, got \[1\]"),
        ({"a": None}, "a.b", "file: a must be a mapping of settings, got None"),
    ],
)
def test_a_change_below_something_else_than_a_mapping(values: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        with_changes(values, {name: 5}, "file")


def test_merging_goes_field_by_field() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    assert merged(base, {"a": {"c": 3}, "d": [4], "e": 5}) == {"a": {"b": 1, "c": 3}, "d": [4], "e": 5}
    assert merged(base, {"a": None}) == {"a": None, "d": [1, 2]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1, 2]}


def test_every_wrong_field_is_named_with_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"number": "many", "extra": 1}, "numbers": [1, "two"]})
    lines = wrong_fields(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["  inner.number", "  inner.extra", "  numbers.1", "  word"]
    assert lines[0].endswith("(got 'many')")
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate("words")
    assert wrong_fields(caught.value).startswith("  (top level): ")


DEEP = {
    "lists": "a: " + "[" * 400 + "]" * 400,
    "mappings": "\n".join(" " * depth + "a:" for depth in range(3000)),
    "30 lists": "a: " + "[" * 30 + "]" * 30,
    "itself": "a: &a {b: *a}",
    "more than memory holds": "\n".join(
        f"{x}: &{x} [{', '.join([f'*{y}'] * 9)}]" for y, x in zip("abcdefgh", "bcdefghi", strict=True)
    ),
}
DEEP["more than memory holds"] = "a: &a [1]\n" + DEEP["more than memory holds"]


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_nesting_is_bounded(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"deep\.yaml is nested more than 20 levels deep"):
        read_yaml(path, "a: 1")
    if text.count("\n") == 0:
        with pytest.raises(SettingsError, match=r"a\.b is nested more than 20 levels deep"):
            parse_assignments([f"a.b={text.removeprefix('a: ')}"])
    with pytest.raises(SettingsError, match=r"a\.a\.a.* is nested more than 20 levels deep") as caught:
        parse_assignments([".".join("a" * 3000) + "=1"])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value", ["2001-99-99", "!!int x", "!!int ''", "!!bool x", "!!timestamp x", "!!python/name:os.x"]
)
def test_values_that_yaml_cannot_make(value: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"a: {value}")
    with pytest.raises(SettingsError, match=r"odd\.yaml is not a YAML file"):
        read_yaml(path, "a: 1")
    with pytest.raises(SettingsError, match="is not a value in YAML"):
        parse_assignments([f"a={value}"])


@pytest.mark.parametrize("key", ["3", "null", "no", "1.5", "2001-01-01"])
def test_names_of_settings_are_text(key: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"a: {{{key}: 1}}")
    with pytest.raises(SettingsError, match=r"keys\.yaml: .* is no name of a setting"):
        read_yaml(path, "a: 1")


def test_values_are_shown_in_bounds() -> None:
    assert shown("no") == "'no'" and shown([1, {"a": None}]) == "[1, {'a': None}]"
    for value in ("x" * 5000, list(range(5000)), 10**3000, {"a" * 5000: 1}):
        assert len(shown(value)) < 500
    assert shown(1 << 100_000) == "a int too long to show"
