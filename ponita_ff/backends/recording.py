"""Launches on a GPU that are recorded once for each set of shapes and replayed (CUDA graphs).

Small kernels cost the host more than the device: hundreds of them become one launch. Without a GPU a recording calls
its function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Recording", "Recordings", "TensorFunction", "padded_size"]

logger = logging.getLogger(__name__)

#: A function of tensors, of nothing else that changes.
TensorFunction = Callable[[list[Tensor]], tuple[Tensor, ...]]

#: Recordings that are kept.
_MAX_RECORDINGS = 8

#: Calls before a recording, in which kernels are compiled and libraries set up.
_WARM_UP_CALLS = 2


def padded_size(size: int) -> int:
    """The next of few sizes: multiples of 4 up to 32, then eight to each power of two, at most an eighth more."""
    step = max(4, 1 << max(0, (size - 1).bit_length() - 4))
    return -(-size // step) * step


class Recording:
    """A function of tensors that stay in their places, as one launch.

    Args:
        function: Takes the list of tensors. It must not depend on values on the host, nor wait for the device.
        inputs: Its arguments; whoever calls writes new values into them.
        record: Whether to record; else, and with a warning where recording fails, every call is a call of the function.
        pool: Memory shared by recordings of which only the last one's results are wanted.
    """

    def __init__(self, function: TensorFunction, inputs: list[Tensor], record: bool, pool: Any = None) -> None:
        self.inputs, self._function = inputs, function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[Tensor, ...] = ()
        if record:
            self._try_to_record(pool)

    def _try_to_record(self, pool: Any) -> None:
        try:
            with torch.cuda.device(self.inputs[0].device):
                self._record(pool)
        except RuntimeError as error:  # of a driver, a library in the function, or of memory
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            logger.warning("launches on the GPU cannot be recorded, so that every step is slower: %s", reason)

    def _record(self, pool: Any) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP_CALLS):
                self._function(self.inputs)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._outputs = self._function(self.inputs)
        self._graph = graph

    def __call__(self) -> tuple[Tensor, ...]:
        """The function's value, in memory that the next call of any recording of the pool may write to."""
        if self._graph is None:
            return self._function(self.inputs)
        with torch.cuda.device(self.inputs[0].device):
            self._graph.replay()
        return self._outputs


class Recordings:
    """Recordings by key, the oldest dropped where there are too many; their memory is shared.

    Args:
        record: Whether to record; see :class:`Recording`.
    """

    def __init__(self, record: bool) -> None:
        self._record = record
        self._pool = torch.cuda.graph_pool_handle() if record else None
        self._recordings: dict[Hashable, Recording] = {}
        #: What each recording has copies of, so that a table is copied once.
        self._held: dict[Hashable, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._recordings)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recordings

    def __getitem__(self, key: Hashable) -> Recording:
        return self._recordings[key]

    def add(self, key: Hashable, function: TensorFunction, inputs: list[Tensor]) -> Recording:
        """Record a function with these inputs, which are then the recording's own."""
        while len(self._recordings) >= _MAX_RECORDINGS:
            oldest = next(iter(self._recordings))
            del self._recordings[oldest]
            self._held.pop(oldest, None)
        self._recordings[key] = Recording(function, inputs, self._record, self._pool)
        return self._recordings[key]

    def run(
        self,
        key: Hashable,
        function: TensorFunction,
        make_inputs: Callable[[], list[Tensor]],
        held: Sequence[Tensor],
        moving: Mapping[int, Tensor],
    ) -> tuple[Tensor, ...]:
        """The function's value by the recording for a key, which is made if there is none.

        Args:
            key: Of everything that the recording depends on but the values of its inputs.
            function: See :class:`Recording`.
            make_inputs: Gives all inputs.
            held: What the inputs are made of. They are made again where one of these is another tensor than in the
                last call with this key.
            moving: Values copied into the first rows of an input, by its place among them, in every call.
        """
        if key not in self:
            self.add(key, function, make_inputs())
        elif not all(map(_same, self._held[key], held)):
            for place, value in zip(self[key].inputs, make_inputs(), strict=True):
                place.copy_(value)
        self._held[key] = tuple(held)
        recording = self[key]
        for number, values in moving.items():
            recording.inputs[number][: len(values)].copy_(values)
        return recording()


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other
