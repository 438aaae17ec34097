"""What the tests of the network's parts share: a random state of their own, and a small periodic system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ponita_ff.kernels.messages import Edges
from ponita_ff.network.invariants import bond_invariants, legendre
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.network.radial import envelope
from ponita_ff.structure.graph import build_graph, edge_vectors

CUTOFF = 3.0


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Random weights, the same in every run, from a random state of the test's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def geometry() -> dict[str, Any]:
    """What a convolution takes of a small periodic system, except the features."""
    positions = np.random.default_rng(0).uniform(0, 4, (4, 3))
    graph = build_graph(np.ones(4, dtype=np.int64), positions, CUTOFF, 5.0 * np.eye(3), True)
    grid = orientation_grid(6)
    points, weights = torch.from_numpy(grid.orientations), torch.from_numpy(grid.weights)
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    distance, cosine = bond_invariants(vectors, points)
    basis = torch.randn(*distance.shape, 5, dtype=torch.float64) * envelope(distance, CUTOFF).unsqueeze(-1)
    fibre = legendre(points @ points.T, 2).transpose(0, 1) * weights[:, None]
    return {
        "basis": basis,
        "angular": legendre(cosine, 2),
        "fibre_angular": fibre,
        "edges": Edges(graph.neighbours, graph.reverse, distance < CUTOFF),
    }
