"""Every setting is validated at the start, and a refusal names its field."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ponita_ff.settings import Section, SettingsError
from ponita_ff.training.config import (
    PRESETS,
    ConfigError,
    DataConfig,
    FinalStageConfig,
    LossConfig,
    OptimiserConfig,
    PotentialConfig,
    TrainConfig,
    UnitsConfig,
)


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
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        TrainConfig.from_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
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
    longer["data"]["test"] = longer["data"]["path"]
    other["optimiser"]["learning_rate"] = 0.02
    assert config.can_resume(TrainConfig.from_mapping(longer))
    assert not config.can_resume(TrainConfig.from_mapping(other))


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("data", "replay", ["old.xyz"], r"data\.replay: needs potential\.start"),
        ("optimiser", "trainable", "readouts", r"optimiser\.trainable: needs potential\.start"),
        ("potential", "reference_energies", "keep", r"keep: needs potential\.start"),
    ],
)
def test_what_needs_a_start(settings: dict[str, Any], section: str, field: str, value: Any, message: str) -> None:
    settings.setdefault(section, {})[field] = value
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_mapping(settings)
    settings.setdefault("potential", {})["start"] = "base.safetensors"
    TrainConfig.from_mapping(settings)


def test_more_last_layers_than_layers(settings: dict[str, Any]) -> None:
    settings["potential"] = {"start": "base.safetensors"}
    settings["optimiser"] |= {"trainable": "layers", "last_layers": 5}
    with pytest.raises(ConfigError, match=r"optimiser\.last_layers: the network has \d layers"):
        TrainConfig.from_mapping(settings)


def test_presets_are_defaults(settings: dict[str, Any]) -> None:
    """What is given wins; the rest comes from the preset, and a saved configuration says all."""
    assert TrainConfig.from_mapping(settings).final_stage is None
    config = TrainConfig.from_mapping({**settings, "preset": "accurate"})
    assert config.final_stage == FinalStageConfig(num_ori=32)
    assert config.model.channels == settings["model"]["channels"]
    own = TrainConfig.from_mapping({**settings, "preset": "accurate", "final_stage": {"share": 0.5}})
    assert own.final_stage == FinalStageConfig(num_ori=32, share=0.5)
    assert TrainConfig.from_mapping({**settings, "preset": "accurate", "final_stage": None}).final_stage is None
    assert TrainConfig.from_mapping(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="preset"):
        TrainConfig.from_mapping({**settings, "preset": "best"})
    with pytest.raises(ConfigError, match="the form oriented-points has no grid"):
        TrainConfig.from_mapping({**settings, "preset": "accurate", "model": {"form": "oriented-points"}})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str, settings: dict[str, Any]) -> None:
    del settings["model"]
    TrainConfig.from_mapping({**settings, "preset": name})


def test_a_final_stage_divides_time_and_steps(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["optimiser"] |= {"steps": 100, "time": "2m"}
    assert [folder for _, folder in TrainConfig.from_mapping(settings).stages(tmp_path)] == [tmp_path]
    settings |= {"final_stage": {"num_ori": 12, "share": 0.3, "learning_rate": 1e-4}, "potential": {"rotations": 2}}
    (first, folder), (last, out) = TrainConfig.from_mapping(settings).stages(tmp_path)
    assert (folder, out) == (tmp_path / "first", tmp_path)
    assert (first.optimiser.steps, last.optimiser.steps) == (70, 30)
    assert first.optimiser.seconds == pytest.approx(84.0)
    assert last.optimiser.seconds == pytest.approx(36.0)
    assert (first.model.num_ori, last.model.num_ori) == (settings["model"]["num_ori"], 12)
    assert (first.optimiser.learning_rate, last.optimiser.learning_rate) == (0.01, 1e-4)
    assert (first.potential.rotations, last.potential.rotations) == (1, 2)
    assert (first.potential.start, last.potential.start) == (None, folder / "potential.safetensors")


@pytest.mark.parametrize(("own", "finer"), [(6, 13), (0, 12)])
def test_a_final_stage_needs_grids(own: int, finer: int, settings: dict[str, Any]) -> None:
    settings["model"] |= {"num_ori": own, "l_max": 0}
    with pytest.raises(ConfigError, match=rf"final_stage\.num_ori.*got {finer} and {own}"):
        TrainConfig.from_mapping({**settings, "final_stage": {"num_ori": finer}})


@pytest.mark.parametrize(
    "section",
    [TrainConfig, DataConfig, UnitsConfig, PotentialConfig, LossConfig, OptimiserConfig, FinalStageConfig],
)
def test_every_setting_is_described(section: type[Section]) -> None:
    """One entry under Attributes for each, in the order of the fields."""
    entries = re.findall(r"(?m)^ {8}(\w+): ", str(section.__doc__).partition("Attributes:")[2])
    assert entries == list(section.model_fields)


def test_rates_of_another_batch() -> None:
    """They grow with the root of its size, also in a final stage; nothing else changes."""
    values = {"preset": "accurate", "data": {"path": "x"}, "optimiser": {"batch_size": 4, "learning_rate": 2e-3}}
    config = TrainConfig.model_validate(values)
    larger = config.for_batch_size(64)
    assert larger.optimiser == config.optimiser.model_copy(update={"batch_size": 64, "learning_rate": 8e-3})
    assert config.final_stage is not None
    assert larger.final_stage == config.final_stage.model_copy(update={"learning_rate": 1e-3})
    assert larger.for_batch_size(4) == config
