"""The published network, number for number: as the authors' code has it.

The authors' PyTorch Geometric code (arXiv:2310.02970) draws its kernels from MLPs on polynomial features,

    k1(x_ij, n) = w1 · MLP(p(a1, a2)) u(|x_ij|),    a1 = x_ij·n,  a2 = |x_ij − a1 n|
    k2(n, n')   = w2 · MLP(p(n·n')),                p(x) = x, x⊗x, x⊗x⊗x, …

(num_ori = 0: k1 of |x_ij| alone, no k2) and counts every atom among its own neighbours. Its blocks, read-outs and
envelope u are those of ponita_ff.network (block.py, ponita.py, radial.py). This form is here for parity; the
force-field form is smooth, faster, and has a grid that does not depend on chance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponita_ff.network.base import Network
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.convolution import fibre_convolution
from ponita_ff.network.invariants import published_invariants
from ponita_ff.network.radial import envelope
from ponita_ff.published.config import PublishedConfig, num_features
from ponita_ff.structure.graph import Graph, gather_neighbours

__all__ = ["PublishedPonita"]


class PolynomialBasis(nn.Module):
    """Kernel basis: an MLP on x, x⊗x, x⊗x⊗x, … of the invariants x, without a constant."""

    def __init__(self, attributes: int, degree: int, hidden: int, basis_dim: int) -> None:
        super().__init__()
        self.degree = degree
        self.network = nn.Sequential(
            nn.Linear(num_features(attributes, degree), hidden), nn.GELU(), nn.Linear(hidden, basis_dim), nn.GELU()
        )

    def forward(self, attributes: Tensor) -> Tensor:
        """Attributes (..., A) to basis values (..., basis_dim)."""
        powers = [attributes]
        for _ in range(1, self.degree):
            powers.append((powers[-1].unsqueeze(-1) * attributes.unsqueeze(-2)).flatten(-2))
        basis: Tensor = self.network(torch.cat(powers, dim=-1))
        return basis


class PublishedConvolution(nn.Module):
    """Depthwise convolution over neighbours and the atom itself, then over orientations."""

    def __init__(self, channels: int, basis_dim: int, fibre: bool) -> None:
        super().__init__()
        self.spatial = nn.Linear(basis_dim, channels, bias=False)
        self.fibre = nn.Linear(basis_dim, channels, bias=False) if fibre else None
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        features: Tensor,
        basis: Tensor,
        self_basis: Tensor,
        fibre_basis: Tensor,
        neighbours: Tensor,
        reverse: Tensor,
        for_compile: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, O, C).
            basis: Spatial basis times envelope, zero in unused slots, shape (N, M, O, K).
            self_basis: Spatial basis at x_ii = 0, shape (K,).
            fibre_basis: Quadrature weight of n' times the fibre basis, shape (O', O, K), senders first; unused
                without orientations.
            neighbours: Shape (N, M).
            reverse: Shape (N, M).
            for_compile: See :func:`ponita_ff.network.convolution.fibre_convolution`.

        Returns:
            Shape (N, O, C).
        """
        senders = gather_neighbours(features, neighbours, reverse)
        spatial = (self.spatial(basis) * senders).sum(1) + self.spatial(self_basis) * features
        if self.fibre is not None:
            spatial = fibre_convolution(spatial, self.fibre(fibre_basis), for_compile)
        return spatial + self.bias


class PublishedPonita(Network):
    """PONITA as its authors published it (arXiv:2310.02970); for orientations, the fibre-bundle form.

    The grid belongs to the weights: the authors draw it at random, and the weights are valid on it only. The buffer
    holds NaN, so that every prediction is NaN, until a state with a grid is loaded.

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements; the graph's elements come in as indices 0 … num_species − 1.
    """

    def __init__(self, config: PublishedConfig, num_species: int) -> None:
        super().__init__()
        self.config = config
        self.cutoff, self.envelope_power = config.cutoff, config.envelope_power
        channels, basis_dim, fibre = config.channels, config.basis_dim, bool(config.num_ori)
        self.embedding = nn.Embedding(num_species, channels)
        self.spatial_basis = PolynomialBasis(2 if fibre else 1, config.degree, channels, basis_dim)
        self.fibre_basis = PolynomialBasis(1, config.degree, channels, basis_dim) if fibre else None
        self.layers = nn.ModuleList(
            ConvNeXt(PublishedConvolution(channels, basis_dim, fibre), channels, config.widening)
            for _ in range(config.num_layers)
        )
        number = config.num_layers if config.multiple_readouts else 1
        self.readouts = nn.ModuleList(nn.Linear(channels, 1) for _ in range(number))
        size = max(config.num_ori, 1)
        grid = torch.full((size, 3), torch.nan) if fibre else torch.tensor([[0.0, 0.0, 1.0]])
        self.orientations: Tensor
        self.orientation_weights: Tensor
        self.register_buffer("orientations", grid.to(self.embedding.weight))
        self.register_buffer("orientation_weights", torch.full((size,), 1.0 / size).to(self.orientations))

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, for_compile: bool = False) -> Tensor:
        """Atomic energies in the network's own scale, shape (N,).

        Args:
            graph: Topology: its ``neighbours``, ``reverse`` and ``used``.
            species: Index of each atom's element, shape (N,).
            vectors: Edge vectors, shape (N, M, 3), Å, in the network's dtype.
            for_compile: See :class:`PublishedConvolution`.
        """
        basis = self._edge_basis(vectors, graph.used)
        # Of x_ii = 0 every invariant is 0 and so is every feature: a constant, the same at all orientations.
        self_basis = self.spatial_basis(vectors.new_zeros(2 if self.fibre_basis is not None else 1))
        fibre_basis = self._fibre_basis()

        # A product with a one-hot matrix, not a look-up: its gradient adds up in the same order in every run.
        every = torch.arange(self.embedding.num_embeddings, device=species.device)
        one_hot = (species.unsqueeze(-1) == every).to(vectors.dtype)
        features = (one_hot @ self.embedding.weight).unsqueeze(1).expand(-1, len(self.orientations), -1)
        first_readout = len(self.layers) - len(self.readouts)
        energy = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for index, layer in enumerate(self.layers):
            features = layer(
                features, basis, self_basis, fibre_basis, graph.neighbours, graph.reverse, for_compile=for_compile
            )
            if index >= first_readout:
                energy = energy + self.readouts[index - first_readout](features).squeeze(-1)
        return (energy @ self.orientation_weights) / len(self.readouts)

    def _edge_basis(self, vectors: Tensor, used: Tensor) -> Tensor:
        """Spatial basis of every edge, times the envelope, zero in unused slots; shape (N, M, O or 1, K)."""
        # High powers of an unused slot's length overflow float32 in second derivatives: a harmless vector instead.
        vectors = torch.where(used.unsqueeze(-1), vectors, torch.ones_like(vectors))
        distance = vectors.square().sum(-1).sqrt()
        if self.fibre_basis is None:
            attributes = distance[..., None, None]
        else:
            attributes = published_invariants(vectors, self.orientations)
        window = used.to(vectors.dtype)
        if self.cutoff is not None:
            window = window * envelope(distance, self.cutoff, self.envelope_power)
        basis: Tensor = self.spatial_basis(attributes)
        return basis * window[..., None, None]

    def _fibre_basis(self) -> Tensor:
        """Quadrature weight of n' times the basis of n·n', shape (O', O, K), senders first; empty without a grid."""
        if self.fibre_basis is None:
            return self.orientations.new_zeros(0)
        basis: Tensor = self.fibre_basis((self.orientations @ self.orientations.T).unsqueeze(-1))
        return basis * self.orientation_weights[:, None, None]
