"""Batches of structures on a GPU, call after call: launches are recorded once for each padded shape and replayed.

Engines that move many structures (``hosts/``) and evaluations of many frames give batches of few shapes. The first
batch of a shape runs as it is, because a recording costs three evaluations; the next one is padded and recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from functools import partial

from torch import Tensor

from ponita_ff.backends.recording import Recordings, padded_size
from ponita_ff.energy.derivatives import predict
from ponita_ff.energy.model import EnergyModel
from ponita_ff.structure.graph import INPUT_FIELDS, Graph, pad_graph

__all__ = ["RecordedBatches"]

#: Atoms of a batch up to which it is recorded: launches cost less than the work of larger ones, whose recording would
#: keep their memory.
_MAX_ATOMS = 20_000

#: Shapes that are remembered as seen.
_SEEN_SHAPES = 64

#: What a batch's table consists of; positions and cells are copied in every call.
_TABLE = tuple(name for name in INPUT_FIELDS if name not in ("positions", "cell"))


class RecordedBatches:
    """Predictions of one potential for batches, recorded where their shapes come again.

    Args:
        model: In eval mode; it must not change afterwards.
        record: Whether launches are recorded; else the same function runs each time, as tests on a CPU do.
    """

    def __init__(self, model: EnergyModel, record: bool) -> None:
        self._model = model
        self._recordings = Recordings(record)
        self._seen: deque[Hashable] = deque(maxlen=_SEEN_SHAPES)

    def __call__(self, graph: Graph, forces: bool, stress: bool) -> tuple[Tensor, ...]:
        """Predict, as :func:`ponita_ff.energy.derivatives.predict` does; the tensors are the caller's own.

        Args:
            graph: On the model's device; all its elements known. Its table is taken to be the same as in the last call
                with its shape if it consists of the same tensors.
            forces, stress: What is wanted.
        """
        number, slots = graph["neighbours"].shape
        key = (padded_size(number), padded_size(slots), len(graph["cell"]), forces, stress)
        if number > _MAX_ATOMS or (key not in self._seen and key not in self._recordings):
            self._seen.append(key)
            return predict(self._model, graph, forces, stress)
        found = self._recordings.run(
            key,
            partial(self._predict, forces=forces, stress=stress),
            partial(_inputs, graph, *key[:2]),
            [graph[name] for name in _TABLE],
            {INPUT_FIELDS.index(name): graph[name] for name in ("positions", "cell")},
        )
        kept = (len(graph["cell"]), number, *([number] if forces else []), *([len(graph["cell"])] if stress else []))
        return tuple(value[:rows].clone() for value, rows in zip(found, kept, strict=True))

    def _predict(self, tensors: list[Tensor], forces: bool, stress: bool) -> tuple[Tensor, ...]:
        """A function of tensors only."""
        return predict(self._model, Graph(**dict(zip(INPUT_FIELDS, tensors, strict=True))), forces, stress)


def _inputs(graph: Graph, atoms: int, slots: int) -> list[Tensor]:
    padded = pad_graph(graph, atoms, slots)
    return [padded[name].clone() for name in INPUT_FIELDS]
