"""Frame averaging (Puny et al., arXiv:2110.03336) around a PONITA without a grid.

    E(x) = (1/4) Σ_F network(Fᵀ x)

over the four right-handed frames F of principal axes of the structure: exactly invariant for any network inside, here
one whose kernels see the whole direction of a bond, in the structure's frame. The axes are those of
Σ u(r_ij) x_ij x_ijᵀ over all pairs, so that neither the origin nor the choice of periodic images matters.

Not for dynamics. Where two moments are equal the axes are not defined, and no choice of finitely many frames is
continuous there (Dym et al., arXiv:2402.16077): the energy jumps, and forces grow as one over the difference of the
moments near by. The axes belong to the whole structure, so that parts far from each other feel each other.
``benchmarks/frames.py`` has the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ponita_ff.network.config import FrameAveragingConfig
from ponita_ff.network.finite_group import Directional
from ponita_ff.network.radial import envelope
from ponita_ff.structure.graph import Graph, sum_over_structures

__all__ = ["FrameAveraging", "principal_axes", "symmetric_eigenvectors"]

#: Signs of the axes that keep them right-handed.
_SIGNS = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))


class _Eigenvectors(torch.autograd.Function):
    """Eigenvalues and eigenvectors; where two eigenvalues are equal, the eigenvectors' derivative counts as zero."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, grad_vectors: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
        largest = values.abs().amax(-1)[..., None, None]
        equal = gaps.abs() <= 1e-12 * largest
        slopes = torch.where(equal, 0.0, 1.0 / torch.where(equal, 1.0, gaps))
        inner = slopes * (vectors.mT @ grad_vectors) + torch.diag_embed(grad_values)
        gradient = vectors @ inner @ vectors.mT
        return 0.5 * (gradient + gradient.mT)


def symmetric_eigenvectors(matrices: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices (..., 3, 3) as columns, by ascending eigenvalue; differentiable twice."""
    vectors: Tensor = _Eigenvectors.apply(matrices)[1]
    return vectors


def principal_axes(vectors: Tensor, weights: Tensor, batch: Tensor, number: int) -> Tensor:
    """Right-handed principal axes of each structure, as columns, shape (number, 3, 3).

    Args:
        vectors: Edge vectors, shape (N, M, 3), Å.
        weights: Of the edges, shape (N, M).
        batch: Structure of each atom, shape (N,).
        number: Structures.
    """
    moments = torch.einsum("nm,nma,nmb->nab", weights, vectors, vectors).flatten(1)
    axes = symmetric_eigenvectors(sum_over_structures(moments, batch, number).unflatten(-1, (3, 3)))
    first, second = axes[..., 0], axes[..., 1]
    return torch.stack((first, second, torch.linalg.cross(first, second)), dim=-1)


class FrameAveraging(Directional):
    """A directional network, averaged over frames."""

    config: FrameAveragingConfig

    def __init__(self, config: FrameAveragingConfig, num_species: int) -> None:
        super().__init__(config, num_species, "trivial")

    @property
    def reach(self) -> float | None:
        """The axes are those of the whole structure."""
        return None

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, for_compile: bool = False) -> Tensor:
        """The mean over frames; arguments as for :class:`ponita_ff.network.form.Form`."""
        weights = envelope(vectors.square().sum(-1).sqrt(), self.cutoff)
        axes = principal_axes(vectors, weights, graph["batch"], len(graph["cell"]))[graph["batch"]]
        energies = [
            super(FrameAveraging, self).forward(graph, species, vectors @ (axes * axes.new_tensor(signs)), for_compile)
            for signs in _SIGNS
        ]
        return torch.stack(energies).mean(0)
