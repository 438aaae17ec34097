"""Predictions for the batches of structures that other engines hold: a potential or a committee, tensors in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.batch_cache import BatchGraphCache
from ponita_ff.structure.graph import COINCIDENT, Graph, shortest_edge, squared_distances
from ponita_ff.structure.lattice import PBC

__all__ = ["BatchedPotential", "BatchedResults", "Given"]

#: What calculators take for a potential, and therefore every host.
Given = str | Path | Potential | list[str | Path | Potential]


class BatchedResults(NamedTuple):
    """Results for N atoms in B structures, float64 where the calculator's are, on the potential's device.

    Attributes:
        energy: Shape (B,), eV.
        forces: Shape (N, 3), eV/Å.
        stress: Shape (B, 3, 3), eV/Å³, positive under tension; None where it was not asked for.
        energy_std: Shape (B,), eV: a committee's standard deviation, calibrated where a calibration was given.
        forces_std: Shape (N, 3), eV/Å, likewise.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None
    energy_std: Tensor | None = None
    forces_std: Tensor | None = None


class BatchedPotential:
    """Many structures in one evaluation, call after call, with neighbour lists that are kept while they hold.

    Args:
        potential: As for :class:`ponita_ff.calculator.PonitaCalculator`: a shipped name, a file, a
            :class:`~ponita_ff.potential.potential.Potential`, or a list of these: a committee, whose mean is returned.
        options: Those of the calculator: device, dtype, skin, calibration, …

    Raises:
        FileNotFoundError, PotentialFileError, ValueError, TypeError: As the calculator raises them.

    Attributes:
        calculator: A calculator with the same potentials and options.
    """

    def __init__(self, potential: Given, **options: Any) -> None:
        self.calculator = PonitaCalculator(potential, **options)
        members = self.calculator.potentials
        backend = options.get("backend", "auto")
        self._predictors = [member.predictor(backend) for member in members]
        cutoffs = [member.cutoff for member in members]
        longest = None if None in cutoffs else max(cutoff for cutoff in cutoffs if cutoff is not None)
        self._graphs = BatchGraphCache(longest, options.get("skin", 0.5), self.device)

    @property
    def device(self) -> torch.device:
        """Where the potential computes."""
        return self.calculator.potential.device

    @property
    def is_committee(self) -> bool:
        """Whether results have a spread."""
        return len(self._predictors) > 1

    def check_species(self, numbers: Any) -> None:
        """Refuse elements that a member does not know.

        Args:
            numbers: Atomic numbers, an array.

        Raises:
            ValueError: Naming the first such atom and the known elements.
        """
        for member in self.calculator.potentials:
            member.check_species(numbers)

    def __call__(
        self, positions: Tensor, numbers: Tensor, batch: Tensor, cells: Tensor, pbc: PBC, stress: bool = False
    ) -> BatchedResults:
        """Evaluate.

        Args:
            positions, numbers, batch, cells, pbc: On the potential's device; see
                :meth:`ponita_ff.structure.batch_cache.BatchGraphCache.update`.
            stress: Whether stress is wanted; every cell then needs a volume. Where the structures are not periodic it
                is the derivative with respect to strain over that volume.

        Raises:
            ValueError: For structures that cannot be calculated; the message begins with the number of one.
        """
        graph = self._graphs.update(positions, numbers, batch, cells, pbc, self.check_species)
        self.calculator.domain_watch.see(_for_watch(graph, pbc))
        # Copies: on a GPU a compiled member's results may lie where the next one's will.
        copies = self.is_committee
        found = [[v.clone() if copies else v for v in predict(graph, stress)] for predict in self._predictors]
        energy, forces, *tensors = [torch.stack(v) for i, v in enumerate(zip(*found, strict=True)) if i != 1]
        results = BatchedResults(energy.mean(0), forces.mean(0), tensors[0].mean(0) if stress else None)
        _check(graph, results)
        if not self.is_committee:
            return results
        calibration = self.calculator.calibration
        factors = (1.0, 1.0) if calibration is None else (calibration.energy, calibration.forces)
        energy_std, forces_std = (v.std(0, correction=0) * f for v, f in zip((energy, forces), factors, strict=True))
        return results._replace(energy_std=energy_std, forces_std=forces_std)


def _for_watch(graph: Graph, pbc: PBC) -> Graph:
    """The graph as the watch over the training data takes it: another object each time, no cell for molecules.

    A small molecule's list is never made again, and its host may keep it in a box that means nothing.
    """
    cell = graph["cell"] if torch.as_tensor(pbc).any() else torch.zeros_like(graph["cell"])
    return Graph(**{name: cell if name == "cell" else graph[name] for name in graph.keys()})  # noqa: SIM118


def _check(graph: Graph, results: BatchedResults) -> None:
    """Refuse coincident atoms and results that are not finite; one wait for the device."""
    apart = squared_distances(graph).min() >= COINCIDENT**2
    if bool(apart & results.energy.isfinite().all() & results.forces.isfinite().all()):
        return
    distance, first, second = shortest_edge(graph)
    if distance < COINCIDENT:
        index = int(graph.batch[first])
        start = int((graph.batch < index).sum())
        raise ValueError(
            f"structure {index}: atoms {first - start} and {second - start} are in one place ({distance:.2g} Å apart)"
        )
    broken = ~results.energy.isfinite()
    broken[graph.batch[~results.forces.isfinite().all(1)]] = True
    raise ValueError(
        f"structure {int(broken.nonzero()[0])}: energy or forces are not finite: it is far outside anything the "
        "potential was trained on"
    )
