"""Predictions of a potential by one of the backends: eager torch, compiled by torch, or the native kernels."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ponita_ff.backends.ahead_of_time import AheadOfTimeError, CompiledPrediction, compiled_path, load_compiled
from ponita_ff.backends.compiled import ShapeCompiler
from ponita_ff.backends.native.engine import NativeNetwork
from ponita_ff.backends.recorded_batches import RecordedBatches
from ponita_ff.energy.assembly import Terms, assemble
from ponita_ff.energy.derivatives import predict
from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.threads import number_of_threads
from ponita_ff.structure.graph import INPUT_FIELDS, Graph

__all__ = ["BACKENDS", "Predictor"]

logger = logging.getLogger(__name__)

#: Atoms times rotations up to which the engine takes several rotations at once; more would only cost memory.
_ROTATED_ATOMS = 500

#: Atoms in one batch of many structures. The engine is as fast with few, and its first call then allocates far less
#: memory; torch needs many, because each of its operations has a fixed cost.
_ENGINE_BATCH_ATOMS, _TORCH_BATCH_ATOMS = 300, 2_000

#: Ways to compute, the default first.
BACKENDS = ("auto", "native", "compiled", "eager")


class Predictor:
    """Energies, forces and stress of a potential by one of the backends.

    - ``"native"``: C++ kernels for the force-field form on the CPU. Radial functions are interpolated in tables with an
      error below float32's rounding; forces are the exact gradient of the interpolated energy. Where the kernels are
      not available or do not implement the network, predictions are made eagerly, with a warning.
    - ``"compiled"``: a single structure by the code that ``ponita-ff compile`` left beside the potential's file, where
      it fits; anything else is compiled by torch, once for each of the first few sizes (up to a minute each).
    - ``"eager"``: plain torch; on a GPU, batches whose shape comes again are recorded and replayed.
    - ``"auto"``: native for float32 on the CPU where the kernels are available, else eager.

    It is a snapshot: make a new one after the potential has changed.

    Args:
        potential: Whose predictions are wanted; in eval mode.
        file: The potential's file; code compiled ahead of time is looked for beside it. None for one made in memory.
        backend: See above.

    Raises:
        ValueError: For a backend that does not exist.
    """

    def __init__(self, potential: EnergyModel, backend: str = "auto", file: Path | None = None) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._potential = potential
        number_of_threads()  # where torch alone computes, no kernel asks for it
        self._engine = _native(potential, backend) if backend in ("auto", "native") else None
        #: None where there is only one, the identity.
        self._rotations = potential.rotations if len(potential.rotations) > 1 else None
        self._ahead_of_time = _ahead_of_time(potential, file) if backend == "compiled" else None
        self._compiled: dict[tuple[bool, bool], ShapeCompiler] = {}
        #: The backend that is used: ``"native"``, ``"compiled"`` or ``"eager"``.
        self.backend = "native" if self._engine else "compiled" if backend == "compiled" else "eager"
        #: On a GPU, where torch computes eagerly.
        self._recorded: RecordedBatches | None = None
        if self.backend == "eager" and potential.device.type == "cuda":
            self._recorded = RecordedBatches(potential, record=True)
        #: Atoms in one batch of many structures.
        self.max_batch_atoms = _ENGINE_BATCH_ATOMS if self._engine else _TORCH_BATCH_ATOMS

    def __call__(self, graph: Graph, stress: bool = False, forces: bool = True) -> tuple[Tensor, ...]:
        """Predict, detached from autograd.

        Args:
            graph: One structure or a batch, on the potential's device; all its elements known.
            stress: Whether stress is wanted; every structure then needs a cell with a volume.
            forces: Whether forces are wanted.

        Returns:
            Total energies (B,), atomic energies (N,), then forces (N, 3) and stress (B, 3, 3) as asked for; all as
            :class:`ponita_ff.potential.potential.Prediction` has them.
        """
        if self._engine is not None:
            found = self._by_engine(self._engine, graph, stress)
            return found if forces else (*found[:2], *found[3:])
        if self.backend == "compiled":
            tensors = [graph[name] for name in INPUT_FIELDS]
            if self._ahead_of_time is not None and forces and len(graph["cell"]) == 1:
                total, atomic, force, tensor = self._ahead_of_time(tensors)
                return (total, atomic, force, tensor) if stress else (total, atomic, force)
            return self._compiler(forces, stress)([], tensors)
        if self._recorded is not None:
            return self._recorded(graph, forces, stress)
        return predict(self._potential, graph, forces, stress)

    def _compiler(self, forces: bool, stress: bool) -> ShapeCompiler:
        if (forces, stress) not in self._compiled:

            def traced(_: list[Tensor], tensors: list[Tensor], for_compile: bool) -> tuple[Tensor, ...]:
                graph = Graph(**dict(zip(INPUT_FIELDS, tensors, strict=True)))
                return predict(self._potential, graph, forces, stress, for_compile=for_compile)

            # Callers copy the results before the next call, so that a GPU may write into the same memory.
            compiler = ShapeCompiler(partial(traced, for_compile=True), partial(traced, for_compile=False), replay=True)
            self._compiled[forces, stress] = compiler
        return self._compiled[forces, stress]

    def _averaged(self, engine: NativeNetwork, graph: Graph, species: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over the rotations, several at once for small systems."""
        if self._rotations is None:
            return engine(graph, species)
        parts = self._rotations.split(max(1, _ROTATED_ATOMS // len(species)))
        shares = [len(part) / len(self._rotations) for part in parts]
        found = [engine(graph, species, part) for part in parts]
        if len(found) == 1:
            return found[0]
        energies, gradient, strain = (
            torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)
            for values in zip(*found, strict=True)
        )
        return energies, gradient, strain

    def _by_engine(self, engine: NativeNetwork, graph: Graph, stress: bool) -> tuple[Tensor, ...]:
        model = self._potential
        energies, gradient, strain = self._averaged(engine, graph, model.species_of(graph))
        network = Terms(energies, gradient, strain if stress else None)
        repulsion = None if model.zbl is None else Terms(*model.zbl.terms(graph))
        return assemble(model, graph, network, repulsion, model.scale)


def _native(potential: EnergyModel, backend: str) -> NativeNetwork | None:
    """The engine; None, and a line in the log, where it is not available, or not the better choice for "auto"."""
    if backend == "auto" and (potential.dtype != torch.float32 or potential.device.type != "cpu"):
        return None
    try:
        return NativeNetwork(potential.network)
    except KernelError as error:
        logger.log(logging.WARNING if backend == "native" else logging.INFO, "native kernels are not used: %s", error)
        return None


def _ahead_of_time(potential: EnergyModel, file: Path | None) -> CompiledPrediction | None:
    """The compiled code beside the potential's file; None where there is none or, with a warning, none that fits."""
    path = None if file is None else compiled_path(file)
    if path is None or potential.device.type != "cpu" or not path.is_file():
        return None
    try:
        return load_compiled(potential, path)
    except AheadOfTimeError as error:
        logger.warning("the code compiled ahead of time is not used: %s", error)
        return None
