"""What of a potential trains, and how fast: a factor of the learning rate for every weight."""

from __future__ import annotations

import re

from ponita_ff.potential.file import read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import TrainConfig

__all__ = ["speeds"]


def speeds(potential: Potential, config: TrainConfig) -> dict[str, float] | None:
    """Factors by parameter's name as ``config.optimiser`` asks for them; None where all are 1.

    See :class:`ponita_ff.training.config.OptimiserConfig` for ``trains`` and ``layer_decay``.
    """
    settings = config.optimiser
    if settings.trains == "all" and settings.layer_decay == 1.0:
        return None
    layers = config.model.num_layers
    new_elements = config.potential.start is not None and not set(potential.species) <= set(
        read_header(config.potential.start)["species"]
    )
    first = layers - settings.last_layers
    factors = {}
    for name, _ in potential.named_parameters():
        part, layer = _place(name, layers)
        trains = {
            "all": True,
            "readouts": part == "readouts",
            "layers": part == "readouts" or layer >= first,
            "low-rank": part == "readouts" or name.endswith(("expand.weight", "contract.weight")),
        }[settings.trains]
        if part == "embedding" and new_elements:
            trains = True
        factors[name] = settings.layer_decay ** (layers - layer) if trains else 0.0
    return factors


def _place(name: str, layers: int) -> tuple[str, int]:
    """Part of the network and number of the layer of a parameter; -1 before the first, ``layers`` after the last."""
    match = re.fullmatch(r"network\.(layers|readouts)\.(\d+)\..*", name)
    if match is None:
        return name.removeprefix("network.").partition(".")[0], -1
    return match[1], int(match[2]) if match[1] == "layers" else layers
