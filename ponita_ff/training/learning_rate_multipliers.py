"""Learning-rate multipliers: which weights of a potential are trained, and how fast."""

from __future__ import annotations

import re

from ponita_ff.potential.file import read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import TrainConfig

__all__ = ["learning_rate_multipliers"]


def learning_rate_multipliers(potential: Potential, config: TrainConfig) -> dict[str, float] | None:
    """Factor of the learning rate for each parameter, as ``config.optimiser`` asks for it.

    See ``trainable`` and ``layer_decay`` of :class:`ponita_ff.training.config.OptimiserConfig`.

    Args:
        potential: The potential to train.
        config: All settings.

    Returns:
        Factors by parameter's name, 0 for one that is not trained; None where all are 1.
    """
    settings = config.optimiser
    if settings.trainable == "all" and settings.layer_decay == 1.0:
        return None
    num_layers = config.model.num_layers
    has_new_elements = _has_new_elements(potential, config)
    multipliers = {}
    for name, _ in potential.named_parameters():
        module, layer = _module_and_layer(name, num_layers)
        trainable = {
            "all": True,
            "readouts": module == "readouts",
            "layers": module == "readouts" or layer >= num_layers - settings.last_layers,
            "low-rank": module == "readouts" or name.endswith(("expand.weight", "contract.weight")),
        }[settings.trainable]
        trainable = trainable or (module == "embedding" and has_new_elements)
        multipliers[name] = settings.layer_decay ** (num_layers - layer) if trainable else 0.0
    return multipliers


def _has_new_elements(potential: Potential, config: TrainConfig) -> bool:
    """Whether the potential has elements that the one it starts from does not have."""
    if config.potential.start is None:
        return False
    return not set(potential.species) <= set(read_header(config.potential.start)["species"])


def _module_and_layer(name: str, num_layers: int) -> tuple[str, int]:
    """Module of the network that a parameter belongs to, and its layer.

    The layer is -1 for a parameter before the first layer, and ``num_layers`` for one after the last.
    """
    match = re.fullmatch(r"network\.(layers|readouts)\.(\d+)\..*", name)
    if match is None:
        return name.removeprefix("network.").partition(".")[0], -1
    return match[1], int(match[2]) if match[1] == "layers" else num_layers
