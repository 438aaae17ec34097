"""Which weights are trained, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ponita_ff.data import InMemoryFrames
from ponita_ff.potential.file import save_potential
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.learning_rate_multipliers import learning_rate_multipliers


@pytest.fixture
def found(settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path) -> Any:
    """Multipliers of a network of three layers for settings of the optimiser."""
    settings["model"] = {**settings["model"], "num_layers": 3}
    base = tmp_path / "base.safetensors"
    save_potential(build_potential(TrainConfig.from_mapping(settings), frames), base)

    def make(extra_species: tuple[str, ...] = (), **optimiser: Any) -> dict[str, float] | None:
        config = TrainConfig.from_mapping(
            {
                **settings,
                "potential": {"start": str(base), "reference_energies": "keep", "extra_species": list(extra_species)},
                "optimiser": {**settings["optimiser"], **optimiser},
            }
        )
        return learning_rate_multipliers(build_potential(config, frames), config)

    return make


def trained(multipliers: dict[str, float]) -> set[str]:
    return {name.removeprefix("network.") for name, multiplier in multipliers.items() if multiplier}


def test_equal_rates_need_no_multipliers(found: Any) -> None:
    assert found() is None


def test_readouts_only(found: Any) -> None:
    assert trained(found(trainable="readouts")) == {f"readouts.{i}.{k}" for i in range(3) for k in ("weight", "bias")}


def test_last_layers(found: Any) -> None:
    parts = {".".join(name.split(".")[:2]) for name in trained(found(trainable="layers", last_layers=2))}
    assert parts == {"layers.1", "layers.2", "readouts.0", "readouts.1", "readouts.2"}


def test_low_rank(found: Any) -> None:
    names = trained(found(trainable="low-rank")) - trained(found(trainable="readouts"))
    assert names == {f"layers.{i}.{k}.weight" for i in range(3) for k in ("expand", "contract")}


def test_new_elements_train_their_embedding(found: Any) -> None:
    assert "embedding.weight" not in trained(found(trainable="readouts"))
    assert "embedding.weight" in trained(found(trainable="readouts", extra_species=("S",)))


def test_rates_fall_with_distance_from_the_end(found: Any) -> None:
    multipliers = found(layer_decay=0.5)
    assert multipliers["network.readouts.0.weight"] == 1.0
    assert multipliers["network.layers.2.expand.weight"] == 0.5
    assert multipliers["network.layers.0.convolution.radial.weight"] == 0.125
    assert multipliers["network.embedding.weight"] == multipliers["network.radial_basis.network.0.bias"] == 0.0625
