"""Settings and metadata of earlier versions are read as those of today."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ponita_ff.settings import SettingsError, merged
from ponita_ff.training.config import FinalStageConfig, TrainConfig
from ponita_ff.training.finetune import finetune_config
from ponita_ff.training.legacy import (
    RENAMED_METADATA,
    RENAMED_SETTINGS,
    rename_metadata,
    rename_overrides,
    rename_settings,
)
from ponita_ff.training.run import train

ROOT = Path(__file__).parents[2]
OLD_SETTINGS = ROOT / "tests" / "files" / "old_settings.yaml"


def value_at(values: Any, name: str) -> Any:
    """A nested value by its dotted name."""
    for part in name.split("."):
        values = values[part]
    return values


def with_value(name: str, value: Any) -> dict[str, Any]:
    """Nested values that hold one value at a dotted name."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def test_the_fixture_has_every_old_name_and_no_new_one() -> None:
    values = yaml.safe_load(OLD_SETTINGS.read_text(encoding="utf-8"))
    for old, new in RENAMED_SETTINGS.items():
        value_at(values, old)
        with pytest.raises(KeyError):
            value_at(values, new)


def test_an_old_file_is_read_and_each_translated_name_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config = TrainConfig.from_yaml(OLD_SETTINGS)
    assert config.data.extra_train == [OLD_SETTINGS.parent / "more.xyz"]
    assert (config.optimiser.trainable, config.optimiser.muon_lr_multiplier) == ("layers", 3.0)
    assert config.final_stage == FinalStageConfig(num_ori=20, share=0.5)
    assert [record.message for record in caplog.records] == [
        f"{OLD_SETTINGS}: setting {old} is now called {new}" for old, new in RENAMED_SETTINGS.items()
    ]


def test_an_old_file_means_the_same_as_a_new_one(tmp_path: Path) -> None:
    text = OLD_SETTINGS.read_text(encoding="utf-8")
    for old, new in RENAMED_SETTINGS.items():
        text = text.replace(f"{old.rpartition('.')[2]}:", f"{new.rpartition('.')[2]}:")
    path = tmp_path / "new.yaml"
    path.write_text(text, encoding="utf-8")
    values = [config.model_dump(mode="json") for config in map(TrainConfig.from_yaml, (OLD_SETTINGS, path))]
    assert json.dumps(values[0]).replace(str(OLD_SETTINGS.parent), str(tmp_path)) == json.dumps(values[1])


def test_old_names_in_overrides(caplog: pytest.LogCaptureFixture) -> None:
    """On top of old and new names in a file; a field inside a renamed section too."""
    with caplog.at_level(logging.INFO):
        config = TrainConfig.from_yaml(
            OLD_SETTINGS, {"finish.num_ori": 32, "optimiser.trains": "readouts", "data.further": ["here.xyz"]}
        )
    assert config.final_stage == FinalStageConfig(num_ori=32, share=0.5)
    assert config.optimiser.trainable == "readouts"
    assert config.data.extra_train == [Path.cwd() / "here.xyz"]  # a path given as an override starts where we are
    assert "setting finish.num_ori is now called final_stage.num_ori" in caplog.text
    assert rename_overrides({"optimiser.trainable": "all", "finisher": 1}) == {
        "optimiser.trainable": "all",
        "finisher": 1,
    }


def test_old_names_in_overrides_of_fine_tuning(tiny_potential_path: Path, tmp_path: Path) -> None:
    overrides = {"optimiser.trains": "readouts", "optimiser.muon_rate": 2.0}
    config = finetune_config(tiny_potential_path, [tmp_path / "new.xyz"], frames=10, overrides=overrides)
    assert (config.optimiser.trainable, config.optimiser.muon_lr_multiplier) == ("readouts", 2.0)


@pytest.mark.parametrize(("old", "new"), RENAMED_SETTINGS.items())
def test_both_names_are_refused(old: str, new: str) -> None:
    both = merged(with_value(old, 1), with_value(new, 2))
    with pytest.raises(SettingsError, match=f"file: {old} is the earlier name of {new}; give {new} alone"):
        rename_settings(both, "file")
    with pytest.raises(SettingsError, match=f"{new} is given twice"):
        rename_overrides({old: 1, new: 2})


@pytest.mark.parametrize("values", [None, "words", [1, 2], {"data": "words"}, {"optimiser": None}])
def test_what_is_not_nested_settings_is_left_to_validation(values: Any) -> None:
    assert rename_settings(values) == values


def test_what_is_given_does_not_change() -> None:
    values = yaml.safe_load(OLD_SETTINGS.read_text(encoding="utf-8"))
    copy = json.loads(json.dumps(values))
    rename_settings(values)
    assert values == copy


def test_a_run_whose_files_have_old_names_resumes(settings: dict[str, Any], tmp_path: Path) -> None:
    """From a config.yaml and a checkpoint of version 4 that hold the settings by their old names."""
    settings["final_stage"] = {"num_ori": 12, "share": 0.5}
    train(TrainConfig.from_mapping(settings), tmp_path, progress=False)
    config, checkpoint = tmp_path / "config.yaml", tmp_path / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["config"] = json.dumps(with_old_names(json.loads(content["config"])))
    kept = {name: value for name, value in content.items() if name not in ("sha256", "finished")}
    torch.save({**kept, "version": 4}, checkpoint)
    config.write_text(yaml.safe_dump(with_old_names(yaml.safe_load(config.read_text()))), encoding="utf-8")
    train(TrainConfig.from_yaml(config), tmp_path, resume=True, progress=False)


def with_old_names(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as an earlier version wrote them."""
    for old, new in RENAMED_SETTINGS.items():
        section = values[old.rpartition(".")[0]] if "." in old else values
        section[old.rpartition(".")[2]] = section.pop(new.rpartition(".")[2])
    return values


@pytest.mark.parametrize(
    "path", sorted((ROOT / "potentials").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_settings_of_shipped_potentials(path: Path, tmp_path: Path) -> None:
    """They are of earlier versions, and mean the same by the names of today."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for old, new in RENAMED_SETTINGS.items():
        section = values.get(old.rpartition(".")[0], {}) if "." in old else values
        if old.rpartition(".")[2] in section:
            section[new.rpartition(".")[2]] = section.pop(old.rpartition(".")[2])
    renamed = tmp_path / "config.yaml"
    renamed.write_text(yaml.safe_dump(values), encoding="utf-8")
    expected = TrainConfig.model_validate(values)
    assert TrainConfig.from_mapping(yaml.safe_load(path.read_text(encoding="utf-8"))) == expected
    assert TrainConfig.from_yaml(path).optimiser == TrainConfig.from_yaml(renamed).optimiser


def test_metadata_of_old_files() -> None:
    old = {
        "name": "old",
        "data": {"train": 12, **{name.rpartition(".")[2]: name for name in RENAMED_METADATA}},
        "finetuning": [{"name": "new: test", "frames": 4}, {"name": "known: replay", "frames": 5}],
    }
    new = rename_metadata(old)
    assert new["data"] == {"train": 12} | {new.rpartition(".")[2]: old for old, new in RENAMED_METADATA.items()}
    assert [row["name"] for row in new["finetuning"]] == ["new: test", "replay holdout"]
    assert old["finetuning"][1]["name"] == "known: replay"  # type: ignore[index]
    assert rename_metadata(new) == new
    assert rename_metadata({"name": "untrained"}) == {"name": "untrained"}


def test_metadata_of_a_shipped_potential() -> None:
    report = json.loads((ROOT / "potentials" / "organic-rmd17" / "report.json").read_text(encoding="utf-8"))
    data = rename_metadata(report)["data"]
    assert (data["extra_train"], data["extra_train_file"]) == (300, "methanol_train.xyz")
    assert "further" not in data
