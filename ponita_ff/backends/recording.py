"""Launches on a GPU that are recorded once for each set of shapes and replayed (CUDA graphs).

Small kernels cost the host more than the device: hundreds of them become one launch. Without a GPU a recording calls
its function.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Recording", "Recordings", "TensorFunction", "padded_size"]

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
        record: Whether to record; else every call is a call of the function.
        pool: Memory shared by recordings of which only the last one's results are wanted.
    """

    def __init__(self, function: TensorFunction, inputs: list[Tensor], record: bool, pool: Any = None) -> None:
        self.inputs, self._function = inputs, function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[Tensor, ...] = ()
        if record:
            with torch.cuda.device(inputs[0].device):
                self._record(pool)

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

    def __len__(self) -> int:
        return len(self._recordings)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recordings

    def __getitem__(self, key: Hashable) -> Recording:
        return self._recordings[key]

    def add(self, key: Hashable, function: TensorFunction, inputs: list[Tensor]) -> Recording:
        """Record a function with these inputs, which are then the recording's own."""
        while len(self._recordings) >= _MAX_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        self._recordings[key] = Recording(function, inputs, self._record, self._pool)
        return self._recordings[key]
