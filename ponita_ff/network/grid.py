"""The spaces R³ and R³×S² with a grid of orientations, the same at every atom.

Invariants of a pair are the distance r and, for each orientation n, the cosine c of the angle between edge and n
(invariants.py); those of two orientations, n·n'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.config import GridConfig
from ponita_ff.network.form import Form
from ponita_ff.network.invariants import bond_invariants, cosines, legendre
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.structure.graph import Graph

__all__ = ["GridForm"]


class GridForm(Form):
    """A form on R³ (one point at each atom) or on R³×S² (the orientations of a grid)."""

    config: GridConfig

    def __init__(self, config: GridConfig, num_species: int) -> None:
        super().__init__(config, num_species)
        self.l_max = config.l_max
        self.set_grid(config.num_ori)

    @property
    def grid_group(self) -> str:
        """Name of the rotation group that maps the orientation grid onto itself; empty on R³."""
        return orientation_grid(len(self.orientations)).group if self.config.num_ori else ""

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid. The kernels are continuous, so that the network runs on any.

        On a grid other than that of the training energies and forces change.

        Raises:
            ValueError: For a grid that does not exist, or one where the network was made without (or the reverse).
        """
        if bool(num_ori) != bool(self.config.num_ori):
            raise ValueError(f"a network made with num_ori={self.config.num_ori} cannot run with num_ori={num_ori}")
        if num_ori:
            grid = orientation_grid(num_ori)
            self.use_points(torch.from_numpy(grid.orientations), torch.from_numpy(grid.weights))

    def fibre_angular(self, dtype: torch.dtype) -> Tensor:
        """Quadrature weight of n' times P_l(n·n'), shape (l_max + 1, O', O), senders first."""
        grid, weights = self.orientations.to(dtype), self.orientation_weights.to(dtype)
        return legendre(cosines(grid, grid), self.l_max).transpose(0, 1) * weights[:, None]

    def geometry(self, graph: Graph, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Edges]:
        """Radial basis (N, M, K), P_l(c) (N, M, l_max + 1, O), :meth:`fibre_angular`, and the edges."""
        distance, cosine = bond_invariants(vectors, self.orientations.to(vectors.dtype))
        edges = Edges(graph.neighbours, graph.reverse, distance.detach() < self.config.cutoff)
        basis, angular = self.radial_basis(distance), legendre(cosine, self.l_max)
        return basis, angular, self.fibre_angular(vectors.dtype), edges
