"""The force-field network as one C++ function on the CPU: atomic energies, their gradient and the virial in one pass.

What depends on no position is computed once, when the engine is made: fibre kernels, the radial functions R_l(r) of
every layer as tables (quintic Hermite interpolation, as fine as the requested error needs), matrices with the weights
of the norm before them multiplied in, and all of them in the memory layout of the kernels.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ponita_ff.backends.native.comparison import compare_inference
from ponita_ff.backends.native.shape import network_shape
from ponita_ff.backends.native.support import check_network, check_size
from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.layout import Widths, pack, pad
from ponita_ff.kernels.loader import Kernels
from ponita_ff.kernels.structs import Layer, Model, Task
from ponita_ff.kernels.threads import number_of_threads
from ponita_ff.network.base import Network
from ponita_ff.network.convolution import SeparableConvolution
from ponita_ff.network.invariants import legendre
from ponita_ff.network.ponita import Ponita
from ponita_ff.structure.graph import Graph

__all__ = ["TABLE_ERROR", "NativeNetwork", "NativeWeights", "radial_table"]

#: Largest error of the tabulated radial functions and of their derivatives, over the largest value of each.
TABLE_ERROR = 1e-6

#: Smallest and largest number of intervals of a table.
_MIN_INTERVALS, _MAX_INTERVALS = 32, 4096

#: For finite differences, Å.
_STEP = 1e-4


def radial_table(basis: Callable[[Tensor], Tensor], weights: Tensor, cutoff: float, error: float) -> Tensor:
    """Linear combinations of smooth functions of the distance at even spacing, for quintic Hermite interpolation.

    The number of intervals grows until, between the points, the interpolated combinations are within ``error`` of
    the largest value that any of them takes, and their derivatives of the largest derivative.

    Args:
        basis: Distances (n,), Å, to values (n, K), float64; even in the distance, zero from the cutoff on.
        weights: Shape (F, K), float64.
        cutoff: Å; the table reaches from 0 to it.
        error: See above.

    Returns:
        Shape (intervals + 1, 3, F), float64: values, and first and second derivatives times powers of the spacing.

    Raises:
        KernelError: Where no table of a sensible size is so exact.
    """
    intervals = _MIN_INTERVALS
    while intervals <= _MAX_INTERVALS:
        spacing = cutoff / intervals
        values, first, second = _derivatives(basis, torch.arange(intervals + 1, dtype=torch.float64) * spacing)
        table = torch.stack((values, first * spacing, second * spacing**2), dim=1)
        table[-1] = 0.0  # a difference across the cutoff would see the jump of the third derivative there
        if _interpolation_error(table, basis, weights, spacing) <= error:
            return table @ weights.T
        intervals += intervals // 4  # no more than it takes: the smaller a table, the more of it stays in cache
    raise KernelError(f"the radial functions are too rough for tables of {_MAX_INTERVALS} intervals")


def _derivatives(basis: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, first and second derivatives, by differences of fourth order: exact to about 1e-10."""
    places = points + _STEP * torch.arange(-2, 3, dtype=points.dtype).unsqueeze(-1)
    # At 0 a Bessel function's formula is 0/0.
    far_before, before, here, after, far_after = basis(torch.where(places == 0.0, 1e-9, places))
    first = (8 * (after - before) - (far_after - far_before)) / (12 * _STEP)
    second = (16 * (after + before) - (far_after + far_before) - 30 * here) / (12 * _STEP**2)
    return here, first, second


def _interpolation_error(table: Tensor, basis: Callable[[Tensor], Tensor], weights: Tensor, spacing: float) -> float:
    """Largest error of values and derivatives, each over the largest of its kind, inside the table's intervals."""
    worst = 0.0
    for t in (0.2, 0.5):
        exact, derivatives, _ = _derivatives(basis, (torch.arange(len(table) - 1, dtype=torch.float64) + t) * spacing)
        hermite = torch.tensor(_hermite(t), dtype=torch.float64)
        ends = torch.cat((table[:-1], table[1:]), dim=1)
        found, found_derivatives = torch.einsum("ds,isk->dik", hermite, ends)
        for value, reference in ((found, exact), (found_derivatives / spacing, derivatives)):
            wrong = (value - reference) @ weights.T
            worst = max(worst, float(wrong.abs().max() / (reference @ weights.T).abs().max()))
    return worst


def _hermite(t: float) -> list[list[float]]:
    """Weights of value, first and second derivative at the left end, then the right, at t of an interval; then d/dt."""
    two, three, four, five = t**2, t**3, t**4, t**5
    return [
        [
            1 - 10 * three + 15 * four - 6 * five,
            t - 6 * three + 8 * four - 3 * five,
            0.5 * (two - 3 * three + 3 * four - five),
            10 * three - 15 * four + 6 * five,
            -4 * three + 7 * four - 3 * five,
            0.5 * (three - 2 * four + five),
        ],
        [
            -30 * two + 60 * three - 30 * four,
            1 - 18 * two + 32 * three - 15 * four,
            0.5 * (2 * t - 9 * two + 12 * three - 5 * four),
            30 * two - 60 * three + 30 * four,
            -12 * two + 28 * three - 15 * four,
            0.5 * (3 * two - 8 * three + 5 * four),
        ],
    ]


class NativeWeights:
    """A network's weights in the layout of the C++ engine. A snapshot: make a new one when the network changes.

    Args:
        network: One that :func:`ponita_ff.backends.native.support.check_network` lets pass.
        width: Elements of a vector register that they are padded and packed for.
        max_harmonics: The kernels' limit.
        error: Largest error of the tables (see :func:`radial_table`).

    Raises:
        KernelError: Where the radial functions are too rough for tables.

    Attributes:
        model: The structure that the engine takes; it holds addresses of tensors that live as long as this object.
        layers: The layers in it.
        tensors: Those tensors, in the network's dtype.
    """

    def __init__(self, network: Ponita, width: int, max_harmonics: int, error: float = TABLE_ERROR) -> None:
        self._dtype, self._width, self._max_harmonics = network.embedding.weight.dtype, width, max_harmonics
        self.tensors: list[Tensor] = []
        with torch.no_grad():
            # Computed in float64 and rounded once, whatever the dtype of the network.
            self.model = self._lay_out(copy.deepcopy(network).double(), error)

    def _keep(self, tensor: Tensor) -> int:
        """Address of a copy in the network's dtype that lives as long as the engine."""
        self.tensors.append(tensor.to(self._dtype, copy=True).contiguous())
        return self.tensors[-1].data_ptr()

    def _lay_out(self, network: Ponita, error: float) -> Model:
        config, grid = network.config, network.orientations
        widths = Widths.of(config.channels, config.widening, len(grid), self._width)
        layers: list[Any] = list(network.layers)
        # One spacing for all layers.
        convolutions = [layer.convolution for layer in layers]
        weights = torch.cat([convolution.radial.weight for convolution in convolutions])
        table = radial_table(network.radial_basis, weights, config.cutoff, error)
        table = table.unflatten(-1, (len(layers), config.l_max + 1, config.channels))
        angular, quadrature = legendre(grid @ grid.T, network.l_max).transpose(0, 1), network.orientation_weights
        synthesis = None
        if convolutions[0].fibre is not None:
            synthesis = _harmonics(angular, self._max_harmonics)
        self.layers = (Layer * len(layers))(
            *(
                self._layer(layer, readout, table[:, :, index], angular, quadrature, synthesis, widths)
                for index, (layer, readout) in enumerate(zip(layers, network.readouts, strict=True))
            )
        )
        readouts: list[Any] = list(network.readouts)
        shape = network_shape(network, widths)
        shape.orientations = self._keep(pad(grid.T, widths.ori_stride))
        shape.weights = self._keep(pad(network.orientation_weights, widths.ori_stride))
        return Model(
            shape=shape,
            intervals=len(table) - 1,
            cutoff=config.cutoff,
            embedding=self._keep(pad(network.embedding.weight, widths.stride)),
            readout_hidden=self._keep(pad(readouts[-1].weight.squeeze(0) @ layers[-1].contract.weight, widths.hidden)),
            num_harmonics=0 if synthesis is None else synthesis.shape[1],
            synthesis=None if synthesis is None else self._keep(synthesis),
            analysis=None if synthesis is None else self._keep(quadrature[:, None] * synthesis),
            layers=self.layers,
        )

    def _layer(
        self,
        layer: Any,
        readout: Any,
        table: Tensor,
        angular: Tensor,
        quadrature: Tensor,
        synthesis: Tensor | None,
        widths: Widths,
    ) -> Layer:
        norm, expand, contract = layer.norm, layer.expand, layer.contract
        stride, hidden, _ = widths
        convolution: SeparableConvolution = layer.convolution
        matrix = (expand.weight * norm.weight).T
        fibre = fibre_adjoint = None
        if convolution.fibre is not None and synthesis is not None:
            degrees = torch.arange(len(angular))
            fibre = self._keep(pad(convolution.fibre.repeat_interleave(2 * degrees + 1, dim=0), stride))
            matrix = matrix - matrix.mean(dim=0)  # removes the mean of its input, as the norm does
        elif convolution.fibre is not None:
            kernel = pad(torch.einsum("lnm,m,lc->nmc", angular, quadrature, convolution.fibre), stride)
            kernel = kernel.unflatten(-1, (-1, self._width)).permute(2, 0, 1, 3)
            fibre, fibre_adjoint = self._keep(kernel), self._keep(kernel.transpose(1, 2))
        into = pad(matrix, hidden, stride)
        out = pad(contract.weight.T, stride, hidden)
        return Layer(
            table=self._keep(pad(table, stride)),
            fibre=fibre,
            fibre_adjoint=fibre_adjoint,
            self_weight=self._keep(pad(convolution.self_weight, stride)),
            bias=self._keep(pad(convolution.bias, stride)),
            expand=self._keep(pack(into, self._width)),
            expand_bias=self._keep(pad(expand.bias + expand.weight @ norm.bias, hidden)),
            contract=self._keep(pack(out, self._width)),
            contract_bias=self._keep(pad(contract.bias, stride)),
            contract_adjoint=self._keep(pack(out.T, self._width)),
            expand_adjoint=self._keep(pack(into.T, self._width)),
            readout=self._keep(pad(readout.weight.squeeze(0), stride)),
            readout_bias=float(readout.bias.detach()),
        )


class NativeNetwork:
    """A network's weights, laid out for the C++ engine. A snapshot: make a new one when the network changes.

    Args:
        network: In the force-field form, on the CPU, float32 or float64.
        error: Largest error of the tables (see :func:`radial_table`).

    Raises:
        KernelError: Where the kernels do not implement this network (see support.py), give other results than torch,
            or cannot be had; the message says why.
    """

    def __init__(self, network: Network, error: float = TABLE_ERROR) -> None:
        ponita = check_network(network)
        kernels = Kernels("engine", ponita.embedding.weight.dtype)
        check_size(ponita, kernels)
        self._evaluate = kernels.function("evaluate", None, ctypes.c_void_p, ctypes.c_void_p)
        self._size = kernels.function("workspace_bytes", ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        self._weights = NativeWeights(ponita, kernels.width, kernels.limit("MAX_HARMONICS"), error)
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._lock = threading.Lock()  # one workspace, and the engine runs without Python's global lock
        compare_inference(ponita, self, error)

    def __call__(self, graph: Graph, species: Tensor, rotations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate, in the network's own units.

        Args:
            graph: One structure or a batch, on the CPU, positions and offsets in float64.
            species: Index of each atom's element, shape (N,).
            rotations: Shape (K, 3, 3), float64; edge vectors are taken as ``vectors @ rotation``, and the results
                are means over all K, which go through the engine together. None: no rotation.

        Returns:
            Atomic energies (N,), their sum's gradient with respect to positions (N, 3) and its derivative with respect
            to a symmetric strain (B, 3, 3); all float64.
        """
        atoms, max_neighbours = graph.neighbours.shape
        structures = graph.cell.shape[0]
        inputs = {
            name: _contiguous(graph[name], torch.float64 if name in ("positions", "offsets") else torch.int64)
            for name in ("positions", "offsets", "neighbours", "reverse", "batch")
        }
        inputs["species"] = _contiguous(species, torch.int64)
        if rotations is not None:
            inputs["rotations"] = _contiguous(rotations, torch.float64)
        energies = torch.empty(atoms, dtype=torch.float64)
        gradient = torch.empty(atoms, 3, dtype=torch.float64)
        virial = torch.empty(structures, 3, 3, dtype=torch.float64)
        outputs = {"energies": energies, "gradient": gradient, "virial": virial}
        addresses = {name: tensor.data_ptr() for name, tensor in (inputs | outputs).items()}
        copies = 1 if rotations is None else len(rotations)
        task = Task(atoms, max_neighbours, structures, copies, number_of_threads(), **addresses)
        model, address = ctypes.addressof(self._weights.model), ctypes.addressof(task)
        needed = self._size(model, address)
        with self._lock:
            if self._workspace.numel() < needed:
                self._workspace = torch.empty(0, dtype=torch.uint8)  # free the old one before the new one is made
                self._workspace = torch.empty(needed, dtype=torch.uint8)
            task.workspace = self._workspace.data_ptr()
            self._evaluate(model, address)
        return energies, gradient, 0.5 * (virial + virial.transpose(-1, -2))


def _harmonics(angular: Tensor, max_harmonics: int) -> Tensor | None:
    """Values on a grid of the harmonics that the fibre convolution keeps, where going through them is faster.

    Args:
        angular: P_l(n · n') of a grid's orientations, shape (D, O, O), float64.
        max_harmonics: The kernels' limit.

    Returns:
        Shape (O, D²), 2 l + 1 columns for each l: the products of two rows, summed over these, are P_l(n · n'). None
        where there are more than the limit, or more than half as many as orientations.
    """
    degrees, num_ori, _ = angular.shape
    if degrees**2 > max_harmonics or 2 * degrees**2 > num_ori:
        return None
    columns = [torch.ones(num_ori, 1, dtype=angular.dtype)]
    for degree in range(1, degrees):
        values, vectors = torch.linalg.eigh(angular[degree])  # all but the last 2 l + 1 values are zero
        kept = slice(num_ori - 2 * degree - 1, None)
        columns.append(vectors[:, kept] * values[kept].clamp(min=0.0).sqrt())
    return torch.cat(columns, dim=1)


def _contiguous(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as the engine reads it: of this dtype, on the CPU, contiguous."""
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()
