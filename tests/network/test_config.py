"""Settings of the network: what is refused, and what a file holds of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"num_ori": 13}, "num_ori"),
        ({"num_ori": -1}, "num_ori"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"channels": 0}, "channels"),
        ({"num_layers": 0}, "num_layers"),
        ({"l_max": 13}, "l_max"),
        ({"num_ori": 0, "l_max": 3}, "l_max"),
        ({"avg_num_neighbours": 0.0}, "avg_num_neighbours"),
        ({"chanels": 64}, "chanels"),
        ({"form": "published"}, "form"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"channels": 10**9}, r"would have 3\.2e\+19 weights .* bytes"),
        ({"channels": 10**400}, "would have more than 1e300 weights"),
        ({"widening": 10**7}, "weights"),
        ({"num_bessel": 10**12}, "weights"),
        ({"radial_hidden": 10**12}, "weights"),
        ({"radial_basis": 10**12}, "weights"),
    ],
)
def test_wrong_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        PonitaConfig(**settings)


@pytest.mark.parametrize("settings", [{"num_ori": 0}, {"num_ori": 32, "l_max": 2, "cutoff": 6.5}, {}])
def test_settings_make_a_round_trip_with_all_their_fields(settings: dict[str, Any]) -> None:
    """As a potential file holds them."""
    config = PonitaConfig(**settings)
    dumped = config.model_dump()
    assert set(dumped) == set(PonitaConfig.model_fields)
    assert PonitaConfig.model_validate(dumped) == config


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PonitaConfig().channels = 3


def test_without_orientations_there_are_no_angles() -> None:
    assert PonitaConfig(num_ori=0).l_max == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_ori": 0}, {"num_ori": 6, "l_max": 0, "num_layers": 1}, {"channels": 5, "widening": 3, "num_bessel": 7}],
)
def test_number_of_weights(settings: dict[str, Any]) -> None:
    config = PonitaConfig(**settings)
    with torch.random.fork_rng(devices=[]):
        network = Ponita(config, 3)
    assert config.num_weights(3) == sum(weight.numel() for weight in network.parameters())
