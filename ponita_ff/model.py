"""The network: a graph in, atomic energies out. Nothing here differentiates or knows about units."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from ponita_ff.convolution import ConvNeXt, RadialBasis, SeparableConvolution
from ponita_ff.graph import Graph
from ponita_ff.invariants import bond_invariants, legendre
from ponita_ff.orientations import GRID_SIZES, orientation_grid

__all__ = ["ExactModule", "Network", "Ponita", "PonitaConfig"]


#: Neighbours that the first weights reckon with where nobody counted any.
DEFAULT_NEIGHBOURS = 10.0


class PonitaConfig(BaseModel):
    """Everything that fixes the network's shape. Refuses unknown and out-of-range values by field name.

    Attributes:
        cutoff: Radius of the neighbourhood, Å.
        num_ori: Orientations in the grid (one of ``GRID_SIZES``), or 0 for PNITA on R³.
        channels: Feature channels at every atom and orientation.
        num_layers: ConvNeXt blocks.
        l_max: Highest Legendre degree of the kernels (0 is forced where ``num_ori`` is 0).
        widening: Hidden width of a block over ``channels``.
        num_bessel: Bessel functions of the distance.
        radial_hidden: Width of the radial network's hidden layer.
        radial_basis: Radial functions that the layers combine.
        avg_num_neighbours: Sets the initial scale of the sum over neighbours; None: counted in the training set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["force-field"] = "force-field"
    cutoff: Annotated[float, Field(gt=0.5, le=100.0)] = 5.0
    num_ori: int = 12
    channels: Annotated[int, Field(ge=1)] = 64
    num_layers: Annotated[int, Field(ge=1)] = 4
    l_max: Annotated[int, Field(ge=0, le=12)] = 2
    widening: Annotated[int, Field(ge=1)] = 4
    num_bessel: Annotated[int, Field(ge=1)] = 8
    radial_hidden: Annotated[int, Field(ge=1)] = 64
    radial_basis: Annotated[int, Field(ge=1)] = 32
    avg_num_neighbours: Annotated[float, Field(gt=0)] | None = None

    @field_validator("num_ori")
    @classmethod
    def _known_grid(cls, value: int) -> int:
        if value not in (0, *GRID_SIZES):
            raise ValueError(f"no orientation grid of {value}: choose one of {GRID_SIZES}, or 0 for PNITA")
        return value

    @model_validator(mode="before")
    @classmethod
    def _distances_only(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("num_ori") == 0:
            return {"l_max": 0, **data}
        return data

    @model_validator(mode="after")
    def _no_angles_without_orientations(self) -> Self:
        if self.num_ori == 0 and self.l_max != 0:
            raise ValueError("l_max must be 0 (or left out) where num_ori is 0: PNITA sees distances only")
        return self


class ExactModule(nn.Module):
    """A module some of whose buffers stay in float64 wherever it is moved and whatever it is cast to.

    Attributes:
        exact: Names of these buffers.
    """

    exact: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in self.exact}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


class Network(ExactModule):
    """What a potential needs of a network; both forms of PONITA are one.

    Attributes:
        config: A validated description from which the network can be made again; its ``form`` names the class.
        cutoff: Å; None where all pairs of a molecule interact.
    """

    config: PonitaConfig | Any
    cutoff: float | None

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, fused: bool = False) -> Tensor:
        """Atomic energies (N,) in the network's own scale, from edge vectors (N, M, 3), Å, in the network's dtype."""
        raise NotImplementedError("every form of network has its own forward")


class Ponita(Network):
    """PONITA in its force-field form (arXiv:2310.02970; kernels expanded in Legendre polynomials).

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements; the graph's elements come in as indices 0 … num_species − 1.
    """

    #: The grid's symmetry is exact only to its rounding.
    exact = ("orientations", "orientation_weights")

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

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid: the kernels are continuous, so it runs on any.

        Weights know the grids that they were trained on, though: on another one energies and forces change.

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

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, fused: bool = False) -> Tensor:
        """Atomic energies in the network's own scale, shape (N,).

        Args:
            graph: Topology: its ``neighbours`` and ``reverse``.
            species: Index of each atom's element, shape (N,).
            vectors: Edge vectors, shape (N, M, 3), Å, in the network's dtype.
            fused: See :class:`SeparableConvolution`.
        """
        grid, weights = self.orientations.to(vectors.dtype), self.orientation_weights.to(vectors.dtype)
        distance, cosine = bond_invariants(vectors, grid)
        active = distance.detach() < self.config.cutoff
        basis = self.radial_basis(distance)
        angular = legendre(cosine, self.l_max)
        fibre_angular = legendre(grid @ grid.T, self.l_max).transpose(0, 1) * weights[:, None]

        # A product with a one-hot matrix, not a look-up: its gradient adds up in the same order in every run.
        every = torch.arange(self.embedding.num_embeddings, device=species.device)
        one_hot = (species.unsqueeze(-1) == every).to(vectors.dtype)
        features = (one_hot @ self.embedding.weight).unsqueeze(1).expand(-1, len(grid), -1)
        energy = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            features = layer(
                features, basis, angular, fibre_angular, graph.neighbours, graph.reverse, active, fused=fused
            )
            energy = energy + readout(features).squeeze(-1)
        return (energy @ weights) / len(self.layers)
