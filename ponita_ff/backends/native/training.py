"""Energies, forces and stress of the force-field form, and gradients of a loss, through C++ kernels on the CPU.

Two calls replace torch's two passes of differentiation through hundreds of operations: one gives atomic energies and
the gradient dE/dx of every pair, the other the gradient of a loss of both with respect to all weights
(kernels/training.cpp has the mathematics). Forces, stress and the loss are computed from them by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponita_ff.backends.native.comparison import compare_training
from ponita_ff.backends.native.shape import network_shape
from ponita_ff.backends.native.support import check_network, check_size, check_training_potential
from ponita_ff.energy.assembly import combine, forces_and_stress
from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.layout import Widths, pad
from ponita_ff.kernels.loader import Kernels
from ponita_ff.kernels.structs import Batch, Dimensions, LayerParameters, Parameters
from ponita_ff.kernels.threads import number_of_threads
from ponita_ff.network.invariants import legendre
from ponita_ff.network.radial import ENVELOPE_POWER
from ponita_ff.structure.graph import Graph, edge_vectors

__all__ = ["Evaluation", "NativeDifferentiation"]

#: The field of ``Parameters`` that holds the address of each parameter of the network (kernels/structs.py).
_NETWORK_PARAMETERS = {
    "embedding": "embedding.weight",
    "radial_hidden": "radial_basis.network.0.weight",
    "radial_hidden_bias": "radial_basis.network.0.bias",
    "radial_basis": "radial_basis.network.2.weight",
    "radial_basis_bias": "radial_basis.network.2.bias",
}

#: The same of ``LayerParameters`` and the parameters of a layer.
_LAYER_PARAMETERS = {
    "fibre": "layers.{}.convolution.fibre",
    "self_weight": "layers.{}.convolution.self_weight",
    "bias": "layers.{}.convolution.bias",
    "radial": "layers.{}.convolution.radial.weight",
    "norm": "layers.{}.norm.weight",
    "norm_bias": "layers.{}.norm.bias",
    "expand": "layers.{}.expand.weight",
    "expand_bias": "layers.{}.expand.bias",
    "contract": "layers.{}.contract.weight",
    "contract_bias": "layers.{}.contract.bias",
    "readout": "readouts.{}.weight",
    "readout_bias": "readouts.{}.bias",
}


class _Pairs(NamedTuple):
    """The P pairs of atoms within the cutoff.

    Attributes:
        vectors: Vector of one of the two edges of each pair, sender minus receiver, float64, shape (P, 3), Å.
        ends: Receiver and sender of this edge, shape (P, 2).
        links: Shape (N, M): p + 1 for this edge of pair p, −(p + 1) for its reverse, 0 for edges beyond the cutoff.
    """

    vectors: Tensor
    ends: Tensor
    links: Tensor


def _pairs_within(cutoff: float, graph: Graph) -> _Pairs:
    atoms, max_neighbours = graph.neighbours.shape
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    index = torch.arange(atoms * max_neighbours).view(atoms, max_neighbours)
    back = graph.neighbours * max_neighbours + graph.reverse
    active = vectors.square().sum(-1) < cutoff**2
    along = active & (index < back)
    number = along.flatten().cumsum(0)
    links = torch.where(along, number.view_as(along), torch.where(active, -number[back], 0))
    edges = along.flatten().nonzero().squeeze(1)
    ends = torch.stack((edges // max_neighbours, graph.neighbours.flatten()[edges]), dim=1)
    return _Pairs(vectors.flatten(0, 1)[edges], ends, links)


@dataclass
class Evaluation:
    """Predictions for a batch, and the gradients of a loss of them with respect to the weights.

    Attributes:
        energies: Interaction energies (N,), eV, in the network's dtype.
        forces: (N, 3), eV/Å, float64.
        stress: (B, 3, 3), eV/Å³, float64; None where it was not requested.
    """

    energies: Tensor
    forces: Tensor
    stress: Tensor | None
    _native: NativeDifferentiation
    _leaves: tuple[Tensor, Tensor]
    _call: _Call | None

    def gradients(self, loss: Tensor, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Gradient of a loss of the predictions with respect to every parameter of the potential's network.

        Args:
            loss: A scalar made of energies, forces and stress by differentiable operations.
            into: Contiguous tensors to write into, by the parameters' names; for others new ones are made.

        Returns:
            The gradients by the parameters' names.

        Raises:
            RuntimeError: When called a second time: the next evaluation uses the memory again.
        """
        if self._call is None:
            raise RuntimeError("gradients were requested a second time: evaluate the batch again first")
        energy_grad, pair_grad = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        call, self._call = self._call, None
        return self._native.backward(call, energy_grad.contiguous(), pair_grad.contiguous(), into or {})


@dataclass
class _Call:
    """What the second call needs from the first.

    Attributes:
        batch: Points into ``tensors``.
        tensors: Inputs of the kernels.
        workspace: Memory of the kernels.
    """

    batch: Batch
    tensors: list[Tensor]
    workspace: Tensor


class NativeDifferentiation:
    """What :func:`ponita_ff.energy.derivatives.differentiate` gives, and gradients with respect to the weights.

    Args:
        potential: In the force-field form, on the CPU, float32 or float64, without an average over rotations. Its
            parameters' values are read at every call; grid, scale and references must not change.

    Raises:
        KernelError: Where the kernels do not implement this potential (see support.py), give other results than
            torch, or cannot be had; the message says why.
    """

    def __init__(self, potential: EnergyModel) -> None:
        network = check_network(potential.network)
        check_training_potential(potential)
        self._potential, self._network = potential, network
        self._parameters = dict(potential.named_parameters())
        self._spare: Tensor | None = None
        kernels = Kernels("training", potential.dtype)
        check_size(network, kernels)
        pointer = ctypes.c_void_p
        self._energy_and_pair_gradients = kernels.function("energy_and_pair_gradients", None, *[pointer] * 5)
        self._loss_backward = kernels.function("loss_backward", None, *[pointer] * 6)
        self._size = kernels.function("workspace_bytes", ctypes.c_int64, *[pointer] * 2)
        layers: list[Any] = list(network.layers)
        config, grid, weights = network.config, network.orientations, network.orientation_weights
        widths = Widths.of(config.channels, config.widening, len(grid), kernels.width)
        # Senders first: n' before n.
        fibre_angular = legendre(grid @ grid.T, network.l_max).transpose(0, 1) * weights[:, None]
        self._constants = [
            tensor.to(potential.dtype).contiguous()
            for tensor in (pad(grid.T, widths.ori_stride), pad(weights, widths.ori_stride), fibre_angular)
        ]
        shape = network_shape(network, widths)
        shape.orientations, shape.weights = (tensor.data_ptr() for tensor in self._constants[:2])
        self._dimensions = Dimensions(
            shape=shape,
            num_species=network.embedding.num_embeddings,
            num_bessel=config.num_bessel,
            radial_hidden=config.radial_hidden,
            radial_basis=config.radial_basis,
            hidden_units=config.channels * config.widening,
            envelope_power=ENVELOPE_POWER,
            cutoff=config.cutoff,
            fibre_angular=self._constants[2].data_ptr(),
        )
        self._network_names = {field: f"network.{name}" for field, name in _NETWORK_PARAMETERS.items()}
        self._layer_names = [
            {field: f"network.{name.format(layer)}" for field, name in _LAYER_PARAMETERS.items()}
            for layer in range(len(layers))
        ]
        compare_training(potential, self)

    def __call__(self, graph: Graph, stress: bool) -> Evaluation:
        """Predictions for a batch, as :func:`ponita_ff.energy.derivatives.differentiate` gives them."""
        pairs = _pairs_within(self._network.config.cutoff, graph)
        call, *leaves = self._forward(graph, pairs)
        model = self._potential
        repulsion = (None, None, None) if model.zbl is None else model.zbl.terms(graph)
        with torch.enable_grad():
            energies, pair_gradients = (leaf.requires_grad_() for leaf in leaves)
            gradient, strain = _gradient_and_strain(graph, pairs, pair_gradients.double(), stress)
            atomic = combine(model.scale, energies, None if repulsion[0] is None else repulsion[0].to(energies))
            forces, tensor = forces_and_stress(
                graph,
                combine(model.scale, gradient, repulsion[1]),
                None if strain is None else combine(model.scale, strain, repulsion[2]),
            )
        assert forces is not None
        return Evaluation(atomic, forces, tensor, self, (energies, pair_gradients), call)

    def _forward(self, graph: Graph, pairs: _Pairs) -> tuple[_Call, Tensor, Tensor]:
        """The first call: atomic energies (N,) and dE/dx of the pairs (P, 3) in the network's own units."""
        dtype = self._potential.dtype
        species = self._potential.species_index[graph.atomic_numbers]
        if bool((species < 0).any()):  # the kernels would read and write outside the embedding
            self._potential.check_species(graph.atomic_numbers.numpy())
        tensors = [
            graph.neighbours.contiguous(),
            pairs.links,
            pairs.ends,
            pairs.vectors.to(dtype),
            species,
        ]
        atoms, max_neighbours = pairs.links.shape
        addresses = (tensor.data_ptr() for tensor in tensors)
        batch = Batch(atoms, max_neighbours, len(pairs.ends), number_of_threads(), *addresses)
        workspace = self._take_workspace(self._size(ctypes.addressof(self._dimensions), ctypes.addressof(batch)))
        batch.workspace = workspace.data_ptr()
        energies, pair_gradients = torch.empty(atoms, dtype=dtype), torch.empty(len(pairs.ends), 3, dtype=dtype)
        parameters = self._addresses(self._parameters)
        self._energy_and_pair_gradients(
            *self._structures(batch, parameters), energies.data_ptr(), pair_gradients.data_ptr()
        )
        return _Call(batch, tensors, workspace), energies, pair_gradients

    def backward(
        self, call: _Call, energy_grad: Tensor, pair_grad: Tensor, into: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The second call: gradients of a loss with respect to all parameters.

        Args:
            call: The first call.
            energy_grad: Gradient with respect to its atomic energies, shape (N,).
            pair_grad: Gradient with respect to its dE/dx, shape (P, 3).
            into: See :meth:`Evaluation.gradients`.
        """
        out = {name: into[name] if name in into else torch.empty_like(p) for name, p in self._parameters.items()}
        parameters, gradients = self._addresses(self._parameters), self._addresses(out)  # must outlive the call
        self._loss_backward(
            *self._structures(call.batch, parameters),
            energy_grad.data_ptr(),
            pair_grad.data_ptr(),
            ctypes.addressof(gradients),
        )
        self._spare = call.workspace
        return out

    def _addresses(self, tensors: Mapping[str, Tensor]) -> Parameters:
        """Addresses of parameters, or of their gradients; none for the fibre kernel that PNITA does not have."""

        def found(names: Mapping[str, str]) -> dict[str, int]:
            return {field: tensors[name].data_ptr() for field, name in names.items() if name in tensors}

        layers = (LayerParameters * len(self._layer_names))(
            *(LayerParameters(**found(names)) for names in self._layer_names)
        )
        return Parameters(layers=layers, **found(self._network_names))

    def _structures(self, batch: Batch, parameters: Parameters) -> tuple[int, int, int]:
        return ctypes.addressof(self._dimensions), ctypes.addressof(batch), ctypes.addressof(parameters)

    def _take_workspace(self, size: int) -> Tensor:
        """Memory for one evaluation until its gradients are known; getting new memory takes longer than the work."""
        if self._spare is None or self._spare.numel() < size:
            return torch.empty(size, dtype=torch.uint8)
        workspace, self._spare = self._spare, None
        return workspace


def _gradient_and_strain(
    graph: Graph, pairs: _Pairs, pair_gradients: Tensor, stress: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradient with respect to positions (N, 3) and to a symmetric strain (B, 3, 3), from dE/dx of the pairs (P, 3)."""
    receivers, senders = pairs.ends.unbind(1)
    gradient = torch.zeros_like(graph.positions).index_add(0, receivers, pair_gradients, alpha=-1)
    gradient = gradient.index_add(0, senders, pair_gradients)
    if not stress:
        return gradient, None
    virial = pair_gradients.unsqueeze(-1) * pairs.vectors.unsqueeze(-2)
    strain = torch.zeros_like(graph.cell).index_add(0, graph.batch[receivers], virial)
    return gradient, 0.5 * (strain + strain.transpose(-1, -2))
