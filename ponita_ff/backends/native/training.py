"""Energies, forces and stress of the force-field form, and gradients by all weights, through C++ kernels on the CPU.

Where torch would differentiate twice through hundreds of operations, two calls do: one gives atomic energies and the
slopes dE/dx of every pair, the other the gradient of a loss of both (kernels/training.cpp has the mathematics). What
lies behind energies and slopes, forces and the loss, stays with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponita_ff.energy.assembly import combine, forces_and_stress
from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.layout import Kernels, Shape, Widths, check_layers, pad
from ponita_ff.network.invariants import legendre
from ponita_ff.network.ponita import Ponita
from ponita_ff.structure.graph import Graph, edge_vectors

__all__ = ["Evaluation", "NativeDifferentiation"]

#: Parameters in the order in which the kernels take their addresses: the network's own, then those of each layer.
_OF_NETWORK = (
    "embedding.weight",
    "radial_basis.network.0.weight",
    "radial_basis.network.0.bias",
    "radial_basis.network.2.weight",
    "radial_basis.network.2.bias",
)
_OF_LAYER = (
    "layers.{}.convolution.fibre",
    "layers.{}.convolution.self_weight",
    "layers.{}.convolution.bias",
    "layers.{}.convolution.radial.weight",
    "layers.{}.norm.weight",
    "layers.{}.norm.bias",
    "layers.{}.expand.weight",
    "layers.{}.expand.bias",
    "layers.{}.contract.weight",
    "layers.{}.contract.bias",
    "readouts.{}.weight",
    "readouts.{}.bias",
)


class _Dimensions(ctypes.Structure):
    _fields_ = (
        ("shape", Shape),
        *((name, ctypes.c_int64) for name in ("num_species", "num_bessel", "radial_hidden", "radial_basis", "widened")),
        ("cutoff", ctypes.c_double),
        ("fibre_angular", ctypes.c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "slots", "pairs", "threads")),
        *((name, ctypes.c_void_p) for name in ("neighbours", "links", "ends", "vectors", "species", "workspace")),
    )


class _Pairs(NamedTuple):
    """The P pairs of atoms within the cutoff.

    Attributes:
        vectors: Of one of the two edges of each pair, float64, shape (P, 3), Å.
        ends: Its receiver and sender, shape (P, 2).
        links: For every edge p + 1 where it is that of pair p, −(p + 1) where it is the other one, 0 for none; (N, M).
    """

    vectors: Tensor
    ends: Tensor
    links: Tensor


def _pairs_within(cutoff: float, graph: Graph) -> _Pairs:
    atoms, slots = graph.neighbours.shape
    vectors = edge_vectors(graph.positions, graph.offsets, graph.neighbours, graph.reverse)
    index = torch.arange(atoms * slots).view(atoms, slots)
    back = graph.neighbours * slots + graph.reverse
    active = vectors.square().sum(-1) < cutoff**2
    along = active & (index < back)
    number = along.flatten().cumsum(0)
    links = torch.where(along, number.view_as(along), torch.where(active, -number[back], 0))
    edges = along.flatten().nonzero().squeeze(1)
    ends = torch.stack((edges // slots, graph.neighbours.flatten()[edges]), dim=1)
    return _Pairs(vectors.flatten(0, 1)[edges], ends, links)


@dataclass
class Evaluation:
    """Predictions for a batch, from which a loss can be made, and the way back from a loss to the weights.

    Attributes:
        energies: Interaction energies (N,), eV, in the network's dtype.
        forces: (N, 3), eV/Å, float64.
        stress: (B, 3, 3), eV/Å³, float64; None where it was not asked for.
    """

    energies: Tensor
    forces: Tensor
    stress: Tensor | None
    _native: NativeDifferentiation
    _leaves: tuple[Tensor, Tensor]
    _call: _Call | None

    def gradients(self, loss: Tensor, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Gradient of a loss of the predictions by every parameter of the potential's network.

        Args:
            loss: A scalar made of energies, forces and stress by differentiable operations.
            into: Contiguous tensors to write into, by the parameters' names; for others new ones are made.

        Raises:
            RuntimeError: When asked a second time: the memory was given to the next evaluation.
        """
        if self._call is None:
            raise RuntimeError("gradients were asked for a second time: evaluate again for that")
        of_energies, of_slopes = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        call, self._call = self._call, None
        return self._native.backward(call, of_energies.contiguous(), of_slopes.contiguous(), into or {})


@dataclass
class _Call:
    """What the second call needs of the first: the batch, and tensors into which it points."""

    batch: _Batch
    kept: list[Tensor]
    workspace: Tensor


class NativeDifferentiation:
    """What :func:`ponita_ff.energy.derivatives.differentiate` gives, and gradients with respect to the weights.

    Args:
        potential: In the force-field form, on the CPU, float32 or float64, without an average over rotations. Its
            parameters' values are read afresh at every call; grid, scale and references must stay.

    Raises:
        KernelError: Where this potential or this machine cannot do it; the message says why.
    """

    def __init__(self, potential: EnergyModel) -> None:
        network = potential.network
        if not isinstance(network, Ponita):
            raise KernelError("only the force-field form has native kernels")
        if potential.device.type != "cpu":
            raise KernelError("the native kernels run on the CPU")
        if len(potential.rotations) > 1:
            raise KernelError("the native kernels do not train averages over rotations")
        check_layers(len(network.layers))
        self._potential, self._network = potential, network
        self._parameters = dict(potential.named_parameters())
        self._spare: Tensor | None = None
        kernels = Kernels("training", potential.dtype)
        pointer = ctypes.c_void_p
        self._first = kernels.function("first", None, *[pointer] * 5)
        self._second = kernels.function("second", None, *[pointer] * 6)
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
        shape = Shape(
            num_ori=len(grid),
            ori_stride=widths.ori_stride,
            degrees=config.l_max + 1,
            channels=config.channels,
            stride=widths.stride,
            hidden=widths.hidden,
            num_layers=len(layers),
            has_fibre=bool(config.num_ori),
            norm_eps=layers[0].norm.eps,
            orientations=self._constants[0].data_ptr(),
            weights=self._constants[1].data_ptr(),
        )
        self._dimensions = _Dimensions(
            shape=shape,
            num_species=network.embedding.num_embeddings,
            num_bessel=config.num_bessel,
            radial_hidden=config.radial_hidden,
            radial_basis=config.radial_basis,
            widened=config.channels * config.widening,
            cutoff=config.cutoff,
            fibre_angular=self._constants[2].data_ptr(),
        )
        names = [*_OF_NETWORK, *(name.format(layer) for layer in range(len(layers)) for name in _OF_LAYER)]
        self._names = [f"network.{name}" for name in names]

    def __call__(self, graph: Graph, stress: bool) -> Evaluation:
        """Predictions for a batch, as :func:`ponita_ff.energy.derivatives.differentiate` gives them."""
        pairs = _pairs_within(self._network.config.cutoff, graph)
        call, *leaves = self._forward(graph, pairs)
        model = self._potential
        repulsion = (None, None, None) if model.zbl is None else model.zbl.terms(graph)
        with torch.enable_grad():
            energies, slopes = (leaf.requires_grad_() for leaf in leaves)
            gradient, strain = _of_structures(graph, pairs, slopes.double(), stress)
            atomic = combine(model.scale, energies, None if repulsion[0] is None else repulsion[0].to(energies))
            forces, tensor = forces_and_stress(
                graph,
                combine(model.scale, gradient, repulsion[1]),
                None if strain is None else combine(model.scale, strain, repulsion[2]),
            )
        assert forces is not None
        return Evaluation(atomic, forces, tensor, self, (energies, slopes), call)

    def _forward(self, graph: Graph, pairs: _Pairs) -> tuple[_Call, Tensor, Tensor]:
        """The first call: atomic energies (N,) and slopes dE/dx of the pairs (P, 3) in the network's own scale."""
        dtype = self._potential.dtype
        species = self._potential.species_index[graph.atomic_numbers]
        if bool((species < 0).any()):  # the kernels would read and write beside the embedding
            self._potential.check_species(graph.atomic_numbers.numpy())
        kept = [
            graph.neighbours.contiguous(),
            pairs.links,
            pairs.ends,
            pairs.vectors.to(dtype),
            species,
        ]
        atoms, slots = pairs.links.shape
        addresses = (tensor.data_ptr() for tensor in kept)
        batch = _Batch(atoms, slots, len(pairs.ends), torch.get_num_threads(), *addresses)
        workspace = self._take_workspace(self._size(ctypes.addressof(self._dimensions), ctypes.addressof(batch)))
        batch.workspace = workspace.data_ptr()
        energies, slopes = torch.empty(atoms, dtype=dtype), torch.empty(len(pairs.ends), 3, dtype=dtype)
        parameters = self._addresses(self._parameters)
        self._first(*self._structures(batch, parameters), energies.data_ptr(), slopes.data_ptr())
        return _Call(batch, kept, workspace), energies, slopes

    def backward(
        self, call: _Call, of_energies: Tensor, of_slopes: Tensor, into: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The second call: gradients by all parameters from those by what the first gave."""
        out = {name: into[name] if name in into else torch.empty_like(p) for name, p in self._parameters.items()}
        given, gradients = self._addresses(self._parameters), self._addresses(out)  # alive until the call is over
        self._second(
            *self._structures(call.batch, given),
            of_energies.data_ptr(),
            of_slopes.data_ptr(),
            ctypes.addressof(gradients),
        )
        self._spare = call.workspace
        return out

    def _addresses(self, tensors: Mapping[str, Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        found = [tensors[name].data_ptr() if name in tensors else None for name in self._names]
        return (ctypes.c_void_p * len(found))(*found)

    def _structures(self, batch: _Batch, parameters: ctypes.Array[ctypes.c_void_p]) -> tuple[int, int, int]:
        return ctypes.addressof(self._dimensions), ctypes.addressof(batch), ctypes.addressof(parameters)

    def _take_workspace(self, size: int) -> Tensor:
        """Memory for one evaluation until its gradients are known; new memory costs the system more than the work."""
        if self._spare is None or self._spare.numel() < size:
            return torch.empty(size, dtype=torch.uint8)
        workspace, self._spare = self._spare, None
        return workspace


def _of_structures(graph: Graph, pairs: _Pairs, slopes: Tensor, stress: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient with respect to positions (N, 3), and to a symmetric strain (B, 3, 3), from slopes dE/dx of pairs.

    x of a pair is sender minus receiver.
    """
    receivers, senders = pairs.ends.unbind(1)
    gradient = torch.zeros_like(graph.positions).index_add(0, receivers, slopes, alpha=-1)
    gradient = gradient.index_add(0, senders, slopes)
    if not stress:
        return gradient, None
    virial = slopes.unsqueeze(-1) * pairs.vectors.unsqueeze(-2)
    strain = torch.zeros_like(graph.cell).index_add(0, graph.batch[receivers], virial)
    return gradient, 0.5 * (strain + strain.transpose(-1, -2))
