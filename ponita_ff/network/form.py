"""What all forms of network have in common.

A form is a space on which features live and a message. Every atom has a fibre of points: one (R³), the orientations of
a grid or of the atom's own edges (R³×S²), or the rotations of a finite group (SE(3)). Then

    f_i(p) = embedding of the element                     features (N, P, C): atoms, points of the fibre, channels
    h_i(p) = sum over neighbours, conditioned on the invariants of a pair of points          the form's own
    f_i(p) += W2 gelu(W1 layernorm(h_i(p)) + b1) + b2     block.py
    network_i = mean over blocks of the mean over points of W f_i(p) + b0

which is arXiv:2310.02970, Section 4, for any space and any message (config.py lists them, forms.py has their classes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ponita_ff.network.base import Network
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.config import DEFAULT_NEIGHBOURS, FormConfig
from ponita_ff.network.radial import RadialBasis
from ponita_ff.structure.graph import Graph

__all__ = ["Form"]


class Form(Network):
    """Embedding, blocks and read-outs; a subclass gives the geometry and the sum over neighbours.

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements; the graph's elements come in as indices 0 … num_species − 1.
    """

    #: The grid's symmetry is exact only to its rounding.
    float64_buffers: ClassVar[tuple[str, ...]] = ("orientations", "orientation_weights")

    config: Any
    cutoff: float

    def __init__(self, config: FormConfig, num_species: int) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.embedding = nn.Embedding(num_species, config.channels)
        self.radial_basis = RadialBasis(config.cutoff, config.num_bessel, config.radial_hidden, config.radial_basis)
        self.layers = nn.ModuleList(
            ConvNeXt(self.neighbour_sum(), config.channels, config.widening, self.linear)
            for _ in range(config.num_layers)
        )
        readouts = [nn.Linear(config.channels, 1) for _ in range(config.num_layers)]
        self.readouts = nn.ModuleList(readouts)
        for readout in readouts:
            nn.init.normal_(readout.weight, std=0.1 / config.channels**0.5)
            nn.init.zeros_(readout.bias)
        self.orientations: Tensor
        self.orientation_weights: Tensor
        self.use_points(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))

    # ------------------------------------------------------------------------------------- a form's own

    def neighbour_sum(self) -> nn.Module:
        """The sum over neighbours of one layer: features (N, P, C) and a geometry to features (N, P, C)."""
        raise NotImplementedError("every form has its own sum over neighbours")

    def geometry(self, graph: Graph, vectors: Tensor) -> tuple[Any, ...]:
        """What the sums over neighbours take beside the features: the invariants of all pairs."""
        raise NotImplementedError("every form has its own invariants")

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A map between channels."""
        return nn.Linear(inputs, outputs)

    def num_points(self, vectors: Tensor) -> int:
        """Points in the fibre of an atom, P."""
        return len(self.orientations)

    def average(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Mean over the fibre, (N, P) to (N,)."""
        return values @ self.orientation_weights.to(vectors.dtype)

    def states(self, features: Tensor, graph: Graph, vectors: Tensor, for_compile: bool) -> Iterator[Tensor]:
        """Features after each block."""
        geometry = self.geometry(graph, vectors)
        for layer in self.layers:
            features = layer(features, *geometry, for_compile=for_compile)
            yield features

    # ------------------------------------------------------------------------------------- the same for all

    @property
    def expected_neighbours(self) -> float:
        """Average number of neighbours, which scales first weights."""
        return self.config.avg_num_neighbours or DEFAULT_NEIGHBOURS

    def use_points(self, orientations: Tensor, weights: Tensor) -> None:
        """Orientations (P, 3) and their quadrature weights (P,), as buffers on the network's device."""
        device = self.embedding.weight.device
        self.register_buffer("orientations", orientations.to(device))
        self.register_buffer("orientation_weights", weights.to(device))

    def set_grid(self, num_ori: int) -> None:
        """Refuse a grid.

        Raises:
            ValueError: Where there is none in this form.
        """
        if num_ori != 0:
            raise ValueError(f"the {self.config.form} form has no orientation grid: leave num_ori={num_ori} out")

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, for_compile: bool = False) -> Tensor:
        """Atomic energies in the network's own scale, shape (N,).

        Args:
            graph: Topology: its ``neighbours`` and ``reverse``.
            species: Index of each atom's element, shape (N,).
            vectors: Edge vectors, shape (N, M, 3), Å, in the network's dtype.
            for_compile: Write sums so that a compiler fuses them.
        """
        # A product with a one-hot matrix, not a look-up: the gradient is then summed in the same order in every run.
        indices = torch.arange(self.embedding.num_embeddings, device=species.device)
        one_hot = (species.unsqueeze(-1) == indices).to(vectors.dtype)
        features = (one_hot @ self.embedding.weight).unsqueeze(1).expand(-1, self.num_points(vectors), -1)
        energy = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        states = self.states(features, graph, vectors, for_compile)
        for state, readout in zip(states, self.readouts, strict=True):
            energy = energy + readout(state).squeeze(-1)
        return self.average(energy, vectors) / len(self.layers)
