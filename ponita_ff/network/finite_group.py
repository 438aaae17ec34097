"""SE(3) with a finite group G of rotations at every atom (arXiv:2310.02970, Section 3; arXiv:2510.03511).

Features f_i(g) live on atoms and rotations g of G. The kernel sees the whole direction of a bond in the frame of g,

    h_i(g) = w f_i(g) + Σ_j Σ_lm R_lm(r_ij) Y_lm(gᵀ u_ij) f_j(g) + b

and every map between channels is a convolution over the group,

    (W f)(g) = Σ_g' W(g⁻¹g') f(g') + b,

one dense matrix made through the group's multiplication table. All of it commutes with G: turning the structure by a
rotation of G only renames the features, and the mean over g does not see it. Other rotations change the energy by as
much as l_max and G leave of the dependence; tests and benchmarks measure how much.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges, convolve
from ponita_ff.network.config import DirectionalConfig, FiniteGroupConfig
from ponita_ff.network.convolution import radial_weights
from ponita_ff.network.form import Form
from ponita_ff.network.harmonics import spherical_harmonics
from ponita_ff.network.orientations import quotients, rotation_group
from ponita_ff.structure.graph import Graph

__all__ = ["Directional", "DirectionalConvolution", "FiniteGroup", "GroupLinear"]


class GroupLinear(nn.Module):
    """Convolution over a finite group, features (N, |G|, inputs) to (N, |G|, outputs).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        table: Number of g⁻¹g', shape (|G|, |G|).

    Attributes:
        weight: W(g), shape (outputs, |G| · inputs).
        bias: Shape (outputs,).
    """

    def __init__(self, inputs: int, outputs: int, table: Tensor) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(len(table) * inputs)
        self.weight = nn.Parameter(torch.empty(outputs, len(table) * inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve."""
        order, outputs = len(self.table), len(self.bias)
        by_element = self.weight.view(outputs, order, -1)[:, self.table]  # (outputs, g, g', inputs)
        matrix = by_element.transpose(0, 1).reshape(order * outputs, -1)
        return (features.flatten(1) @ matrix.T).unflatten(1, (order, outputs)) + self.bias


class DirectionalConvolution(nn.Module):
    """Sum over the atom itself and its neighbours with kernels Σ_lm R_lm(r) Y_lm, one a channel.

    Args:
        channels: C.
        l_max: Highest degree.
        num_basis: Radial functions that come in, K.
        avg_num_neighbours: Scales the first weights.

    Attributes:
        radial: R_lm of every harmonic and channel from the basis, (num_basis) to ((l_max + 1)² · C).
        self_weight: w, shape (C,).
        bias: b, shape (C,).
    """

    def __init__(self, channels: int, l_max: int, num_basis: int, avg_num_neighbours: float) -> None:
        super().__init__()
        self.channels = channels
        self.radial = radial_weights(num_basis, (l_max + 1) ** 2 * channels, avg_num_neighbours)
        self.self_weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, features: Tensor, basis: Tensor, angular: Tensor, edges: Edges, for_compile: bool = False
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, |G|, C).
            basis: Radial basis times envelope, shape (N, M, K).
            angular: Y_lm(gᵀ u), shape (N, M, S, |G|).
            edges: Topology, and which edges lie within the cutoff: the others send nothing.
            for_compile: Not used.

        Returns:
            h, shape (N, |G|, C).
        """
        radial = self.radial(basis).unflatten(-1, (angular.shape[2], self.channels))
        return self.self_weight * features + convolve(angular, radial, features, edges) + self.bias


class Directional(Form):
    """A network whose kernels see the whole direction of a bond in the frames of a group of rotations.

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements.
        group: Name of the group.
    """

    float64_buffers = (*Form.float64_buffers, "elements")

    config: DirectionalConfig

    def __init__(self, config: DirectionalConfig, num_species: int, group: str) -> None:
        super().__init__(config, num_species)
        self.elements: Tensor
        self.register_buffer("elements", torch.from_numpy(rotation_group(group)), persistent=False)

    def neighbour_sum(self) -> DirectionalConvolution:
        """See :class:`DirectionalConvolution`."""
        config = self.config
        return DirectionalConvolution(config.channels, config.l_max, config.radial_basis, self.expected_neighbours)

    def num_points(self, vectors: Tensor) -> int:
        """|G|."""
        return len(self.elements)

    def average(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Mean over the group."""
        return values.mean(-1)

    def geometry(self, graph: Graph, vectors: Tensor) -> tuple[Tensor, Tensor, Edges]:
        """Radial basis (N, M, K), Y_lm(gᵀ u) (N, M, S, |G|), and the edges."""
        distance = vectors.square().sum(-1).sqrt()
        units = vectors / distance.unsqueeze(-1)
        turned = torch.einsum("gab,nma->nmgb", self.elements.to(vectors.dtype), units)
        edges = Edges(graph.neighbours, graph.reverse, distance.detach() < self.cutoff)
        return self.radial_basis(distance), spherical_harmonics(turned, self.config.l_max).mT.contiguous(), edges


class FiniteGroup(Directional):
    """PONITA on SE(3) with a finite group."""

    config: FiniteGroupConfig

    def __init__(self, config: FiniteGroupConfig, num_species: int) -> None:
        super().__init__(config, num_species, config.group)

    @property
    def grid_group(self) -> str:
        """Name of the group, under which the energy is exactly invariant."""
        return self.config.group

    def linear(self, inputs: int, outputs: int) -> GroupLinear:
        """A convolution over the group."""
        return GroupLinear(inputs, outputs, torch.from_numpy(quotients(self.config.group)))
