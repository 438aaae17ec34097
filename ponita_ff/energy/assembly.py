"""The one assembly of energies, forces and stress, for every backend, training and the Hessian.

    E_i = s · network_i + ZBL_i + reference(Z_i)      atomic energies, eV
    E   = Σ_i E_i                                      total energy of a structure, eV
    F_i = −∂E/∂x_i                                     forces, eV/Å
    σ   = (1/V) ∂E/∂ε                                  stress, eV/Å³, with respect to a symmetric strain ε of positions
                                                       and cell (Knuth et al., Comput. Phys. Commun. 190, 33 (2015))

The first two terms are the interaction energy. Reference energies are constants, added in float64 whatever the
network's dtype, because float32 would round a molecule's thousands of eV to half a meV. The derivatives come from
the backend: autograd (derivatives.py) or the native kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponita_ff.energy.model import EnergyModel
from ponita_ff.structure.graph import Graph, edge_vectors, sum_over_structures

__all__ = ["Terms", "assemble", "combine", "forces_and_stress", "interaction_energies", "reference_energies"]


class Terms(NamedTuple):
    """Energies of a graph's atoms and the derivatives of their sum.

    Attributes:
        energies: Shape (N,).
        gradient: With respect to positions, shape (N, 3); None where it is not wanted.
        strain: With respect to a symmetric strain of each structure, shape (B, 3, 3); None where it is not wanted.
    """

    energies: Tensor
    gradient: Tensor | None = None
    strain: Tensor | None = None


def combine(scale: float, network: Tensor, repulsion: Tensor | None = None) -> Tensor:
    """s · network + ZBL: the interaction energies, or any derivative of them, because derivatives are linear."""
    scaled = network * scale
    return scaled if repulsion is None else scaled + repulsion


def interaction_energies(
    model: EnergyModel, graph: Graph, positions: Tensor, offsets: Tensor, for_compile: bool = False
) -> Tensor:
    """Atomic interaction energies by torch, shape (N,), eV, in the network's dtype; differentiable.

    Args:
        model: Whose energies.
        graph: Topology and elements.
        positions: Shape (N, 3), Å, instead of the graph's.
        offsets: Shape (N, M, 3), Å, instead of the graph's.
        for_compile: Write sums so that a compiler fuses them.
    """
    species = model.species_of(graph)
    vectors = edge_vectors(positions, offsets, graph.neighbours, graph.reverse)
    # Differences are taken in float64 and rounded after: unwrapped molecules may be far from the origin.
    rotated = [vectors @ rotation for rotation in model.rotations] if len(model.rotations) > 1 else [vectors]
    energies = [model.network(graph, species, v.to(model.dtype), for_compile=for_compile) for v in rotated]
    network = energies[0] if len(energies) == 1 else torch.stack(energies).mean(0)
    if model.zbl is None:
        return combine(model.scale, network)
    distance = vectors.to(model.dtype).square().sum(-1).sqrt()
    return combine(model.scale, network, model.zbl(species, graph.neighbours, distance))


def reference_energies(model: EnergyModel, graph: Graph) -> Tensor:
    """Reference energy of each atom, shape (N,), float64, eV."""
    return model.reference_energies[model.species_of(graph)]


def forces_and_stress(graph: Graph, gradient: Tensor | None, strain: Tensor | None) -> tuple[Tensor | None, ...]:
    """Forces (N, 3) and stress (B, 3, 3) from derivatives of the energy; None where a derivative is."""
    forces = None if gradient is None else -gradient
    if strain is None:
        return forces, None
    return forces, strain / _volumes(graph["cell"])[:, None, None]


def _volumes(cells: Tensor) -> Tensor:
    """Volumes of cells (B, 3, 3), Å³. A GPU would factorise each in a library call, which cannot be recorded."""
    if cells.device.type == "cpu":
        return torch.linalg.det(cells).abs()
    a, b, c = cells.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def assemble(
    model: EnergyModel, graph: Graph, network: Terms, repulsion: Terms | None = None, scale: float = 1.0
) -> tuple[Tensor, ...]:
    """What a prediction consists of.

    Args:
        model: Whose reference energies are added.
        graph: One structure or a batch.
        network: Energies and their derivatives.
        repulsion: Those of ZBL; None where there is none, or ``network`` holds it already.
        scale: Of ``network``; 1 where it holds the interaction energies, as autograd differentiates them.

    Returns:
        Total energies (B,) and atomic energies (N,), float64, eV; then, where the derivative is there, forces (N, 3),
        eV/Å, and stress (B, 3, 3), eV/Å³.
    """
    zbl = repulsion or (None, None, None)
    atomic = torch.add(reference_energies(model, graph), network.energies.double(), alpha=scale)
    atomic = atomic if zbl[0] is None else atomic + zbl[0]
    total = sum_over_structures(atomic, graph["batch"], len(graph["cell"]))
    derivatives = [
        None if value is None else combine(scale, value, term) for value, term in zip(network[1:], zbl[1:], strict=True)
    ]
    return total, atomic, *(value for value in forces_and_stress(graph, *derivatives) if value is not None)
