"""Energies, forces and stress of the force-field form, differentiable by all weights, through C++ kernels on the CPU.

Where torch would differentiate twice through hundreds of operations, two calls do: one gives atomic energies and the
slopes dE/dx of every pair, the other the gradient of a loss of both (kernels/training.cpp has the mathematics). The
radial functions of the pairs, products of weights and everything behind energies and slopes stay with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponita_ff.graph import Graph, edge_vectors
from ponita_ff.invariants import legendre
from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.layout import LAYER_WEIGHTS, Kernels, Shape, Widths, check_layers, pack, pad
from ponita_ff.model import Ponita
from ponita_ff.potential import Potential

__all__ = ["NativeDifferentiation"]

_WEIGHTS = (*LAYER_WEIGHTS, "readout_hidden")

_GRADIENTS = ("fibre", "bias", "expand", "expand_bias", "contract", "contract_bias", "readout", "features", "radial")


#: Weights that :class:`_Energies` takes once for all layers, before those of each layer.
_SMALL = 4


class _Weights(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _WEIGHTS)


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _GRADIENTS)


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "slots", "pairs", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in ("neighbours", "links", "ends", "vectors", "features", "radial", "workspace")
        ),
    )


class _Pairs(NamedTuple):
    """The P pairs of atoms within the cutoff.

    Attributes:
        edges: Flat index of one of the two edges of each pair, shape (P,).
        ends: Its receiver and sender, shape (P, 2).
        links: For every edge p + 1 where it is that of pair p, −(p + 1) where it is the other one, 0 for none; (N, M).
    """

    edges: Tensor
    ends: Tensor
    links: Tensor


def _pairs_within(cutoff: float, graph: Graph, vectors: Tensor) -> _Pairs:
    atoms, slots = graph.neighbours.shape
    index = torch.arange(atoms * slots).view(atoms, slots)
    back = graph.neighbours * slots + graph.reverse
    active = vectors.square().sum(-1) < cutoff**2
    along = active & (index < back)
    number = along.flatten().cumsum(0)
    links = torch.where(along, number.view_as(along), torch.where(active, -number[back], 0))
    edges = along.flatten().nonzero().squeeze(1)
    receivers = edges // slots
    return _Pairs(edges, torch.stack((receivers, graph.neighbours.flatten()[edges]), dim=1), links)


class NativeDifferentiation:
    """What :meth:`Potential.differentiate` gives, with gradients by the weights, for a potential in training.

    Args:
        potential: In the force-field form, on the CPU, float32 or float64, without an average over rotations. Its
            weights are read afresh at every call; grid, scale and references must stay.

    Raises:
        KernelError: Where this potential or this machine cannot do it; the message says why.
    """

    def __init__(self, potential: Potential) -> None:
        network = potential.network
        if not isinstance(network, Ponita):
            raise KernelError("only the force-field form has native kernels")
        if potential.device.type != "cpu":
            raise KernelError("the native kernels run on the CPU")
        if len(potential.rotations) > 1:
            raise KernelError("the native kernels do not train averages over rotations")
        check_layers(len(network.layers))
        self._potential, self._network = potential, network
        self._spare: Tensor | None = None
        self._kernels = Kernels("training", potential.dtype)
        pointer = ctypes.c_void_p
        self.first = self._kernels.function("first", None, *[pointer] * 5)
        self.second = self._kernels.function("second", None, *[pointer] * 6)
        self.size = self._kernels.function("workspace_bytes", ctypes.c_int64, *[pointer] * 2)
        config, grid, weights = network.config, network.orientations, network.orientation_weights
        self.widths = Widths.of(config.channels, config.widening, len(grid), self._kernels.width)
        # Senders first: n' before n.
        fibre_angular = legendre(grid @ grid.T, network.l_max).transpose(0, 1) * weights[:, None]
        self._fibre_angular = fibre_angular.to(potential.dtype)
        self._grid = [
            pad(tensor, self.widths.ori_stride).to(potential.dtype).contiguous() for tensor in (grid.T, weights)
        ]
        layers: list[Any] = list(network.layers)
        self.shape = Shape(
            num_ori=len(grid),
            ori_stride=self.widths.ori_stride,
            degrees=config.l_max + 1,
            channels=config.channels,
            stride=self.widths.stride,
            hidden=self.widths.hidden,
            num_layers=len(layers),
            has_fibre=layers[0].convolution.fibre is not None,
            norm_eps=layers[0].norm.eps,
            orientations=self._grid[0].data_ptr(),
            weights=self._grid[1].data_ptr(),
        )

    def __call__(self, graph: Graph, stress: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Interaction energies (N,), forces (N, 3) and stress (B, 3, 3); float64 but for the energies.

        As :meth:`Potential.differentiate` with ``create_graph=True``.
        """
        potential = self._potential
        with torch.enable_grad():
            positions, offsets, inputs = potential.displaced(graph, forces=True, stress=stress)
            vectors = edge_vectors(positions, offsets, graph.neighbours, graph.reverse)
            pairs = _pairs_within(self._network.config.cutoff, graph, vectors.detach())
            vectors = vectors.flatten(0, 1)[pairs.edges]
            species = potential.species_index[graph.atomic_numbers]
            energies, slopes = self._evaluate(graph, species, pairs, vectors.detach().to(potential.dtype))
            energies, slopes = energies * potential.scale, slopes.double() * potential.scale
            gradients = list(torch.autograd.grad(vectors, inputs, slopes, create_graph=True))
        if potential.zbl is not None:
            energy, *terms = potential.repulsion(graph)
            energies = energies + energy.to(energies.dtype)
            gradients = [gradient + term for gradient, term in zip(gradients, terms, strict=False)]
        if not stress:
            return energies, -gradients[0], None
        return energies, -gradients[0], gradients[1] / torch.linalg.det(graph.cell).abs()[:, None, None]

    def _evaluate(self, graph: Graph, species: Tensor, pairs: _Pairs, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Atomic energies (N,) and slopes dE/dx of the pairs (P, 3) in the network's own scale."""
        network, stride = self._network, self.widths.stride
        layers: list[Any] = list(network.layers)
        readouts: list[Any] = list(network.readouts)
        basis = network.radial_basis.with_slope(vectors.square().sum(-1).sqrt())
        # A product with a one-hot matrix, not a look-up: its gradient adds up in the same order in every run.
        one_hot = species.unsqueeze(-1) == torch.arange(network.embedding.num_embeddings)
        features = one_hot.to(vectors.dtype) @ pad(network.embedding.weight, stride)
        energies, slopes = _Energies.apply(
            self,
            graph.neighbours,
            pairs,
            vectors,
            features,
            basis,
            self._fibre([layer.convolution.fibre for layer in layers]),
            pad(torch.stack([layer.convolution.bias for layer in layers]), stride),
            pad(torch.stack([layer.contract.bias for layer in layers]), stride),
            pad(torch.cat([readout.weight for readout in readouts]), stride),
            *(matrix for layer in layers for matrix in _matrices(layer)),
        )
        constant = torch.cat([readout.bias for readout in readouts]).mean()
        return energies + constant * self._grid[1].sum(), slopes

    def _fibre(self, factors: list[Tensor]) -> Tensor:
        """Fibre kernels on the grid, (layers, stride / width, n, n', width); without orientations nothing."""
        if not self.shape.has_fibre:
            return torch.zeros(0)
        kernel = torch.einsum("lmn,alc->anmc", self._fibre_angular, torch.stack(factors))
        kernel = pad(kernel, self.widths.stride).unflatten(-1, (-1, self._kernels.width))
        return kernel.permute(0, 3, 1, 2, 4).contiguous()

    def take_workspace(self, size: int) -> Tensor:
        """Memory for one evaluation until its gradients are known; new memory costs the system more than the work."""
        if self._spare is None or self._spare.numel() < size:
            return torch.empty(size, dtype=torch.uint8)
        workspace, self._spare = self._spare, None
        return workspace

    def give_back(self, workspace: Tensor) -> None:
        """The workspace is free for the next evaluation."""
        self._spare = workspace

    def radial(self, basis: Tensor, matrices: Sequence[_Matrices]) -> Tensor:
        """R_l and dR_l/dr of every pair in every layer, (layers, 2 P, degrees, stride), from the basis (2 P, K)."""
        degrees, channels, stride = self.shape.degrees, self.shape.channels, self.shape.stride
        radial = basis.new_zeros if stride > channels else basis.new_empty
        values = radial(len(matrices), len(basis), degrees, stride)
        for value, layer in zip(values, matrices, strict=True):
            if stride > channels:
                value[..., :channels] = (basis @ layer.radial.T).unflatten(-1, (degrees, channels))
            else:
                torch.mm(basis, layer.radial.T, out=value.view(len(basis), -1))
        return values

    def prepare(self, small: Sequence[Tensor], matrices: Sequence[_Matrices]) -> list[Tensor]:
        """The weights as the kernels read them, in the order of ``_WEIGHTS``; the norm's are multiplied into W1."""
        (stride, hidden, _), width = self.widths, self._kernels.width
        fibre, bias, contract_bias, readout = small
        expand = pad(torch.stack([layer.expand * layer.norm for layer in matrices]), stride, hidden)
        shift = torch.stack([torch.mv(layer.expand, layer.norm_bias).add_(layer.expand_bias) for layer in matrices])
        contract = pad(torch.stack([layer.contract for layer in matrices]), hidden, stride)
        return [
            fibre,
            fibre.transpose(2, 3).contiguous() if self.shape.has_fibre else fibre,
            bias,
            pack(expand.mT, width),
            pad(shift, hidden),
            pack(contract.mT, width),
            contract_bias,
            pack(contract, width),
            pack(expand, width),
            readout,
            torch.mv(contract[-1].T, readout[-1]),
        ]


class _Matrices(NamedTuple):
    """The large weights of a layer and those that are multiplied into them."""

    radial: Tensor
    norm: Tensor
    norm_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor

    def gradients(self, basis: Tensor, radial: Tensor, expand: Tensor, shift: Tensor, contract: Tensor) -> list[Tensor]:
        """From those by R (2 P, degrees · C), W1 · norm (C, H), b1 + W1 norm_bias (H,) and W2 (C, H), C unpadded."""
        expand = expand.T
        return [
            radial.T @ basis,
            (expand * self.expand).sum(0),
            self.expand.T @ shift,
            torch.addr(expand * self.norm, shift, self.norm_bias),
            shift,
            contract,
        ]


def _matrices(layer: Any) -> _Matrices:
    convolution, norm, expand = layer.convolution, layer.norm, layer.expand
    return _Matrices(
        convolution.radial.weight, norm.weight, norm.bias, expand.weight, expand.bias, layer.contract.weight
    )


class _Energies(torch.autograd.Function):
    """Atomic energies (N,) and slopes (P, 3), once differentiable by features, radial basis and weights."""

    @staticmethod
    def forward(
        ctx: Any,
        native: NativeDifferentiation,
        neighbours: Tensor,
        pairs: _Pairs,
        vectors: Tensor,
        features: Tensor,
        basis: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        small, matrices = weights[:_SMALL], _by_layer(weights[_SMALL:])
        radial = native.radial(basis.flatten(0, 1), matrices)
        given = [tensor.contiguous() for tensor in (neighbours, pairs.links, pairs.ends, vectors, features, radial)]
        batch = _Batch(
            *pairs.links.shape, len(pairs.edges), torch.get_num_threads(), *(tensor.data_ptr() for tensor in given)
        )
        workspace = native.take_workspace(native.size(ctypes.addressof(native.shape), ctypes.addressof(batch)))
        batch.workspace = workspace.data_ptr()
        prepared = native.prepare(small, matrices)
        layout = _Weights(*(tensor.data_ptr() for tensor in prepared))
        energies = vectors.new_empty(len(neighbours))
        slopes = vectors.new_empty(len(pairs.edges), 3)
        structures = [ctypes.addressof(structure) for structure in (native.shape, layout, batch)]
        native.first(*structures, energies.data_ptr(), slopes.data_ptr())
        # The structures point into tensors, which must live as long as they.
        ctx.native, ctx.structures, ctx.kept, ctx.workspace = native, (layout, batch), (given, prepared), workspace
        ctx.save_for_backward(features, radial, basis, *weights)
        return energies, slopes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_energies: Tensor, of_slopes: Tensor) -> tuple[Tensor | None, ...]:
        native, (layout, batch) = ctx.native, ctx.structures
        if ctx.workspace is None:
            raise RuntimeError("gradients were asked for a second time: evaluate again for that")
        features, radial, basis, *weights = ctx.saved_tensors
        small, matrices = weights[:_SMALL], _by_layer(weights[_SMALL:])
        layers, (stride, hidden, _) = len(matrices), native.widths
        out = dict(zip(("fibre", "bias", "contract_bias", "readout"), map(torch.empty_like, small), strict=True))
        out["features"], out["radial"] = torch.empty_like(features), torch.empty_like(radial)
        out["expand_bias"] = basis.new_empty(layers, hidden)
        out["expand"], out["contract"] = basis.new_empty(2, layers, stride, hidden)
        gradients = _Gradients(*(out[name].data_ptr() for name in _GRADIENTS))
        given = [of_energies.contiguous(), of_slopes.contiguous()]
        structures = [ctypes.addressof(structure) for structure in (native.shape, layout, batch)]
        native.second(*structures, *(tensor.data_ptr() for tensor in given), ctypes.addressof(gradients))
        native.give_back(ctx.workspace)
        ctx.workspace = None

        of_radial = out["radial"][..., : native.shape.channels].flatten(2)
        of_basis, flat = torch.zeros_like(basis), basis.flatten(0, 1)
        of_matrices: list[Tensor] = []
        for index, layer in enumerate(matrices):
            of_basis.flatten(0, 1).addmm_(of_radial[index], layer.radial)
            rows, columns = layer.contract.shape
            of_matrices += layer.gradients(
                flat,
                of_radial[index],
                out["expand"][index, :rows, :columns],
                out["expand_bias"][index, :columns],
                out["contract"][index, :rows, :columns],
            )
        names = ("features", "fibre", "bias", "contract_bias", "readout")
        of_features, *of_small = (out[name] for name in names)
        return None, None, None, None, of_features, of_basis, *of_small, *of_matrices


def _by_layer(weights: Sequence[Tensor]) -> list[_Matrices]:
    size = len(_Matrices._fields)
    return [_Matrices(*weights[start : start + size]) for start in range(0, len(weights), size)]
