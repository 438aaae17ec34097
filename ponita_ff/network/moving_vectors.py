"""Message passing with vectors that move: E(n)-equivariant networks (EGNN, arXiv:2102.09844), smooth at the cutoff.

Every atom (on R³×S², every atom and orientation) has a displacement d_i(n), zero at first.
With y_ij = x_ij + d_j − d_i,

    m_ij = silu(W_i f_i + W_j f_j + Σ_l R_l(r) P_l(c) + W_y invariants(y_ij) + b)
    f_i  : block of W_m Σ_j m_ij u(r)
    d_i += (1/neighbours) Σ_j (a·m_ij) y_ij / √(1 + |y_ij|²) u(r)

where u is the envelope of the atoms' own distance. Invariants of y are polynomials of |y|² and of the cosine to n that
are bounded and smooth even where y is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from ponita_ff.network.config import MOVED_DEGREES, MovingVectorsConfig
from ponita_ff.network.invariants import legendre
from ponita_ff.network.message_passing import MessagePassing, PairMessages, kernel
from ponita_ff.structure.graph import Graph, gather_neighbours

__all__ = ["MovingMessages", "MovingVectors"]


class MovingMessages(PairMessages):
    """Messages that see a moved pair as well.

    Attributes:
        moved: W_y.
    """

    def __init__(self, config: MovingVectorsConfig, neighbours: float) -> None:
        super().__init__(config, neighbours)
        self.moved = nn.Linear(config.moved_invariants, config.channels, bias=False)

    def forward(  # type: ignore[override]
        self, features: Tensor, hidden: Tensor, window: Tensor, fibre_angular: Tensor, for_compile: bool = False
    ) -> Tensor:
        """Sum of messages that are there already."""
        return self.collect(features, hidden, window, fibre_angular, for_compile)


class MovingVectors(MessagePassing):
    """Message passing with moving vectors."""

    config: MovingVectorsConfig

    def __init__(self, config: MovingVectorsConfig, num_species: int) -> None:
        super().__init__(config, num_species)
        self.steps = nn.ModuleList(nn.Linear(config.channels, 1, bias=False) for _ in range(config.num_layers - 1))

    def neighbour_sum(self) -> MovingMessages:
        """See :class:`MovingMessages`."""
        return MovingMessages(self.config, self.expected_neighbours)

    def states(self, features: Tensor, graph: Graph, vectors: Tensor, for_compile: bool) -> Iterator[Tensor]:
        """Features after each block; the vectors move between blocks."""
        basis, angular, fibre_angular, edges, window = self.geometry(graph, vectors)
        start = vectors.unsqueeze(2)
        displacement = vectors.new_zeros(len(vectors), self.num_points(vectors), 3)
        for layer, step in zip(self.layers, [*self.steps, None], strict=True):
            senders = gather_neighbours(displacement, edges.neighbours, edges.reverse)
            pairs = start + senders - displacement.unsqueeze(1)
            messages = cast(MovingMessages, layer.convolution)
            invariants = kernel(messages.radial, basis, angular) + messages.moved(self._moved_invariants(pairs))
            hidden = messages.hidden(features, invariants, edges)
            features = layer(features, hidden, window, fibre_angular, for_compile=for_compile)
            yield features
            if step is not None:
                lengths = (1.0 + pairs.square().sum(-1, keepdim=True)).sqrt()
                moves = torch.einsum("nm,nmoa->noa", window, step(hidden) * pairs / lengths)
                displacement = displacement + moves / self.expected_neighbours

    def _moved_invariants(self, pairs: Tensor) -> Tensor:
        """Polynomials of length and cosine of moved pairs (N, M, O, 3), shape (N, M, O, number)."""
        squared = pairs.square().sum(-1)
        soft = squared + self.cutoff**2
        found = [legendre(2.0 * squared / soft - 1.0, MOVED_DEGREES)[..., 1:, :]]
        if self.config.l_max:
            along = (pairs * self.orientations.to(pairs.dtype)).sum(-1)
            found.append(legendre(along / (squared + 1.0).sqrt(), self.config.l_max)[..., 1:, :])
        return torch.cat(found, dim=-2).mT
