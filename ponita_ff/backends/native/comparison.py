"""Native kernels against eager torch on one small graph, when they are set up.

The list in support.py knows names and classes; what a forward computes, and what a library was compiled from, shows
only in numbers. The comparison takes some milliseconds, draws no random numbers and leaves torch's settings alone.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ponita_ff.energy.derivatives import differentiate
from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.build import KernelError
from ponita_ff.network.ponita import Ponita
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

__all__ = ["Predicted", "compare_inference", "compare_training"]

#: Largest difference, over the largest value of the same kind. Far above rounding, far below any other mathematics.
_RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-8}

#: The engine's tables of radial functions have this multiple of their own error as their share in the results.
_TABLE_FACTOR = 30.0

#: Rounding of a sum of large terms of both signs, in units of the last place of the largest result.
_ROUNDING = 100.0

#: By how much native results may be less exact than those of torch in the same dtype, where a network is so
#: ill-conditioned that rounding alone exceeds the tolerances above.
_ILL_CONDITIONED = 10.0

#: Two structures in units of the cutoff: a cluster with an outlying atom, and a triclinic crystal of
#: one atom. Atoms have different
#: numbers of neighbours, and some pairs lie beyond the cutoff. Nothing is symmetric.
_CLUSTER = np.array([[0.0, 0.0, 0.0], [0.24, 0.05, -0.03], [-0.11, 0.29, 0.08], [0.98, 0.5, -0.21]])
_CRYSTAL = np.array([[0.05, 0.1, 0.02]])
_CELL = np.array([[0.83, 0.06, -0.04], [0.21, 0.77, 0.09], [-0.14, 0.18, 0.92]])


class Predicted(NamedTuple):
    """What both sides predict.

    Attributes:
        energies: Shape (N,).
        forces: Shape (N, 3).
        stress: Shape (B, 3, 3).
    """

    energies: Tensor
    forces: Tensor
    stress: Tensor


class _Evaluation(Protocol):
    """What :class:`ponita_ff.backends.native.training.Evaluation` has."""

    energies: Tensor
    forces: Tensor
    stress: Tensor | None

    def gradients(self, loss: Tensor) -> dict[str, Tensor]: ...


@torch.inference_mode(False)
def compare_inference(
    network: Ponita, engine: Callable[[Graph, Tensor], tuple[Tensor, Tensor, Tensor]], table_error: float
) -> None:
    """Refuse an engine whose energies, gradient or virial differ from the network's.

    Args:
        network: As torch computes it.
        engine: Gives atomic energies (N,), gradient (N, 3) and strain derivative (B, 3, 3) of a graph and species.
        table_error: Relative error of the engine's radial tables.

    Raises:
        KernelError: Where they differ, or torch's own results are not finite.
    """
    species = range(1, network.embedding.num_embeddings + 1)
    model = EnergyModel(_differentiable(network), species, dict.fromkeys(species, 0.0))
    graph = _test_graph(model)
    energies, gradient, strain = engine(graph, model.species_of(graph))
    found = Predicted(energies, -gradient, strain / torch.linalg.det(graph.cell).abs()[:, None, None])
    relative = max(_RELATIVE[model.dtype], _TABLE_FACTOR * table_error)
    _check("energies, forces and stress", found, lambda exact: _predict(model, graph, exact), relative, model)


@torch.inference_mode(False)
def compare_training(potential: EnergyModel, native: Callable[[Graph, bool], _Evaluation]) -> None:
    """Refuse training kernels whose predictions, or gradients of a loss, differ from torch's.

    Args:
        potential: As torch computes it.
        native: Evaluates a graph, with stress if asked to.

    Raises:
        KernelError: Where they differ, or torch's own results are not finite.
    """
    graph = _test_graph(potential)
    evaluation = native(graph, True)
    assert evaluation.stress is not None
    predicted = Predicted(evaluation.energies, evaluation.forces, evaluation.stress)
    scales = [float(value.detach().abs().max()) or 1.0 for value in predicted]
    gradients = evaluation.gradients(_linear_loss(predicted, scales))
    found = [value.detach() for value in (*predicted, *gradients.values())]

    def reference(exact: bool) -> list[Tensor]:
        model = copy.deepcopy(potential).requires_grad_(True)
        model = model.double() if exact else model
        values = _predict(model, graph, False, create_graph=True)
        parameters = dict(model.named_parameters())
        loss = _linear_loss(values, scales)
        found = torch.autograd.grad(loss, [parameters[name] for name in gradients], materialize_grads=True)
        return [value.detach() for value in (*values, *found)]

    relative = _RELATIVE[potential.dtype]
    _check("energies, forces, stress and gradients of a loss", found, reference, relative, potential)


def _differentiable(network: Ponita) -> Ponita:
    """The network, or a copy where it was made in torch's inference mode: autograd cannot use such tensors."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network) if any(tensor.is_inference() for tensor in tensors) else network


def _predict(model: EnergyModel, graph: Graph, exact: bool, create_graph: bool = False) -> Predicted:
    """By torch, in the model's dtype or, if ``exact``, in float64."""
    model = copy.deepcopy(model).double() if exact else model
    energies, forces, stress = differentiate(model, graph, forces=True, stress=True, create_graph=create_graph)
    assert forces is not None and stress is not None
    return Predicted(energies, forces, stress)


def _linear_loss(values: Predicted, scales: Sequence[float]) -> Tensor:
    """A sum of all values with different factors of both signs, of the order of 1."""
    terms = []
    for value, scale in zip(values, scales, strict=True):
        factors = torch.cos(1.0 + 2.0 * torch.arange(value.numel(), dtype=torch.float64)).view(value.shape)
        terms.append((value.double() * (factors / scale)).sum())
    return torch.stack(terms).sum()


def _check(
    what: str,
    found: Sequence[Tensor],
    reference: Callable[[bool], Sequence[Tensor]],
    relative: float,
    model: EnergyModel,
) -> None:
    """Compare with torch in the same dtype, and where float32 is too coarse for that, in float64."""
    expected = [value.detach().double() for value in reference(False)]
    given = [value.detach().double() for value in found]
    if not all(bool(torch.isfinite(value).all()) for value in expected):
        raise KernelError(
            "torch's own results for a small test graph are not finite: nothing to check the kernels with"
        )
    tolerances = _tolerances(expected, relative, model)
    if all(_difference(*pair) <= tolerance for *pair, tolerance in zip(given, expected, tolerances, strict=True)):
        return
    exact = expected
    if model.dtype == torch.float32:
        exact = [value.detach().double() for value in reference(True)]
        rounding = [_ILL_CONDITIONED * _difference(*pair) for pair in zip(expected, exact, strict=True)]
        tolerances = [max(pair) for pair in zip(tolerances, rounding, strict=True)]
    for value, right, tolerance in zip(given, exact, tolerances, strict=True):
        difference = _difference(value, right)
        if not difference <= tolerance:  # NaN too
            raise KernelError(
                f"the native kernels do not compute what torch does with this network: {what} of a small test graph "
                f"differ by up to {difference:.2g}, where {tolerance:.2g} is allowed"
            )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _tolerances(expected: Sequence[Tensor], relative: float, model: EnergyModel) -> list[float]:
    """For energies, forces, stress and then gradients of a loss.

    Constants of the energy count as rounding only, so that large ones hide no difference of what depends on positions.
    """
    energies, forces, stress, *gradients = expected
    sizes = [float(energies.max() - energies.min()), _size(forces), _size(stress)]
    rounding = _ROUNDING * torch.finfo(model.dtype).eps * _size(energies)
    assert model.cutoff is not None
    length = model.cutoff / 5  # of the shortest pairs
    floors = [rounding, rounding / length, rounding / length**3]
    tolerances = [relative * size + floor for size, floor in zip(sizes, floors, strict=True)]
    largest = max(map(_size, gradients), default=0.0)
    rounding = _ROUNDING * torch.finfo(model.dtype).eps * largest
    return [*tolerances, *(relative * _size(gradient) + rounding for gradient in gradients)]


def _size(values: Tensor) -> float:
    return float(values.abs().max())


def _test_graph(model: EnergyModel) -> Graph:
    """Both structures, of all elements of the model in turn, as far as there are atoms."""
    assert model.cutoff is not None
    graph = _graph_of_cutoff(model.cutoff).clone()
    elements = itertools.islice(itertools.cycle(model.species), len(graph.atomic_numbers))
    graph.atomic_numbers = torch.tensor(list(elements))
    return graph


@functools.lru_cache(maxsize=8)
def _graph_of_cutoff(cutoff: float) -> Graph:
    reach = 1.1 * cutoff  # edges beyond the cutoff, too, as in lists with a skin
    graphs = [
        build_graph(np.ones(len(positions), dtype=np.int64), cutoff * positions, reach, cutoff * cell, pbc)
        for positions, cell, pbc in ((_CLUSTER, np.eye(3), False), (_CRYSTAL @ _CELL, _CELL, True))
    ]
    return batch_graphs(graphs)
