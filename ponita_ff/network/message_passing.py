"""Messages that are not linear in the features, on R³ and on R³×S².

    m_ij(n) = W_m silu(W_i f_i(n) + W_j f_j(n) + Σ_l R_l(r) P_l(c) + b) u(r)

is an MLP of both atoms' features and the pair's invariants (Gilmer et al., arXiv:1704.01212), the same at every
orientation; u is the envelope. The last matrix is applied to the sum of the messages, which is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.config import MessagePassingConfig
from ponita_ff.network.convolution import OrientedSum, radial_weights
from ponita_ff.network.grid import GridForm
from ponita_ff.network.radial import envelope
from ponita_ff.structure.graph import Graph, gather_neighbours

__all__ = ["MessagePassing", "PairMessages", "kernel"]


def kernel(radial: nn.Linear, basis: Tensor, angular: Tensor) -> Tensor:
    """Σ_l R_l(r) P_l(c) for all edges, orientations and channels, shape (N, M, O, C).

    Args:
        radial: R_l of every degree and channel from the basis.
        basis: Shape (N, M, K).
        angular: P_l(c), shape (N, M, L, O).
    """
    return angular.mT @ radial(basis).unflatten(-1, (angular.shape[2], -1))


class PairMessages(OrientedSum):
    """Sum of the messages above.

    Args:
        config: Shape of the network.
        neighbours: Average number of neighbours, which scales the first weights.

    Attributes:
        radial: R_l of every degree and channel from the basis.
        receiver: W_i and b.
        sender: W_j.
        message: W_m.
    """

    def __init__(self, config: MessagePassingConfig, neighbours: float) -> None:
        super().__init__(config.channels, config.l_max, bool(config.num_ori))
        channels = config.channels
        self.radial = radial_weights(config.radial_basis, (config.l_max + 1) * channels, 1.0)
        self.receiver = nn.Linear(channels, channels)
        self.sender = nn.Linear(channels, channels, bias=False)
        self.message = nn.Linear(channels, channels, bias=False)
        nn.init.normal_(self.message.weight, std=1.0 / (channels * neighbours) ** 0.5)

    def hidden(self, features: Tensor, invariants: Tensor, edges: Edges) -> Tensor:
        """silu(W_i f_i + W_j f_j + invariants + b), shape (N, M, O, C)."""
        senders = gather_neighbours(self.sender(features), edges.neighbours, edges.reverse)
        return silu(self.receiver(features).unsqueeze(1) + senders + invariants)

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
        """Sum over neighbours.

        Args:
            features, basis, angular, fibre_angular, edges, for_compile: As for
                :class:`ponita_ff.network.convolution.SeparableConvolution`.
            window: u, shape (N, M).
        """
        hidden = self.hidden(features, kernel(self.radial, basis, angular), edges)
        return self.collect(features, hidden, window, fibre_angular, for_compile)

    def collect(
        self, features: Tensor, hidden: Tensor, window: Tensor, fibre_angular: Tensor, for_compile: bool
    ) -> Tensor:
        """W_m Σ_j u hidden, then over orientations."""
        messages = self.message(torch.einsum("nm,nmoc->noc", window, hidden))
        return self.over_orientations(features, messages, fibre_angular, for_compile)


class MessagePassing(GridForm):
    """Message passing with invariants only."""

    config: MessagePassingConfig

    def neighbour_sum(self) -> nn.Module:
        """See :class:`PairMessages`."""
        return PairMessages(self.config, self.expected_neighbours)

    def geometry(self, graph: Graph, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Edges, Tensor]:  # type: ignore[override]
        """As on every grid, and the envelope (N, M)."""
        return *super().geometry(graph, vectors), envelope(vectors.square().sum(-1).sqrt(), self.cutoff)
