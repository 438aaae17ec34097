"""Every form of network by the name that its config gives it."""

from __future__ import annotations

from ponita_ff.network.attention import Attention
from ponita_ff.network.config import FormConfig
from ponita_ff.network.finite_group import FiniteGroup
from ponita_ff.network.form import Form
from ponita_ff.network.frame_averaging import FrameAveraging
from ponita_ff.network.message_passing import MessagePassing
from ponita_ff.network.moving_vectors import MovingVectors
from ponita_ff.network.oriented_points import OrientedPoints
from ponita_ff.network.ponita import Ponita

__all__ = ["FORMS", "make_network"]

#: Classes by the form of their config.
FORMS: dict[str, type[Form]] = {
    "force-field": Ponita,
    "oriented-points": OrientedPoints,
    "finite-group": FiniteGroup,
    "message-passing": MessagePassing,
    "moving-vectors": MovingVectors,
    "attention": Attention,
    "frame-averaging": FrameAveraging,
}


def make_network(config: FormConfig, num_species: int) -> Form:
    """A network with random weights.

    Args:
        config: Its shape; ``form`` names its class.
        num_species: Number of chemical elements.
    """
    return FORMS[config.form](config, num_species)
