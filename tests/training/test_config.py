"""Every setting is validated at the start, and a refusal names its field."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ponita_ff.training.config import ConfigError, TrainConfig


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "num_ori", 13),
        ("model", "cutoff", -1.0),
        ("model", "chanels", 64),
        ("optimiser", "learning_rate", 0.0),
        ("optimiser", "time", "half an hour"),
        ("optimiser", "batch_size", 0),
        ("loss", "kind", "l1"),
        ("data", "train", 0),
        ("data", "protocol", "mine"),
        (None, "dtype", "float16"),
        (None, "epochs", 5),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, Any], section: str | None, field: str, value: object) -> None:
    wrong = deepcopy(settings)
    target = wrong if section is None else wrong.setdefault(section, {})
    target[field] = value
    with pytest.raises(ConfigError, match=field if section is None else f"{section}.{field}"):
        TrainConfig.from_mapping(wrong)


def test_several_wrong_settings_are_named_together(settings: dict[str, Any]) -> None:
    settings["model"]["channels"] = 0
    settings["optimiser"]["clip_norm"] = -1
    with pytest.raises(ConfigError, match=r"(?s)model\.channels.*optimiser\.clip_norm"):
        TrainConfig.from_mapping(settings)


def test_run_without_end_is_refused(settings: dict[str, Any]) -> None:
    del settings["optimiser"]["steps"]
    with pytest.raises(ConfigError, match="steps or time"):
        TrainConfig.from_mapping(settings)


def test_split_sizes_are_required(settings: dict[str, Any]) -> None:
    del settings["data"]["validation"]
    with pytest.raises(ConfigError, match="train and validation"):
        TrainConfig.from_mapping(settings)


def test_zbl_beyond_the_cutoff_is_refused(settings: dict[str, Any]) -> None:
    settings["potential"] = {"zbl_cutoff": 4.5}
    with pytest.raises(ConfigError, match=r"potential\.zbl_cutoff"):
        TrainConfig.from_mapping(settings)


def test_pnita_has_no_angles(settings: dict[str, Any]) -> None:
    settings["model"]["num_ori"] = 0
    with pytest.raises(ConfigError, match="l_max"):
        TrainConfig.from_mapping(settings)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "data: [unclosed", "just words"])
def test_malformed_yaml_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        TrainConfig.from_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        TrainConfig.from_yaml(tmp_path / "nowhere.yaml")


def test_overrides_and_relative_paths(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {path: frames.xyz, train: 5, validation: 2}\n", encoding="utf-8")
    config = TrainConfig.from_yaml(path, {"optimiser.time": "90s", "model.channels": 16})
    assert config.optimiser.seconds == 90.0
    assert config.model.channels == 16
    assert config.data.path == tmp_path / "frames.xyz"


def test_only_speed_and_length_may_differ_on_resume(settings: dict[str, Any]) -> None:
    config = TrainConfig.from_mapping(settings)
    longer, other = deepcopy(settings), deepcopy(settings)
    longer["optimiser"]["steps"] = 60
    other["optimiser"]["learning_rate"] = 0.02
    assert config.same_run(TrainConfig.from_mapping(longer))
    assert not config.same_run(TrainConfig.from_mapping(other))
