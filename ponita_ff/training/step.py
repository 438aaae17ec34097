"""One training step: loss and its gradient for a batch, eager or compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.func import functional_call

from ponita_ff.graph import Graph
from ponita_ff.potential import Potential
from ponita_ff.readout import sum_over_structures
from ponita_ff.training.config import LossConfig

__all__ = ["LossTerms", "TrainingStep"]

logger = logging.getLogger(__name__)

#: Graph fields that a step reads, in the order in which a traced step takes them.
_FIELDS = ("positions", "offsets", "neighbours", "reverse", "atomic_numbers", "batch", "cell", "energy", "forces")

#: For TorchInductor on CPU: sums over a few neighbours or orientations become straight-line code that vectorises over
#: channels (it would vectorise the gathers along the neighbours), and the indices, ours, are not checked once more.
_COMPILE_OPTIONS = {"unroll_reductions_threshold": 16, "assert_indirect_indexing": False}

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

    def __init__(self, potential: Potential, settings: LossConfig) -> None:
        super().__init__()
        self.potential, self.settings = potential, settings

    def forward(self, graph: Graph, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
        settings, potential = self.settings, self.potential
        want_stress = settings.stress > 0
        number = graph.cell.shape[0]
        energies, forces, stress = potential.differentiate(
            graph, forces=True, stress=want_stress, create_graph=True, fused=fused
        )
        assert forces is not None
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
        compile: Trace energy, forces and gradient of the loss into one graph and compile that (``torch.compile``
            alone cannot differentiate twice). Worth it where all batches have the same shape, as for one molecule;
            any other shape past the first few runs eagerly.
    """

    max_compiled = 4

    def __init__(self, potential: Potential, settings: LossConfig, compile: bool = False) -> None:
        self._module = _LossModule(potential, settings)
        self._named = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        self._compile = compile
        self._fields = (*_FIELDS, "stress") if settings.stress > 0 else _FIELDS
        self._compiled: dict[tuple[torch.Size, ...], Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, graph: Graph) -> LossTerms:
        """Loss terms of the batch, detached."""
        tensors = [graph[name] for name in self._fields]
        parameters = [p.detach() for p in self._named.values()]
        function = self._function(parameters, tensors)
        with torch.no_grad():
            loss, energy_mae, forces_mae, *gradients = function(parameters, tensors)
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

    def _function(self, parameters: list[Tensor], tensors: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def eager(parameters: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
            return self._evaluate(parameters, tensors, fused=False)

        if not self._compile:
            return eager
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._compiled:
            if len(self._compiled) == self.max_compiled:
                logger.warning("more than %d batch shapes: the further ones run uncompiled", self.max_compiled)
            if len(self._compiled) >= self.max_compiled:
                self._compiled[shapes] = eager
            else:
                self._compiled[shapes] = self._compile_for(parameters, tensors, eager)
        return self._compiled[shapes]

    def _compile_for(
        self, parameters: list[Tensor], tensors: list[Tensor], eager: Callable[..., tuple[Tensor, ...]]
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Trace and compile for these shapes; the eager function where that fails (no compiler, say)."""
        try:
            traced = make_fx(lambda p, t: self._evaluate(p, t, fused=True))(parameters, tensors)
            compiled = torch.compile(traced, options=dict(_COMPILE_OPTIONS))
            compiled(parameters, tensors)
        except Exception as error:  # whatever a compiler tool-chain throws: training goes on without it
            logger.warning("could not compile the training step, going on without: %s", str(error).splitlines()[0])
            return eager
        return compiled  # type: ignore[no-any-return]
