"""How predictions are computed: as torch runs the potential, compiled by torch, or by the package's own kernels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ponita_ff.compilation import ShapeCompiler
from ponita_ff.graph import INPUT_FIELDS, Graph
from ponita_ff.kernels.build import KernelError
from ponita_ff.model import Network
from ponita_ff.native import NativeNetwork
from ponita_ff.readout import ZBL, sum_over_structures

__all__ = ["BACKENDS", "Predictable", "Predictor"]

logger = logging.getLogger(__name__)

#: Ways to compute, the default first.
BACKENDS = ("auto", "native", "compiled", "eager")


class Predictable(Protocol):
    """What a :class:`Predictor` needs of a potential."""

    network: Network
    scale: float
    zbl: ZBL | None
    rotations: Tensor
    reference_energies: Tensor
    species_index: Tensor

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def predict(self, graph: Graph, forces: bool, stress: bool, fused: bool = False) -> tuple[Tensor, ...]: ...

    def repulsion(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor]: ...


class Predictor:
    """Energies, forces and stress of a potential by one of the backends.

    - ``"native"``: C++ kernels for the force-field form on the CPU. Radial functions come from tables, whose error lies
      under float32's rounding; forces are the gradient of just that energy. Goes on eagerly, with a warning, where
      there is no C++ compiler.
    - ``"compiled"``: traced and compiled by torch, once for each of the first few sizes (up to a minute each).
    - ``"eager"``: as torch runs it.
    - ``"auto"``: native for float32 on the CPU wherever it can be had, else eager.

    A snapshot: make a new one after the potential has changed.

    Args:
        potential: Whose predictions are wanted; in eval mode.
        backend: See above.

    Raises:
        ValueError: For a backend that does not exist.
    """

    def __init__(self, potential: Predictable, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._potential = potential
        self._engine = _native(potential, backend) if backend in ("auto", "native") else None
        turned = len(potential.rotations) > 1  # a single one is the identity
        self._rotations: list[Tensor | None] = [*potential.rotations] if turned else [None]
        self._compiled: dict[tuple[bool, bool], ShapeCompiler] = {}
        #: What really computes: ``"native"``, ``"compiled"`` or ``"eager"``.
        self.backend = "native" if self._engine else "compiled" if backend == "compiled" else "eager"

    def __call__(self, graph: Graph, stress: bool = False, forces: bool = True) -> tuple[Tensor, ...]:
        """Predict, detached from autograd.

        Args:
            graph: One structure or a batch, on the potential's device; all its elements known.
            stress: Whether stress is wanted; every structure then needs a cell with a volume.
            forces: Whether forces are wanted.

        Returns:
            Total energies (B,), atomic energies (N,), then forces (N, 3) and stress (B, 3, 3) as asked for; all as
            :class:`ponita_ff.potential.Prediction` has them.
        """
        if self._engine is not None:
            total, atomic, force, tensor = self._by_engine(self._engine, graph, stress)
            return total, atomic, *([force] if forces else []), *([tensor] if tensor is not None else [])
        if self.backend == "compiled":
            return self._compiler(forces, stress)([], [graph[name] for name in INPUT_FIELDS])
        return self._potential.predict(graph, forces, stress)

    def _compiler(self, forces: bool, stress: bool) -> ShapeCompiler:
        if (forces, stress) not in self._compiled:

            def predict(_: list[Tensor], tensors: list[Tensor], fused: bool) -> tuple[Tensor, ...]:
                graph = Graph(**dict(zip(INPUT_FIELDS, tensors, strict=True)))
                return self._potential.predict(graph, forces, stress, fused=fused)

            # Whoever predicts takes the results off the device before the next call.
            compiler = ShapeCompiler(partial(predict, fused=True), partial(predict, fused=False), replay=True)
            self._compiled[forces, stress] = compiler
        return self._compiled[forces, stress]

    def _by_engine(
        self, engine: NativeNetwork, graph: Graph, stress: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        potential = self._potential
        species = potential.species_index[graph["atomic_numbers"]]
        parts = [engine(graph, species, rotation) for rotation in self._rotations]
        energies, gradient, strain = parts[0] if len(parts) == 1 else map(_sum, zip(*parts, strict=True))
        factor = potential.scale / len(parts)
        atomic = potential.reference_energies[species].add_(energies, alpha=factor)
        gradient, strain = gradient * factor, strain * factor
        if potential.zbl is not None:
            repulsion = potential.repulsion(graph)
            atomic, gradient, strain = atomic + repulsion[0], gradient + repulsion[1], strain + repulsion[2]
        total = sum_over_structures(atomic, graph["batch"], len(graph["cell"]))
        if not stress:
            return total, atomic, -gradient, None
        return total, atomic, -gradient, strain / torch.linalg.det(graph["cell"]).abs()[:, None, None]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _native(potential: Predictable, backend: str) -> NativeNetwork | None:
    """The engine; None, said in the log, where it is not to be had or, for "auto", not the better choice."""
    if backend == "auto" and (potential.dtype != torch.float32 or potential.device.type != "cpu"):
        return None
    try:
        return NativeNetwork(potential.network)
    except KernelError as error:
        logger.log(
            logging.WARNING if backend == "native" else logging.INFO, "no native kernels, going on without: %s", error
        )
        return None
