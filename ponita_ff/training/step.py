"""One training step: loss and its gradient for a batch, by one of the backends."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ponita_ff.backends import BACKENDS
from ponita_ff.compilation import Function, ShapeCompiler
from ponita_ff.graph import INPUT_FIELDS, Graph
from ponita_ff.kernels.build import KernelError
from ponita_ff.potential import Potential
from ponita_ff.readout import sum_over_structures
from ponita_ff.training.config import LossConfig
from ponita_ff.training.native import NativeDifferentiation

__all__ = ["LossTerms", "TrainingStep"]

logger = logging.getLogger(__name__)

#: Graph fields that a step reads, in the order in which a traced step takes them.
_FIELDS = (*INPUT_FIELDS, "energy", "forces")

#: Keeps the norm of a force error differentiable at zero, far under any force that matters, (eV/Å)².
_NORM_FLOOR = 1e-14


@dataclass(frozen=True)
class LossTerms:
    """What a step prints: the loss and mean absolute errors of its batch (eV per structure, eV/Å)."""

    loss: Tensor
    energy_mae: Tensor
    forces_mae: Tensor


class _LossModule(nn.Module):
    """Potential and loss as one module, so that ``functional_call`` can be given other weights."""

    def __init__(self, potential: Potential, settings: LossConfig, native: NativeDifferentiation | None) -> None:
        super().__init__()
        self.potential, self.settings, self.native = potential, settings, native

    def forward(self, graph: Graph, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
        settings, potential = self.settings, self.potential
        want_stress = settings.stress > 0
        number = graph.cell.shape[0]
        if self.native is not None:
            energies, forces, stress = self.native(graph, want_stress)
        else:
            energies, found, stress = potential.differentiate(
                graph, forces=True, stress=want_stress, create_graph=True, fused=fused
            )
            assert found is not None
            forces = found
        reference = potential.reference_energies[potential.species_index[graph.atomic_numbers]]
        label = graph.energy - sum_over_structures(reference, graph.batch, number)
        ones = torch.ones_like(reference)
        energy_error = sum_over_structures(energies.double(), graph.batch, number) - label
        per_atom = energy_error / sum_over_structures(ones, graph.batch, number)
        force_error = forces - graph.forces
        loss = settings.energy * self._size(per_atom.unsqueeze(-1)) + settings.forces * self._size(force_error)
        if want_stress:
            assert stress is not None
            loss = loss + settings.stress * self._size((stress - graph.stress).flatten(1))
        return loss, energy_error.abs().mean(), force_error.abs().mean()

    def _size(self, error: Tensor) -> Tensor:
        if self.settings.kind == "mse":
            return error.square().mean()
        return (error.square().sum(-1) + _NORM_FLOOR).sqrt().mean()


class TrainingStep:
    """Computes the loss of a batch and leaves its gradient in the parameters' ``grad``.

    Args:
        potential: Its parameters are differentiated; nothing else of it changes.
        settings: Weights and kind of the loss.
        backend: ``"native"``: C++ kernels for the force-field form on the CPU; goes on eagerly, with a warning, where
            they are not to be had. ``"compiled"``: the whole step (see :class:`ShapeCompiler`), worth it where all
            batches have the same shape, as for one molecule. ``"eager"``: as torch runs it. ``"auto"``: native for
            float32 on the CPU wherever it can be had, else eager.

    Raises:
        ValueError: For a backend that does not exist.

    Attributes:
        backend: What really computes: ``"native"``, ``"compiled"`` or ``"eager"``.
    """

    def __init__(self, potential: Potential, settings: LossConfig, backend: str = "eager") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        native = _native(potential, backend)
        self.backend = "native" if native else "compiled" if backend == "compiled" else "eager"
        self._module = _LossModule(potential, settings, native)
        self._named = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        self._fields = (*_FIELDS, "stress") if settings.stress > 0 else _FIELDS
        self._function: Function = partial(self._evaluate, fused=False)
        if self.backend == "compiled":
            self._function = ShapeCompiler(partial(self._evaluate, fused=True), self._function)

    def __call__(self, graph: Graph) -> LossTerms:
        """Loss terms of the batch, detached."""
        tensors = [graph[name] for name in self._fields]
        parameters = [p.detach() for p in self._named.values()]
        with torch.no_grad():
            loss, energy_mae, forces_mae, *gradients = self._function(parameters, tensors)
        for parameter, gradient in zip(self._named.values(), gradients, strict=True):
            parameter.grad = gradient
        return LossTerms(loss, energy_mae, forces_mae)

    def _evaluate(self, parameters: list[Tensor], tensors: list[Tensor], fused: bool) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_(True) for p in parameters]
            weights = dict(zip(self._named, leaves, strict=True))
            graph = Graph(**dict(zip(self._fields, tensors, strict=True)))
            loss, energy_mae, forces_mae = functional_call(self._module, weights, (graph, fused))
            # The last layer's constants may not matter to a loss without energies: no gradient then, not an error.
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return loss.detach(), energy_mae.detach(), forces_mae.detach(), *gradients


def _native(potential: Potential, backend: str) -> NativeDifferentiation | None:
    """The kernels; None, said in the log, where they are not to be had or, for "auto", not the better choice."""
    if backend not in ("auto", "native"):
        return None
    if backend == "auto" and (potential.dtype != torch.float32 or potential.device.type != "cpu"):
        return None
    try:
        return NativeDifferentiation(potential)
    except KernelError as error:
        level = logging.WARNING if backend == "native" else logging.INFO
        logger.log(level, "training without native kernels: %s", error)
        return None
