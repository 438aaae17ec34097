"""The sizes of a network as the kernels take them."""

from __future__ import annotations

from typing import Any

from ponita_ff.kernels.layout import Widths
from ponita_ff.kernels.structs import Shape
from ponita_ff.network.ponita import Ponita

__all__ = ["network_shape"]


def network_shape(network: Ponita, widths: Widths) -> Shape:
    """Sizes of a network and of its padded arrays; the addresses of the orientation grid are still to be filled in."""
    layers: list[Any] = list(network.layers)
    return Shape(
        num_ori=len(network.orientations),
        ori_stride=widths.ori_stride,
        degrees=network.config.l_max + 1,
        channels=network.config.channels,
        stride=widths.stride,
        hidden=widths.hidden,
        num_layers=len(layers),
        has_fibre=bool(network.config.num_ori),
        norm_eps=layers[0].norm.eps,
    )
