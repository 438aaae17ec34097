"""Small sums over neighbours, for the tests of their kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ponita_ff.kernels.messages import Edges
from ponita_ff.structure.graph import build_graph

__all__ = ["form", "make_edges", "make_inputs"]


def make_edges(number: int = 7, seed: int = 0) -> Edges:
    """Neighbours of random points in a box; some slots unused, some edges beyond the cutoff."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 4, (number, 3))
    graph = build_graph(np.ones(number, dtype=np.int64), positions, 2.9)
    vectors = graph.positions[graph.neighbours] - graph.positions.unsqueeze(1) + graph.offsets
    active = vectors.norm(dim=-1) < 2.5
    assert 0 < int(active.sum()) < int(graph.used.sum()) < graph.used.numel()
    return Edges(graph.neighbours, graph.reverse, active)


def make_inputs(edges: Edges, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A, R, f, g."""
    generator = torch.Generator().manual_seed(1)
    degrees, orientations, channels = shape
    atoms, slots = edges.neighbours.shape
    sizes = [
        (atoms, slots, degrees, orientations),
        (atoms, slots, degrees, channels),
        (atoms, orientations, channels),
        (atoms, orientations, channels),
    ]
    return [torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype) for size in sizes]


def form(angular: Tensor, radial: Tensor, features: Tensor, receivers: Tensor, edges: Edges) -> Tensor:
    """The number Q, term by term."""
    senders = features[edges.neighbours]
    weight = edges.active.to(angular.dtype)
    return torch.einsum("im,imlo,imlc,imoc,ioc->", weight, angular, radial, senders, receivers)
