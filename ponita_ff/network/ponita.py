"""The network in its force-field form: a graph in, atomic energies out. Nothing here differentiates or knows units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.base import Network
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.config import DEFAULT_NEIGHBOURS, PonitaConfig
from ponita_ff.network.convolution import SeparableConvolution
from ponita_ff.network.invariants import bond_invariants, cosines, legendre
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.network.radial import RadialBasis
from ponita_ff.structure.graph import Graph

__all__ = ["Ponita"]


class Ponita(Network):
    """PONITA in its force-field form: kernels are expanded in Legendre polynomials (arXiv:2310.02970).

    f_i(n) = embedding of the element; then blocks (block.py), each followed by a linear read-out; the energy of an atom
    is the mean over blocks of the read-outs' mean over orientations, Σ_n q(n) (W f_i(n) + b).

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements; the graph's elements come in as indices 0 … num_species − 1.
    """

    #: The grid's symmetry is exact only to its rounding.
    float64_buffers = ("orientations", "orientation_weights")

    def __init__(self, config: PonitaConfig, num_species: int) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.l_max = config.l_max
        self.embedding = nn.Embedding(num_species, config.channels)
        self.radial_basis = RadialBasis(config.cutoff, config.num_bessel, config.radial_hidden, config.radial_basis)
        self.layers = nn.ModuleList(
            ConvNeXt(
                SeparableConvolution(
                    config.channels,
                    config.l_max,
                    config.radial_basis,
                    config.avg_num_neighbours or DEFAULT_NEIGHBOURS,
                    bool(config.num_ori),
                ),
                config.channels,
                config.widening,
            )
            for _ in range(config.num_layers)
        )
        readouts = [nn.Linear(config.channels, 1) for _ in range(config.num_layers)]
        self.readouts = nn.ModuleList(readouts)
        for readout in readouts:
            nn.init.normal_(readout.weight, std=0.1 / config.channels**0.5)
            nn.init.zeros_(readout.bias)
        self.orientations: Tensor
        self.orientation_weights: Tensor
        self.set_grid(config.num_ori)

    @property
    def grid_group(self) -> str:
        """Name of the rotation group that maps the orientation grid onto itself; empty for PNITA."""
        return orientation_grid(len(self.orientations)).group if self.config.num_ori else ""

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid. The kernels are continuous, so that the network runs on any.

        On a grid other than that of the training energies and forces change.

        Raises:
            ValueError: For a grid that does not exist, or one where the network was made without (or the reverse).
        """
        if bool(num_ori) != bool(self.config.num_ori):
            raise ValueError(f"a network made with num_ori={self.config.num_ori} cannot run with num_ori={num_ori}")
        if num_ori == 0:
            points, weights = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        else:
            grid = orientation_grid(num_ori)
            points, weights = torch.from_numpy(grid.orientations), torch.from_numpy(grid.weights)
        device = self.embedding.weight.device
        self.register_buffer("orientations", points.to(device))
        self.register_buffer("orientation_weights", weights.to(device))

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, for_compile: bool = False) -> Tensor:
        """Atomic energies in the network's own scale, shape (N,).

        Args:
            graph: Topology: its ``neighbours`` and ``reverse``.
            species: Index of each atom's element, shape (N,).
            vectors: Edge vectors, shape (N, M, 3), Å, in the network's dtype.
            for_compile: See :class:`SeparableConvolution`.
        """
        grid, weights = self.orientations.to(vectors.dtype), self.orientation_weights.to(vectors.dtype)
        distance, cosine = bond_invariants(vectors, grid)
        edges = Edges(graph.neighbours, graph.reverse, distance.detach() < self.config.cutoff)
        basis = self.radial_basis(distance)
        angular = legendre(cosine, self.l_max)
        fibre_angular = legendre(cosines(grid, grid), self.l_max).transpose(0, 1) * weights[:, None]

        # A product with a one-hot matrix, not a look-up: the gradient is then summed in the same order in every run.
        indices = torch.arange(self.embedding.num_embeddings, device=species.device)
        one_hot = (species.unsqueeze(-1) == indices).to(vectors.dtype)
        features = (one_hot @ self.embedding.weight).unsqueeze(1).expand(-1, len(grid), -1)
        energy = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            features = layer(features, basis, angular, fibre_angular, edges, for_compile=for_compile)
            energy = energy + readout(features).squeeze(-1)
        return (energy @ weights) / len(self.layers)
