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
