"""Looks now and then, while a structure moves, whether the potential was trained on anything like it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ponita_ff.potential.domain import Familiarity, TrainingDomain
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, graphs_of

__all__ = [
    "DomainWatch",
    "OutsideTrainingData",
    "Uncertainty",
    "domain_distances",
    "domains_of",
    "familiarity",
]

logger = logging.getLogger(__name__)

#: Calculations with one system from one look to the next, at least.
_INTERVAL = 20

#: Calculations with one system from one question to the companions to the next, at least: it costs as much as several.
_COMPANIONS_INTERVAL = 1000

#: Atoms of structures that are looked at together.
_BATCH_ATOMS = 1000


@dataclass(frozen=True)
class Uncertainty:
    """How much the members of a committee differ about a structure.

    Attributes:
        spread: Calibrated standard deviation of the force of the atom where it is largest, norm over components, eV/Å.
        limit: What it stays below where they know the structure, eV/Å.
        atom: Index of that atom.
    """

    spread: float
    limit: float
    atom: int


class OutsideTrainingData(ValueError):
    """A structure unlike anything that the potential was trained on, given to a calculator with ``strict=True``."""


def domains_of(potentials: Sequence[Potential]) -> list[TrainingDomain]:
    """Domains of the potentials that have one."""
    return [potential.domain for potential in potentials if potential.domain is not None]


def familiarity(potentials: Sequence[Potential], atoms: Atoms) -> Familiarity | None:
    """How well the training data cover a structure, for the member that knows it least; None without statistics.

    Raises:
        ValueError: For atoms that cannot be calculated.
    """
    for potential in potentials:
        potential.check_species(atoms.numbers)
    ((_, graph),) = graphs_of([atoms], _longest_cutoff(potentials), len(atoms))
    return _least_familiar(domains_of(potentials), graph)


def _least_familiar(domains: Sequence[TrainingDomain], graph: Graph) -> Familiarity | None:
    found = [domain.familiarity(graph) for domain in domains]
    return max(found, key=lambda one: one.distance) if found else None


def _longest_cutoff(potentials: Sequence[Potential]) -> float | None:
    cutoffs = [potential.cutoff for potential in potentials]
    return None if None in cutoffs else max(cutoff for cutoff in cutoffs if cutoff is not None)


def domain_distances(potentials: Sequence[Potential], structures: Sequence[Atoms]) -> NDArray[np.float64] | None:
    """How far structures are from the training data; 1 is the limit.

    Args:
        potentials: One, or a committee, of which the member counts that knows a structure least.
        structures: Of elements that the potentials know.

    Returns:
        Shape (structures,); None where no potential has statistics of its training data.
    """
    domains = domains_of(potentials)
    if not domains:
        return None
    found = np.zeros(len(structures))
    for indices, graph in graphs_of(structures, _longest_cutoff(potentials), _BATCH_ATOMS):
        found[indices] = np.max([domain.distances(graph) for domain in domains], axis=0)
    return found


class DomainWatch:
    """Warns once for each system that leaves the training data of a potential, or of any member of a committee.

    It looks when a system is new, and then when its neighbour list has been made again, but not more often than every
    20 calculations; with ``strict`` at every calculation. A single potential's companions, members of a committee that
    it belongs to, are asked about a new system, and then at a look, but not more often than every 1,000 calculations.

    Args:
        potentials: Those without statistics of their training data are passed over.
        strict: Raise an error instead of the warning.
        companions: How much the companions of the potential differ from it about a structure.

    Raises:
        ValueError: For ``strict`` with a potential without statistics.

    Attributes:
        strict: Whether it raises an error.
        looks: Number of structures looked at.
        outside: Number of those that were outside.
        largest: Largest distance found; 1 is the limit.
        uncertainty: The largest that companions have found; None if there are none, or they were not asked yet.
    """

    def __init__(
        self,
        potentials: Sequence[Potential],
        strict: bool = False,
        companions: Callable[[Graph], Uncertainty] | None = None,
    ) -> None:
        self.name = str(potentials[0].metadata.get("name") or "the potential")
        self._domains, self.strict, self._companions = domains_of(potentials), strict, companions
        if strict and len(self._domains) < len(potentials):
            raise ValueError(
                "strict=True needs statistics of the training data, which this potential's file does not hold: train "
                "it with this version of ponita_ff, or leave strict out"
            )
        self.looks = self.outside = 0
        self.largest = 0.0
        self.uncertainty: Uncertainty | None = None
        self._graph: Graph | None = None
        self._since = self._since_companions = 0
        self._told = self._told_uncertain = False

    def report(self) -> str:
        """What has been found so far, for people."""
        if not self._domains:
            return "not known: the potential's file holds no statistics of it"
        text = f"{self.outside} of {self.looks} structures looked at are outside (distance at most {self.largest:.2f})"
        if self.uncertainty is None:
            return text
        return f"{text}; forces uncertain by {self.uncertainty.spread:.2g} eV/Å (limit {self.uncertainty.limit:.2g})"

    def see(self, graph: Graph) -> None:
        """Look at the structure of a calculation, if it is time to.

        Args:
            graph: Another object than the last one if its neighbour list is new.

        Raises:
            OutsideTrainingData: With ``strict``, for a structure outside the training data.
        """
        self._since += 1
        self._since_companions += 1
        nothing_to_ask = not self._domains and self._companions is None
        if nothing_to_ask or (graph is self._graph and not self.strict):
            return
        new = self._graph is None or _another_system(self._graph, graph)
        if new:
            self._told = self._told_uncertain = False
        elif self._since < _INTERVAL and not self.strict:
            return
        self._graph, self._since = graph, 0
        if self._domains:
            self._look(graph, new)
        if self._companions is not None and (new or self._since_companions >= _COMPANIONS_INTERVAL):
            self._since_companions = 0
            self._ask(self._companions(graph), graph)

    def _look(self, graph: Graph, new: bool) -> None:
        found = _least_familiar(self._domains, graph)
        assert found is not None
        self.looks += 1
        self.largest = max(self.largest, found.distance)
        gas_phase = bool(graph["cell"].any()) and not any(domain.periodic for domain in self._domains)
        if new and gas_phase:
            logger.warning(
                "%s was trained on molecules in the gas phase only, and this structure is periodic", self.name
            )
        if found.reason is None:
            return
        self.outside += 1
        message = f"{self.name} does not know this structure: {found.reason}"
        if self.strict:
            raise OutsideTrainingData(message)
        if not self._told:
            self._told = True
            logger.warning("%s. Energies and forces may be wrong by any amount", message)

    def _ask(self, found: Uncertainty, graph: Graph) -> None:
        if self.uncertainty is None or found.spread > self.uncertainty.spread:
            self.uncertainty = found
        if found.spread <= found.limit:
            return
        symbol = chemical_symbols[int(graph["atomic_numbers"][found.atom])]
        message = (
            f"{self.name} is uncertain about this structure: the force on atom {found.atom} ({symbol}) by "
            f"{found.spread:.2g} eV/Å, and by less than {found.limit:.2g} eV/Å in what it knows"
        )
        if self.strict:
            raise OutsideTrainingData(message)
        if not self._told_uncertain:
            self._told_uncertain = True
            logger.warning("%s. Energies and forces may be wrong by far more than its card says", message)


def _another_system(old: Graph, new: Graph) -> bool:
    """Whether elements, or whether there is a cell, have changed."""
    same = torch.equal(old["atomic_numbers"], new["atomic_numbers"])
    return not same or bool(old["cell"].any()) != bool(new["cell"].any())
