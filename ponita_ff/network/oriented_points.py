"""R³×S² as a cloud of oriented points: every directed edge is one, at its receiver, and points along the edge.

Atom i has the orientations u_ik of its own edges, with weight q_ik = envelope(r_ik), and features f_ik on them. The
convolution is that of PONITA (arXiv:2310.02970, Section 4) with the atom's own points in place of a grid,

    A_j(n)  = Σ_k q_jk k2(n·u_jk) f_jk                         fibre convolution, onto any orientation n
    h_ik    = w f_ik + Σ_j k1(x_ij, u_ik) A_j(u_ik) + b        spatial convolution, at the receiver's orientations

with k1 = Σ_l R_l(r) P_l(c) and k2 = Σ_l w_l P_l. The points (i, u_ik) and (j, u_jl) are told apart by
r_ij, u_ij·u_ik and u_ik·u_jl alone, so that the energy is exactly invariant. A point comes and goes with the weight q,
and the energy smoothly with it.

By the addition theorem P_l(u·v) = Σ_m Y_lm(u) Y_lm(v) the sums are taken over harmonics, and cost as much as there are
edges, not pairs of edges.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.config import OrientedPointsConfig
from ponita_ff.network.convolution import radial_weights
from ponita_ff.network.form import Form
from ponita_ff.network.harmonics import degrees_of_harmonics, spherical_harmonics
from ponita_ff.network.radial import envelope
from ponita_ff.structure.graph import Graph, gather_neighbours

__all__ = ["CloudConvolution", "OrientedPoints"]


class CloudConvolution(nn.Module):
    """The convolution above, one kernel a channel.

    Args:
        config: Shape of the network.
        neighbours: Average number of neighbours, which scales the first weights.

    Attributes:
        radial: R_l of every degree and channel from the basis, (num_basis) to ((l_max + 1) · C).
        fibre: w_l, shape (l_max + 1, C).
        self_weight: w, shape (C,).
        bias: b, shape (C,).
    """

    def __init__(self, config: OrientedPointsConfig, neighbours: float) -> None:
        super().__init__()
        self.channels, self.l_max = config.channels, config.l_max
        self.radial = radial_weights(config.radial_basis, (self.l_max + 1) * self.channels, neighbours)
        degrees = 2 * torch.arange(self.l_max + 1) + 1.0
        noise = 1.0 + 0.5 * torch.randn(self.l_max + 1, self.channels)
        self.fibre = nn.Parameter(degrees[:, None] * noise / neighbours)
        self.self_weight = nn.Parameter(torch.ones(self.channels))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def forward(
        self,
        features: Tensor,
        basis: Tensor,
        harmonics: Tensor,
        weights: Tensor,
        edges: Edges,
        for_compile: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, M, C).
            basis: Radial basis times envelope, shape (N, M, K).
            harmonics: Y_lm(u), shape (N, M, S).
            weights: q, shape (N, M).
            edges: Topology.
            for_compile: Not used.

        Returns:
            h, shape (N, M, C).
        """
        degree = degrees_of_harmonics(self.l_max, features.device)
        radial = self.radial(basis).unflatten(-1, (self.l_max + 1, self.channels))[:, :, degree]
        own = (weights.unsqueeze(-1) * harmonics).mT @ features * self.fibre[degree]
        senders = gather_neighbours(own, edges.neighbours, edges.reverse)
        received = torch.einsum("nmt,nmtc,nmsc->ntsc", harmonics, radial, senders)
        spatial = torch.einsum("nkt,nks,ntsc->nkc", harmonics, harmonics, received)
        return self.self_weight * features + spatial + self.bias


class OrientedPoints(Form):
    """PONITA on the cloud of directed edges; the energy of an atom is Σ_k q_ik (W f_ik + b0)."""

    config: OrientedPointsConfig

    def __init__(self, config: OrientedPointsConfig, num_species: int) -> None:
        super().__init__(config, num_species)
        with torch.no_grad():
            for readout in self.readouts:
                readout.weight.div_(self.expected_neighbours)  # type: ignore[operator]

    @property
    def reach(self) -> float | None:
        """A point of a neighbour lies one cutoff beyond it."""
        return (self.config.num_layers + 1) * self.cutoff

    def neighbour_sum(self) -> CloudConvolution:
        """See :class:`CloudConvolution`."""
        return CloudConvolution(self.config, self.expected_neighbours)

    def num_points(self, vectors: Tensor) -> int:
        """As many as an atom has slots."""
        return vectors.shape[1]

    def average(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Sum with weights q; not divided by their sum, which falls to zero where the last neighbour leaves."""
        return (values * self._weights(vectors)).sum(-1)

    def geometry(self, graph: Graph, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Edges]:
        """Radial basis, harmonics and weights of all edges, and the edges."""
        distance = vectors.square().sum(-1).sqrt()
        harmonics = spherical_harmonics(vectors / distance.unsqueeze(-1), self.config.l_max)
        edges = Edges(graph.neighbours, graph.reverse, distance.detach() < self.cutoff)
        return self.radial_basis(distance), harmonics, self._weights(vectors), edges

    def _weights(self, vectors: Tensor) -> Tensor:
        return envelope(vectors.square().sum(-1).sqrt(), self.cutoff)
