"""One system step after step, as on a GPU: padded to few shapes, launched as one recording, copied back once.

A step of dynamics on a GPU is hundreds of small launches, each of which costs the host more than the device. They are
recorded once for each padded shape (CUDA graphs) and replayed. The recording takes positions and the padded table of
neighbours, and gives everything that the host asks of a step in one tensor: energies, forces, stress, the shortest
distance, and whether the neighbour list still holds. So the host waits once. Without a GPU the same function runs
without a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.backends.compiled import compile_for_any_shape
from ponita_ff.backends.recording import Recordings, TensorFunction, padded_size
from ponita_ff.energy.derivatives import predict
from ponita_ff.energy.model import EnergyModel
from ponita_ff.structure.graph import INPUT_FIELDS, Graph, pad_graph, squared_distances

__all__ = ["DeviceStep", "StepValues"]

#: Sizes that code is traced with: primes, as hardly any number of channels is.
_EXAMPLE_ATOMS, _EXAMPLE_SLOTS = 23, 13


class StepValues(NamedTuple):
    """What a step gives, on the host, float64.

    Attributes:
        holds: Whether no atom has moved further than it may from where the list was made.
        closest: Square of the shortest distance, Å².
        predictions: Of each potential, one after the other: energy (1,), energies (N,), forces (N, 3) and, where it was
            asked for, stress (1, 3, 3).
    """

    holds: bool
    closest: float
    predictions: list[NDArray[np.float64]]


class DeviceStep:
    """Predictions of one or several potentials for one system, step after step.

    Args:
        potentials: On one device, in eval mode; they must not change afterwards.
        compiled: Whether torch compiles what is recorded: fewer and larger kernels, after a minute at the first call.
        record: Whether launches are recorded; None: on a GPU.
    """

    def __init__(self, potentials: Sequence[EnergyModel], compiled: bool = False, record: bool | None = None) -> None:
        self._potentials = list(potentials)
        device = self._potentials[0].device
        self._compiled = compiled
        self._recordings = Recordings(device.type == "cuda" if record is None else record)
        self._functions: dict[bool, TensorFunction] = {}
        self._host = torch.empty(0, dtype=torch.float64)

    def __call__(self, graph: Graph, stress: bool, made_at: Tensor, max_move: float) -> StepValues:
        """Predict.

        Args:
            graph: One structure, on the device; all its elements known. Its table and cell are taken to be the same as
                in the last call if they are the same tensors.
            stress: Whether stress is wanted.
            made_at: Positions that the table was made for, shape (N, 3), Å.
            max_move: How far atoms may move from there, Å.
        """
        number, slots = graph.neighbours.shape
        key = (padded_size(number), padded_size(slots), stress)
        make_inputs = partial(self._inputs, graph, key, made_at, max_move)
        packed = self._recordings.run(
            key,
            self._function(stress, make_inputs),
            make_inputs,
            (graph["neighbours"], graph["offsets"], graph["cell"], made_at),
            {0: graph["positions"]},
        )
        return self._unpack(self._to_host(*packed), number, key)

    def _to_host(self, packed: Tensor) -> NDArray[np.float64]:
        """A copy on the host: the only wait."""
        if packed.device.type != "cuda":
            return packed.cpu().numpy()
        if len(self._host) != len(packed):
            self._host = torch.empty(len(packed), dtype=torch.float64).pin_memory()
        self._host.copy_(packed, non_blocking=True)
        torch.cuda.current_stream(packed.device).synchronize()
        return self._host.numpy().copy()

    def _inputs(self, graph: Graph, key: tuple[int, int, bool], made_at: Tensor, max_move: float) -> list[Tensor]:
        padded = pad_graph(graph, *key[:2])
        origin = torch.zeros_like(padded.positions)
        origin[: len(made_at)] = made_at
        return [*(padded[name] for name in INPUT_FIELDS), origin, origin.new_tensor([max_move])]

    def _function(self, stress: bool, make_inputs: Callable[[], list[Tensor]]) -> TensorFunction:
        if stress not in self._functions:

            def plain(tensors: list[Tensor]) -> tuple[Tensor, ...]:
                return self._values(tensors, stress, for_compile=False)

            def traced(tensors: list[Tensor]) -> tuple[Tensor, ...]:
                return self._values(tensors, stress, for_compile=True)

            self._functions[stress] = (
                compile_for_any_shape(traced, plain, _example(make_inputs())) if self._compiled else plain
            )
        return self._functions[stress]

    def _values(self, tensors: list[Tensor], stress: bool, for_compile: bool) -> tuple[Tensor, ...]:
        """All that a step gives, in one tensor: a function of tensors only."""
        *fields, made_at, max_move = tensors
        graph = Graph(**dict(zip(INPUT_FIELDS, fields, strict=True)))
        # "<=", so that what is not a number has moved too far.
        holds = ((graph["positions"] - made_at).square().sum(1) <= max_move.square()).all()
        values = [holds.to(made_at.dtype), squared_distances(graph).min()]
        for potential in self._potentials:
            values += predict(potential, graph, forces=True, stress=stress, for_compile=for_compile)
        return (torch.cat([value.flatten() for value in values]),)

    def _unpack(self, packed: NDArray[np.float64], number: int, key: tuple[int, int, bool]) -> StepValues:
        atoms, _, stress = key
        shapes = [((2,), 1), ((atoms,), number), ((atoms, 3), number), *([((2, 3, 3), 1)] if stress else [])]
        arrays, start = [], 2
        for shape, kept in shapes * len(self._potentials):
            end = start + int(np.prod(shape))
            arrays.append(packed[start:end].reshape(shape)[:kept])
            start = end
        return StepValues(bool(packed[0]), float(packed[1]), arrays)


def _example(inputs: list[Tensor]) -> list[Tensor]:
    """Arguments of other sizes, of which no two are equal by chance: a trace takes equal sizes to be equal always."""
    examples = []
    for name, value in zip((*INPUT_FIELDS, "made_at", "max_move"), inputs, strict=True):
        shape = list(value.shape)
        if name not in ("cell", "max_move"):
            shape[0] = _EXAMPLE_ATOMS
        if name in ("neighbours", "reverse", "offsets", "used"):
            shape[1] = _EXAMPLE_SLOTS
        examples.append(value.new_zeros(shape))
    return examples
