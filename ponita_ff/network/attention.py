"""Attention over neighbours, on R³ and on R³×S² (at every orientation), smooth as neighbours come and go.

    s_ij = q_i·(k_j + K_ij) / √d            q, k linear in layernorm(f); K_ij = Σ_l R_l(r) P_l(c)
    a_ij = u(r_ij) exp(s_ij) / (1 + Σ_k u(r_ik) exp(s_ik))
    m_i  = W_o Σ_j a_ij (v_j ∘ V_ij)        v linear in f; V_ij = Σ_l R'_l(r) P_l(c)

The envelope u stands inside the normalisation, so that a neighbour at the cutoff has no share; the 1 is a neighbour
that is always there and sends nothing, so that the last one may leave, too. Each head has its own a, and
d = channels / heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.config import AttentionConfig
from ponita_ff.network.convolution import OrientedSum, radial_weights
from ponita_ff.network.message_passing import MessagePassing, kernel
from ponita_ff.structure.graph import gather_neighbours

__all__ = ["Attention", "NeighbourAttention"]


class NeighbourAttention(OrientedSum):
    """The attention above.

    Args:
        config: Shape of the network.

    Attributes:
        norm: Of the features that queries and keys are made of.
        query, key, value, output: Of q, k, v and W_o.
        key_radial, value_radial: R and R'.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config.channels, config.l_max, bool(config.num_ori))
        channels = config.channels
        self.heads = config.heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        self.key_radial = radial_weights(config.radial_basis, (config.l_max + 1) * channels, 1.0)
        self.value_radial = radial_weights(config.radial_basis, (config.l_max + 1) * channels, 1.0)

    def forward(
        self,
        features: Tensor,
        basis: Tensor,
        angular: Tensor,
        fibre_angular: Tensor,
        edges: Edges,
        window: Tensor,
        for_compile: bool = False,
    ) -> Tensor:
        """Sum over neighbours; arguments as for :class:`ponita_ff.network.message_passing.PairMessages`."""
        split = (self.heads, self.channels // self.heads)
        normed = self.norm(features)
        keys, values = (
            gather_neighbours(sent, edges.neighbours, edges.reverse)
            for sent in (self.key(normed), self.value(features))
        )
        keys = (keys + kernel(self.key_radial, basis, angular)).unflatten(-1, split)
        values = (values * kernel(self.value_radial, basis, angular)).unflatten(-1, split)
        queries = self.query(normed).unflatten(-1, split)
        shares = attention_shares((queries.unsqueeze(1) * keys).sum(-1) / split[1] ** 0.5, window)
        messages = self.output((shares.unsqueeze(-1) * values).sum(1).flatten(-2))
        return self.over_orientations(features, messages, fibre_angular, for_compile)


def attention_shares(scores: Tensor, window: Tensor) -> Tensor:
    """u e^s / (1 + Σ u e^s) over neighbours.

    Args:
        scores: s, shape (N, M, ...).
        window: u, shape (N, M).
    """
    # The same shift above and below the line: nothing overflows, and no derivative sees it.
    shift = scores.detach().amax(1, keepdim=True).clamp(min=0.0)
    weights = window[(...,) + (None,) * (scores.ndim - 2)] * torch.exp(scores - shift)
    return weights / (torch.exp(-shift) + weights.sum(1, keepdim=True))


class Attention(MessagePassing):
    """PONITA with attention in place of the convolution over neighbours."""

    config: AttentionConfig  # type: ignore[assignment]

    def neighbour_sum(self) -> NeighbourAttention:
        """See :class:`NeighbourAttention`."""
        return NeighbourAttention(self.config)
