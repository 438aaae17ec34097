"""One training step: loss and its gradient for a batch, by one of the backends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ponita_ff.backends.compiled import Function, ShapeCompiler
from ponita_ff.backends.native.training import NativeDifferentiation
from ponita_ff.backends.predictor import BACKENDS
from ponita_ff.energy.assembly import reference_energies
from ponita_ff.energy.derivatives import differentiate
from ponita_ff.kernels.build import KernelError
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import INPUT_FIELDS, Graph, sum_over_structures
from ponita_ff.training.config import LossConfig

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


def _loss(
    potential: Potential,
    settings: LossConfig,
    graph: Graph,
    shares: Tensor,
    energies: Tensor,
    forces: Tensor,
    stress: Tensor | None,
) -> LossTerms:
    """Loss of interaction energies (N,), forces (N, 3) and stress (B, 3, 3) against a batch's labels.

    ``shares`` (2,): of the structures and of the atoms of the whole batch, those in this graph.
    """
    of_structures, of_atoms = shares
    number = graph.cell.shape[0]
    reference = reference_energies(potential, graph)
    label = graph.energy - sum_over_structures(reference, graph.batch, number)
    ones = torch.ones_like(reference)
    energy_error = sum_over_structures(energies.double(), graph.batch, number) - label
    per_atom = energy_error / sum_over_structures(ones, graph.batch, number)
    force_error = forces - graph.forces
    size = _SIZES[settings.kind]
    loss = settings.energy * of_structures * size(per_atom.unsqueeze(-1))
    loss = loss + settings.forces * of_atoms * size(force_error)
    if stress is not None:
        loss = loss + settings.stress * of_structures * size((stress - graph.stress).flatten(1))
    energy_mae, forces_mae = energy_error.detach().abs().mean(), force_error.detach().abs().mean()
    return LossTerms(loss, of_structures * energy_mae, of_atoms * forces_mae)


_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda error: error.square().mean(),
    "mae": lambda error: (error.square().sum(-1) + _NORM_FLOOR).sqrt().mean(),
}


class _LossModule(nn.Module):
    """Potential and loss as one module, so that ``functional_call`` can be given other weights."""

    def __init__(self, potential: Potential, settings: LossConfig) -> None:
        super().__init__()
        self.potential, self.settings = potential, settings

    def forward(self, graph: Graph, shares: Tensor, for_compile: bool) -> LossTerms:
        energies, forces, stress = differentiate(
            self.potential,
            graph,
            forces=True,
            stress=self.settings.stress > 0,
            create_graph=True,
            for_compile=for_compile,
        )
        assert forces is not None
        return _loss(self.potential, self.settings, graph, shares, energies, forces, stress)


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
        self._potential, self._settings = potential, settings
        self._native = _native(potential, backend)
        self.backend = "native" if self._native else "compiled" if backend == "compiled" else "eager"
        self._named = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        self._module = _LossModule(potential, settings)
        self._fields = (*_FIELDS, "stress") if settings.stress > 0 else _FIELDS
        self._function: Function = partial(self._evaluate, for_compile=False)
        if self.backend == "compiled":
            self._function = ShapeCompiler(partial(self._evaluate, for_compile=True), self._function)

    def __call__(self, graph: Graph, shares: tuple[float, float] = (1.0, 1.0)) -> LossTerms:
        """Loss terms of the batch, detached.

        Args:
            graph: The batch, or a part of it.
            shares: Of the structures and of the atoms of the whole batch, those in ``graph``: terms and gradients of
                parts add up to those of the whole.
        """
        part = torch.tensor(shares, dtype=torch.float64, device=graph.positions.device)
        for parameter in self._named.values():
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if self._native is not None:
            return self._natively(graph, part, self._native)
        tensors = [*(graph[name] for name in self._fields), part]
        parameters = [p.detach() for p in self._named.values()]
        with torch.no_grad():
            loss, energy_mae, forces_mae, *gradients = self._function(parameters, tensors)
        torch._foreach_copy_([p.grad for p in self._named.values() if p.grad is not None], gradients)
        return LossTerms(loss, energy_mae, forces_mae)

    def _natively(self, graph: Graph, shares: Tensor, native: NativeDifferentiation) -> LossTerms:
        found = native(graph, self._settings.stress > 0)
        with torch.enable_grad():
            terms = _loss(self._potential, self._settings, graph, shares, found.energies, found.forces, found.stress)
        found.gradients(terms.loss, {name: p.grad for name, p in self._named.items() if p.grad is not None})
        return replace(terms, loss=terms.loss.detach())

    def _evaluate(self, parameters: list[Tensor], tensors: list[Tensor], for_compile: bool) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_(True) for p in parameters]
            weights = dict(zip((f"potential.{name}" for name in self._named), leaves, strict=True))
            *fields, shares = tensors
            graph = Graph(**dict(zip(self._fields, fields, strict=True)))
            terms = functional_call(self._module, weights, (graph, shares, for_compile))
            # The last layer's constants may not matter to a loss without energies: no gradient then, not an error.
            gradients = torch.autograd.grad(terms.loss, leaves, materialize_grads=True)
        return terms.loss.detach(), terms.energy_mae, terms.forces_mae, *gradients


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
