"""Floating-point operations that a network needs for energy and forces, for the speed benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ponita_ff.network.config import PonitaConfig
from ponita_ff.published.config import PublishedConfig
from ponita_ff.structure.neighbours import neighbour_list

__all__ = ["Flops", "count_flops", "directed_edges"]

#: Operations of a multiply-add.
MULTIPLY_ADD = 2

#: Passes of an evaluation: the energy, and its gradient, which multiplies by the same matrices transposed.
PASSES = 2

#: Matrix products of a ConvNeXt block: one to the widened channels and one back.
PRODUCTS = 2


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one evaluation of energy and forces.

    Attributes:
        convnext: Operations of the matrix products in the ConvNeXt blocks.
        total: The same with the convolutions over neighbours and over orientations.
    """

    convnext: float
    total: float


def spatial_flops(l_max: int) -> int:
    """Operations of the convolution over neighbours per edge, orientation, channel and layer, forward and backward.

    Forward: k = Σ_l R_l P_l (l_max multiply-adds, P_0 being 1) and s += k f: 2 (l_max + 1).

    Backward, with g the gradient with respect to the sum: p = g f (1); Σ_n P_l p for dE/dr (1 for l = 0, 2 for each
    other l); t = Σ_l R_l P_l' for dE/dc (l_max − 1 multiply-adds, P_1' being 1) and Σ_c t p (2); k again (2 l_max);
    and the gradient with respect to the feature += k g (2). Together 6 l_max + 4.

    What is needed once per edge, not once per orientation (radial functions, Legendre polynomials), is not counted, nor
    are norms and activations.
    """
    forward = MULTIPLY_ADD * (l_max + 1)
    backward = 6 * l_max + 4
    return forward + backward


def _convnext_flops(atoms: int, orientations: int, channels: int, widening: int, layers: int) -> float:
    """Operations of the ConvNeXt blocks: 2 passes × 2 products × 2·C·W·C per atom, orientation and layer.

    The last product is an exception. Only the sum of its result over orientations is needed, and the sum can be taken
    first: one row per atom forward, and none backward, where its gradient is the same for all atoms.
    """
    row = MULTIPLY_ADD * channels * widening * channels
    rows = PASSES * PRODUCTS * orientations * layers - PASSES * orientations + 1
    return float(row * rows * atoms)


def _fibre_flops(atoms: int, orientations: int, channels: int, layers: int) -> float:
    """Operations of the convolution over orientations with a precomputed kernel, forward and backward."""
    return float(PASSES * MULTIPLY_ADD * orientations**2 * channels * atoms * layers)


def _published_spatial_flops(edges: int, config: PublishedConfig) -> float:
    """Operations of the published convolution over neighbours, with a kernel network at every edge and orientation.

    Counted are the two matrix products of the kernel network, once for all layers, and w·basis once per layer, both
    forward and backward without gradients with respect to weights; and per channel k f and its sum (2), g f (1), and
    k g and its sum (2).
    """
    attributes = 2 if config.num_ori else 1
    features = sum(attributes**power for power in range(1, config.degree + 1))
    network = PASSES * MULTIPLY_ADD * config.channels * (features + config.basis_dim)
    per_layer = PASSES * MULTIPLY_ADD * config.basis_dim * config.channels + 5 * config.channels
    return float(edges * max(config.num_ori, 1) * (network + config.num_layers * per_layer))


def count_flops(config: PonitaConfig | PublishedConfig, atoms: int, edges: int) -> Flops:
    """Count the operations that one evaluation of energy and forces needs, whatever the implementation.

    Args:
        config: Shape of the network.
        atoms: Number of atoms.
        edges: Directed edges within the cutoff.
    """
    orientations, channels, layers = max(config.num_ori, 1), config.channels, config.num_layers
    convnext = _convnext_flops(atoms, orientations, channels, config.widening, layers)
    fibre = _fibre_flops(atoms, orientations, channels, layers) if config.num_ori else 0.0
    if isinstance(config, PublishedConfig):
        spatial = _published_spatial_flops(edges, config)
    else:
        spatial = float(spatial_flops(config.l_max) * edges * orientations * channels * layers)
    return Flops(convnext, convnext + spatial + fibre)


def directed_edges(atoms: Atoms, cutoff: float | None) -> int:
    """Return the number of pairs within the cutoff, both directions counted."""
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
    return len(neighbour_list(atoms.positions, cutoff, cell, atoms.pbc).receivers)
