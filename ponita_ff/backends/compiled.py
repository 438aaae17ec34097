"""Tracing and compiling of functions that differentiate inside, with a fall-back to the plain function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["Function", "ShapeCompiler", "compile_for_any_shape"]

logger = logging.getLogger(__name__)

#: For TorchInductor on CPU: sums over a few neighbours or orientations become straight-line code that vectorises over
#: channels (it would vectorise the gathers along the neighbours), and the indices, ours, are not checked once more.
_OPTIONS = {"unroll_reductions_threshold": 16, "assert_indirect_indexing": False}

#: On a GPU: record the launches of small kernels once and replay them, where results are used up before the next call.
_REPLAY = {"triton.cudagraphs": True}

_Step = Callable[[list[Tensor]], tuple[Tensor, ...]]

Function = Callable[[list[Tensor], list[Tensor]], tuple[Tensor, ...]]


class ShapeCompiler:
    """Compiles a function of two lists of tensors once for each set of shapes of the second.

    ``torch.compile`` cannot differentiate twice, so energy, forces and any gradient of a loss are traced into one graph
    first and that graph is compiled: worth it where the same shapes come again and again.

    Args:
        traced: The function as it is traced, its sums written as a compiler likes them.
        plain: The same function run eagerly: for shapes past ``limit``, and where compiling fails.
        limit: Number of shapes that are compiled; each takes up to a minute.
        replay: Whether results are used up before the next call: a GPU may then write the next ones into their place.
    """

    def __init__(self, traced: Function, plain: Function, limit: int = 4, replay: bool = False) -> None:
        self._traced, self._plain, self._limit, self._replay = traced, plain, limit, replay
        self._compiled: dict[tuple[torch.Size, ...], Function] = {}

    def __call__(self, fixed: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The function's value."""
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._compiled:
            if len(self._compiled) == self._limit:
                logger.warning("more than %d sets of shapes: the further ones run uncompiled", self._limit)
            plain = len(self._compiled) >= self._limit
            self._compiled[shapes] = self._plain if plain else self._compile(fixed, tensors)
        return self._compiled[shapes](fixed, tensors)

    def _compile(self, fixed: list[Tensor], tensors: list[Tensor]) -> Function:
        try:
            graph = make_fx(self._traced)(fixed, tensors)
            options = _REPLAY if self._replay and tensors[0].device.type == "cuda" else _OPTIONS
            compiled: Any = torch.compile(graph, options=dict(options))
            with torch.no_grad():
                compiled(fixed, tensors)
        except Exception as error:  # whatever a compiler tool-chain throws: the work goes on without it
            _warn(error)
            return self._plain
        return compiled


def compile_for_any_shape(traced: _Step, plain: _Step, example: list[Tensor]) -> _Step:
    """Compile a function of tensors once for all their sizes; the plain function where compiling fails.

    Args:
        traced: The function as it is traced, its sums written as a compiler likes them.
        plain: The same function run eagerly.
        example: Arguments. Sizes that are equal here are taken to be equal always, and so are sizes 0 and 1.
    """
    try:
        graph = make_fx(traced, tracing_mode="symbolic", _allow_non_fake_inputs=True)(example)
        options = {} if example[0].device.type == "cuda" else _OPTIONS
        compiled: Any = torch.compile(graph, dynamic=True, options=dict(options))
        with torch.no_grad():
            compiled(example)
    except Exception as error:  # as above
        _warn(error)
        return plain
    return compiled


def _warn(error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    logger.warning("could not compile, continuing uncompiled: %s", reason)
