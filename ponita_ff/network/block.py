"""The ConvNeXt block: convolution, then mixing of channels (arXiv:2310.02970, Section 4; arXiv:2201.03545)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ponita_ff.kernels.activation import gelu

__all__ = ["ConvNeXt"]


class ConvNeXt(nn.Module):
    """f + W2 gelu(W1 layernorm(convolution(f))), with biases.

    Args:
        convolution: Features (N, O, C) and a geometry to features (N, O, C).
        channels: C.
        widening: Hidden width over C.
        linear: Makes a map between so many channels and so many.
    """

    def __init__(
        self,
        convolution: nn.Module,
        channels: int,
        widening: int,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.LayerNorm(channels)
        self.expand = linear(channels, widening * channels)
        self.contract = linear(widening * channels, channels)

    def forward(self, features: Tensor, *geometry: Any, for_compile: bool = False) -> Tensor:
        """Features (N, O, C) to features (N, O, C); ``geometry`` is what the convolution takes beside them."""
        hidden = self.norm(self.convolution(features, *geometry, for_compile=for_compile))
        return features + self.contract(gelu(self.expand(hidden)))
