"""Settings of the published network: its size, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita


def make(config: PublishedConfig, num_species: int) -> PublishedPonita:
    """A network with random weights, that draws none of the process's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return PublishedPonita(config, num_species)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_ori": 0, "degree": 2}, {"num_ori": 7, "channels": 6, "widening": 3, "basis_dim": 5, "num_layers": 2}],
)
@pytest.mark.parametrize("multiple_readouts", [True, False])
def test_number_of_weights(settings: dict[str, Any], multiple_readouts: bool) -> None:
    config = PublishedConfig(**settings, multiple_readouts=multiple_readouts)
    assert config.num_weights(3) == sum(weight.numel() for weight in make(config, 3).parameters())


@pytest.mark.parametrize("name", ["num_ori", "channels", "num_layers", "basis_dim", "widening", "envelope_power"])
def test_sizes_are_bounded(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}|would have .* weights"):
        PublishedConfig(**{name: 10**12})


@pytest.mark.parametrize("num_ori", [0, 5])
def test_a_file_gives_it_back(num_ori: int, tmp_path: Path) -> None:
    network = make(PublishedConfig(num_ori=num_ori, channels=4, num_layers=2, basis_dim=3, cutoff=4.0), 2)
    if num_ori:
        network.orientations.copy_(torch.nn.functional.normalize(torch.arange(3.0 * num_ori).view(-1, 3), dim=-1))
    save_potential(Potential(network, [1, 8], {1: -1.0}), tmp_path / "a.safetensors")
    again = load_potential(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, again[f"network.{name}"]) for name, value in network.state_dict().items())
