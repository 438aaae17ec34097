"""One training step: the loss of a batch and its gradient with respect to the weights, by one of the backends."""

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
from ponita_ff.backends.recording import Recordings
from ponita_ff.energy.assembly import reference_energies
from ponita_ff.energy.derivatives import differentiate
from ponita_ff.kernels.build import KernelError
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import INPUT_FIELDS, Graph, sum_over_structures
from ponita_ff.training.config import LossConfig

__all__ = ["LossTerms", "TrainingStep"]

logger = logging.getLogger(__name__)

#: Fields of a graph that a step reads, in the order in which a traced step takes them.
_FIELDS = (*INPUT_FIELDS, "energy", "forces")

#: Weights of rows in means over a padded batch, where it has them.
_WEIGHTS = ("structure_weights", "atom_weights")

#: Added to the squared norm of a force error, so that the norm is differentiable at zero; far below the square of any
#: force that matters, (eV/Å)².
_NORM_EPS = 1e-14

#: Mean error of rows, by the kind of the loss.
_MEAN_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda error: error.square().mean(),
    "mae": lambda error: (error.square().sum(-1) + _NORM_EPS).sqrt().mean(),
}

#: Errors of rows, by the kind of the loss, of which the above are the means.
_ROW_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda error: error.square().mean(-1),
    "mae": lambda error: (error.square().sum(-1) + _NORM_EPS).sqrt(),
}


@dataclass(frozen=True)
class LossTerms:
    """Loss and errors of a batch, all scalars.

    Attributes:
        loss: The loss.
        energy_mae: Mean absolute error of the energy, eV per structure.
        forces_mae: Mean absolute error of the force components, eV/Å.
    """

    loss: Tensor
    energy_mae: Tensor
    forces_mae: Tensor


def _loss(
    potential: Potential,
    settings: LossConfig,
    graph: Graph,
    fractions: Tensor,
    energies: Tensor,
    forces: Tensor,
    stress: Tensor | None,
) -> LossTerms:
    """Loss of predictions against the labels of a batch.

    Args:
        potential: For its reference energies.
        settings: Weights and kind of the loss.
        graph: The batch of B structures with N atoms, or this process's shard of it, with labels. Where it is padded,
            it has weights of its rows (:meth:`ponita_ff.training.resident.ResidentFrames.batch`).
        fractions: Fractions of the whole batch's structures and atoms that ``graph`` has, shape (2,).
        energies: Interaction energies of atoms, shape (N,), eV.
        forces: Shape (N, 3), eV/Å.
        stress: Shape (B, 3, 3), eV/Å³, or None where it is not in the loss.
    """
    structure_fraction, atom_fraction = fractions
    num_structures = graph.cell.shape[0]
    reference = reference_energies(potential, graph)
    label = graph.energy - sum_over_structures(reference, graph.batch, num_structures)
    num_atoms = sum_over_structures(torch.ones_like(reference), graph.batch, num_structures)
    energy_error = sum_over_structures(energies.double(), graph.batch, num_structures) - label
    force_error = forces - graph.forces
    if "atom_weights" in graph:
        return _weighted_loss(settings, graph, fractions, energy_error, num_atoms, force_error, stress)
    mean_error = _MEAN_ERRORS[settings.kind]
    loss = settings.energy * structure_fraction * mean_error((energy_error / num_atoms).unsqueeze(-1))
    loss = loss + settings.forces * atom_fraction * mean_error(force_error)
    if stress is not None:
        loss = loss + settings.stress * structure_fraction * mean_error((stress - graph.stress).flatten(1))
    energy_mae, forces_mae = energy_error.detach().abs().mean(), force_error.detach().abs().mean()
    return LossTerms(loss, structure_fraction * energy_mae, atom_fraction * forces_mae)


def _weighted_loss(
    settings: LossConfig,
    graph: Graph,
    fractions: Tensor,
    energy_error: Tensor,
    num_atoms: Tensor,
    force_error: Tensor,
    stress: Tensor | None,
) -> LossTerms:
    """The same of a padded batch: sums with weights, zero for padding, in place of means."""
    row_errors = _ROW_ERRORS[settings.kind]
    structures, atoms = (fraction * graph[name] for fraction, name in zip(fractions, _WEIGHTS, strict=True))
    per_atom = energy_error / num_atoms.clamp(min=1.0)  # padding may have no atoms
    loss = settings.energy * (row_errors(per_atom.unsqueeze(-1)) @ structures)
    loss = loss + settings.forces * (row_errors(force_error) @ atoms)
    if stress is not None:
        loss = loss + settings.stress * (row_errors((stress - graph.stress).flatten(1)) @ structures)
    energy_mae = energy_error.detach().abs() @ structures
    return LossTerms(loss, energy_mae, force_error.detach().abs().mean(-1) @ atoms)


class _LossModule(nn.Module):
    """Potential and loss in one module, so that ``functional_call`` can evaluate the loss for given weights."""

    def __init__(self, potential: Potential, settings: LossConfig) -> None:
        super().__init__()
        self.potential, self.settings = potential, settings

    def forward(self, graph: Graph, fractions: Tensor, for_compile: bool) -> LossTerms:
        energies, forces, stress = differentiate(
            self.potential,
            graph,
            forces=True,
            stress=self.settings.stress > 0,
            create_graph=True,
            for_compile=for_compile,
        )
        assert forces is not None
        return _loss(self.potential, self.settings, graph, fractions, energies, forces, stress)


class TrainingStep:
    """Computes the loss of a batch and writes its gradient into the ``grad`` of the potential's parameters.

    Args:
        potential: The loss is differentiated with respect to its trainable parameters. It is not changed otherwise.
        settings: Weights and kind of the loss.
        backend: ``"native"``: C++ kernels for the force-field form on the CPU; eager, with a warning, where they are
            not available. ``"compiled"``: the whole step is compiled by torch for each of the first shapes of batches
            (see :class:`ShapeCompiler`), which is worth it where all batches have one shape, as for one molecule.
            ``"eager"``: plain torch; on a GPU, padded batches are recorded once for each shape and replayed.
            ``"auto"``: native for float32 on the CPU where available, else eager.

    Raises:
        ValueError: For an unknown backend.

    Attributes:
        backend: The backend in use: ``"native"``, ``"compiled"`` or ``"eager"``.
    """

    def __init__(self, potential: Potential, settings: LossConfig, backend: str = "eager") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._potential, self._settings = potential, settings
        self._native = _native_differentiation(potential, backend)
        self.backend = "native" if self._native else "compiled" if backend == "compiled" else "eager"
        self._parameters = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        self._module = _LossModule(potential, settings)
        self._fields = (*_FIELDS, "stress") if settings.stress > 0 else _FIELDS
        self._recordings = Recordings(potential.device.type == "cuda")
        self._fractions = ((1.0, 1.0), torch.ones(2, dtype=torch.float64, device=potential.device))
        self._function: Function = partial(self._loss_and_gradients, for_compile=False)
        if self.backend == "compiled":
            self._function = ShapeCompiler(partial(self._loss_and_gradients, for_compile=True), self._function)

    def __call__(self, graph: Graph, fractions: tuple[float, float] = (1.0, 1.0)) -> LossTerms:
        """Compute loss and gradient.

        Args:
            graph: The batch with its labels, or a shard of it.
            fractions: Fractions of the whole batch's structures and atoms that ``graph`` has. Loss terms and gradients
                of all shards add up to those of the whole batch.

        Returns:
            Detached loss terms.
        """
        if fractions != self._fractions[0]:
            self._fractions = (fractions, self._fractions[1].new_tensor(fractions))
        fraction_tensor = self._fractions[1].to(graph.positions.device)
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if self._native is not None:
            return self._native_step(graph, fraction_tensor, self._native)
        padded = "atom_weights" in graph
        tensors = [*(graph[name] for name in (*self._fields, *(_WEIGHTS if padded else ()))), fraction_tensor]
        if padded and self.backend == "eager":
            return LossTerms(*(value.clone() for value in self._recorded(tensors)))
        return LossTerms(*self._write_gradients(tensors))

    def _write_gradients(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The loss terms; the gradients go into the parameters' ``grad``."""
        parameters = [p.detach() for p in self._parameters.values()]
        with torch.no_grad():
            loss, energy_mae, forces_mae, *gradients = self._function(parameters, tensors)
            torch._foreach_copy_([p.grad for p in self._parameters.values() if p.grad is not None], gradients)
        return loss, energy_mae, forces_mae

    def _recorded(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The same by a recording for these shapes, and for where weights and gradients are."""
        places = [p.data_ptr() for p in self._parameters.values()]
        places += [p.grad.data_ptr() for p in self._parameters.values() if p.grad is not None]
        key = (*(tensor.shape for tensor in tensors), *places)
        if key not in self._recordings:
            own = [tensor.clone() for tensor in tensors]
            return self._recordings.add(key, self._write_gradients, own)()
        recording = self._recordings[key]
        for place, value in zip(recording.inputs, tensors, strict=True):
            place.copy_(value)
        return recording()

    def _native_step(self, graph: Graph, fractions: Tensor, native: NativeDifferentiation) -> LossTerms:
        found = native(graph, self._settings.stress > 0)
        with torch.enable_grad():
            terms = _loss(self._potential, self._settings, graph, fractions, found.energies, found.forces, found.stress)
        found.gradients(terms.loss, {name: p.grad for name, p in self._parameters.items() if p.grad is not None})
        return replace(terms, loss=terms.loss.detach())

    def _loss_and_gradients(
        self, parameters: list[Tensor], tensors: list[Tensor], for_compile: bool
    ) -> tuple[Tensor, ...]:
        """The loss terms, then the gradient with respect to each parameter; a function of tensors only, for tracing."""
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_(True) for p in parameters]
            weights = dict(zip((f"potential.{name}" for name in self._parameters), leaves, strict=True))
            *fields, fractions = tensors
            names = (*self._fields, *_WEIGHTS)[: len(fields)]
            graph = Graph(**dict(zip(names, fields, strict=True)))
            terms = functional_call(self._module, weights, (graph, fractions, for_compile))
            # A loss without energies does not depend on the last layer's biases: their gradient is zero, not an error.
            gradients = torch.autograd.grad(terms.loss, leaves, materialize_grads=True)
        return terms.loss.detach(), terms.energy_mae, terms.forces_mae, *gradients


def _native_differentiation(potential: Potential, backend: str) -> NativeDifferentiation | None:
    """The native kernels, or None if they are not asked for, not available (logged), or not the default choice."""
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
