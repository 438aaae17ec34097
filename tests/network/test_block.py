"""The ConvNeXt block around a convolution."""

from __future__ import annotations

from typing import Any

import torch

from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.convolution import SeparableConvolution


def test_block_is_residual(geometry: dict[str, Any]) -> None:
    block = ConvNeXt(SeparableConvolution(3, 2, 5, 6.0, fibre=True), 3, 2).double()
    features = torch.randn(4, 6, 3, dtype=torch.float64)
    hidden = block.norm(block.convolution(features, *geometry.values()))
    hidden = block.contract(torch.nn.functional.gelu(block.expand(hidden)))
    assert torch.allclose(block(features, *geometry.values()), features + hidden, rtol=0, atol=1e-13)
    torch.nn.init.zeros_(block.contract.weight)
    torch.nn.init.zeros_(block.contract.bias)
    assert torch.equal(block(features, *geometry.values()), features)


def test_block_hands_geometry_and_options_to_its_convolution_and_normalises_what_comes_back() -> None:
    given: list[Any] = []

    class Recorded(torch.nn.Module):
        def forward(self, features: torch.Tensor, *geometry: Any, for_compile: bool) -> torch.Tensor:
            given.append((geometry, for_compile))
            return 1e3 * features

    block = ConvNeXt(Recorded(), 5, 3).double()
    assert block.expand.weight.shape == (15, 5)
    features = torch.randn(2, 4, 5, dtype=torch.float64)
    result = block(features, "a", "b", for_compile=True)
    assert given == [(("a", "b"), True)]
    # Per atom and orientation: mean 0 and variance 1 over channels, then the two linear maps with exact GELU between.
    centred = features - features.mean(-1, keepdim=True)
    normal = centred / centred.square().mean(-1, keepdim=True).sqrt()
    wide = normal @ block.expand.weight.T + block.expand.bias
    active = wide * 0.5 * (1.0 + torch.erf(wide / 2.0**0.5))
    expected = features + active @ block.contract.weight.T + block.contract.bias
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)
