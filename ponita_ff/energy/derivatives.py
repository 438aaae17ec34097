"""Derivatives of the energy by torch's autograd: forces, stress, and the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ponita_ff.energy.assembly import Terms, assemble, forces_and_stress, interaction_energies
from ponita_ff.energy.model import EnergyModel
from ponita_ff.structure.graph import Graph

__all__ = ["differentiate", "differentiate_part", "hessian", "predict"]


def differentiate(
    model: EnergyModel,
    graph: Graph,
    forces: bool = True,
    stress: bool = False,
    create_graph: bool = False,
    for_compile: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Interaction energies (N,), eV, in the network's dtype; forces (N, 3), eV/Å, and stress (B, 3, 3), eV/Å³, float64.

    Args:
        model: Whose energies.
        graph: One structure or a batch, on the model's device; all its elements known.
        forces: Whether forces are wanted.
        stress: Whether stress is wanted; every structure then needs a cell with a volume.
        create_graph: Whether the derivatives shall be differentiable themselves, as a loss of forces needs.
        for_compile: Write sums so that a compiler fuses them.
    """
    terms = _terms(model, graph, forces, stress, create_graph, for_compile)
    force, tensor = forces_and_stress(graph, terms.gradient, terms.strain)
    return terms.energies, force, tensor


def predict(
    model: EnergyModel, graph: Graph, forces: bool, stress: bool, for_compile: bool = False
) -> tuple[Tensor, ...]:
    """Total energies, atomic energies, then forces and stress as asked for, detached; see :func:`assemble`."""
    terms = _terms(model, graph, forces, stress, for_compile=for_compile)
    return assemble(model, graph, Terms(terms.energies.detach(), terms.gradient, terms.strain))


def differentiate_part(model: EnergyModel, graph: Graph, number: int) -> tuple[Tensor, Tensor]:
    """Interaction energies of a graph's first atoms (number,), eV, and their sum's gradient by all positions (N, 3).

    Args:
        model: Whose energies.
        graph: One structure, on the model's device; all its elements known.
        number: Of atoms whose energies count.
    """
    with torch.enable_grad():
        positions, offsets, inputs = _displaced(graph, forces=True, stress=False)
        energies = interaction_energies(model, graph, positions, offsets)[:number]
        (gradient,) = torch.autograd.grad(energies.sum(), inputs)
    return energies.detach(), gradient


def hessian(models: Sequence[EnergyModel], graph: Graph, atoms: Sequence[int]) -> Tensor:
    """Second derivatives of the mean energy of some models with respect to some atoms' positions.

    Args:
        models: One or more, on one device.
        graph: One structure.
        atoms: k different atoms.

    Returns:
        Shape (3k, 3k), eV/Å², coordinates in the order x0, y0, z0, x1, …; made symmetric.
    """
    chosen = torch.as_tensor(atoms, device=graph.positions.device)
    with torch.enable_grad():
        positions = graph.positions.detach().clone().requires_grad_(True)
        energies = [interaction_energies(model, graph, positions, graph.offsets).sum() for model in models]
        gradient = torch.autograd.grad(torch.stack(energies).mean(), positions, create_graph=True)[0][chosen].flatten()
        rows = [torch.autograd.grad(g, positions, retain_graph=True)[0][chosen].flatten() for g in gradient]
    matrix = torch.stack(rows)
    return 0.5 * (matrix + matrix.T)


def _terms(
    model: EnergyModel,
    graph: Graph,
    forces: bool,
    stress: bool,
    create_graph: bool = False,
    for_compile: bool = False,
) -> Terms:
    with torch.enable_grad():
        positions, offsets, inputs = _displaced(graph, forces, stress)
        energies = interaction_energies(model, graph, positions, offsets, for_compile)
        if not inputs:
            return Terms(energies)
        derivatives = list(torch.autograd.grad(energies.sum(), inputs, create_graph=create_graph))
    gradient = derivatives.pop(0) if forces else None
    return Terms(energies, gradient, derivatives.pop(0) if stress else None)


def _displaced(graph: Graph, forces: bool, stress: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Positions (N, 3) and offsets (N, M, 3) after strain, and the tensors to differentiate with respect to.

    That is the positions themselves and a strain of each structure (B, 3, 3), which is zero.
    """
    positions, offsets, inputs = graph.positions, graph.offsets, []
    if forces:
        positions = positions.detach().requires_grad_(True)
        inputs.append(positions)
    if not stress:
        return positions, offsets, inputs
    number = graph.cell.shape[0]
    strain = torch.zeros(number, 3, 3, dtype=positions.dtype, device=positions.device, requires_grad=True)
    inputs.append(strain)
    per_atom = (0.5 * (strain + strain.transpose(-1, -2)))[graph.batch]
    moved = positions + (per_atom @ positions.unsqueeze(-1)).squeeze(-1)
    return moved, offsets + (per_atom.unsqueeze(1) @ offsets.unsqueeze(-1)).squeeze(-1), inputs
