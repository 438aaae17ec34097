"""What a potential was trained on, in a few kilobytes: tells whether it knows a structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.structure.graph import Graph
from ponita_ff.structure.symmetry_functions import radial_symmetry_functions

__all__ = ["Familiarity", "TrainingDomain"]

#: Å. The surroundings of an atom reach this far, or as far as the potential's cutoff.
_RADIUS = 5.0
#: Radial functions for each element; fewer where there are many elements.
_FUNCTIONS, _MAX_FEATURES = 8, 128
#: Typical environments of an element, at most; and training atoms for each of them, at least.
_ENVIRONMENTS, _ATOMS_EACH = 64, 50
#: Standard deviation of a feature that is added to those found, so that none is zero.
_NOISE = 0.02
#: Distances of atoms in one half of the frames from environments in the other, times this, are the limit.
_MARGIN = 1.5
#: Share of the shortest distance in training that two atoms may come within.
_CLOSEST_SHARE = 0.9
#: Atoms of each element that typical environments are made of.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Familiarity:
    """How well a potential's training data cover a structure.

    Attributes:
        distance: Of the atom that is farthest from the training data; 1 is the limit of what the potential knows.
        atom: Index of that atom.
        reason: Why the structure is outside, as a sentence; None where the distance is at most 1.
    """

    distance: float
    atom: int
    reason: str | None


@dataclass(frozen=True)
class TrainingDomain:
    """Statistics of the atoms' surroundings in a potential's training frames, by element.

    The surroundings of an atom are its radial symmetry functions. The frames give the typical environments of each
    element (the means of k clusters) and one covariance matrix for the scatter about them; the distance of an atom is
    Mahalanobis' to the nearest environment of its element. The limit of an element is 1.5 times the largest distance
    when environments come from one half of the frames and atoms from the other. Besides, no pair of atoms may come
    nearer to each other than nine tenths of the shortest distance of its elements in training.

    Attributes:
        species: Atomic numbers, ascending, S of them.
        radius: How far the surroundings reach, Å.
        periodic: Whether any frame was periodic.
        frames: Number of frames that the statistics are of.
        closest: Shortest distance of each pair of elements, infinite where none comes within the radius, (S, S), Å.
        neighbours: Smallest and largest number of neighbours within the radius, (S, 2); 0 and −1 without atoms.
        limits: Limit of the distance, (S,): 0 for elements without atoms, infinite for those that a single frame holds.
        whitening: The inverse of the Cholesky factor of the covariance, (S, d, d) for d features.
        environments: Typical environments of all elements after whitening, (k, d).
        environment_species: Index of the element of each of them, (k,).
    """

    species: tuple[int, ...]
    radius: float
    periodic: bool
    frames: int
    closest: Tensor
    neighbours: Tensor
    limits: Tensor
    whitening: Tensor
    environments: Tensor
    environment_species: Tensor

    @classmethod
    def from_graphs(cls, graphs: Iterable[Graph], species: Sequence[int], cutoff: float | None) -> TrainingDomain:
        """The domain of some structures; the same for the same structures.

        Args:
            graphs: Batches of labelled structures, on the CPU, with all edges up to the cutoff.
            species: Atomic numbers, ascending; no others occur.
            cutoff: Of the potential, Å; None where all pairs interact.

        Raises:
            ValueError: Without structures.
        """
        radius = min(_RADIUS, math.inf if cutoff is None else cutoff)
        closest = torch.full((len(species),) * 2, math.inf, dtype=torch.float64)
        features, numbers, owners, counts = [], [], [], []
        frames, periodic = 0, False
        for graph in graphs:
            around = _Surroundings.of(graph, species, radius)
            features.append(around.features().float())
            numbers.append(around.species)
            owners.append(graph["batch"] + frames)
            counts.append(around.counts())
            closest = torch.minimum(closest, around.closest())
            frames += len(graph["cell"])
            periodic |= bool(graph["cell"].any())
        if not frames:
            raise ValueError("the domain of no frames")
        atoms = _Atoms(torch.cat(features), torch.cat(numbers), torch.cat(owners))
        count = torch.cat(counts)
        of_element = [count[atoms.species == s] for s in range(len(species))]
        neighbours = torch.tensor([[int(c.min()), int(c.max())] if len(c) else [0, -1] for c in of_element])
        limits = _limits(atoms, len(species), frames)
        whitening, environments, owner = _environments(atoms, len(species))
        parts = (closest, neighbours, limits, whitening, environments, owner)
        return cls(tuple(species), radius, periodic, frames, *parts)

    def familiarity(self, graph: Graph) -> Familiarity:
        """How well the training data cover one structure, or the least familiar one of a batch.

        Args:
            graph: With all edges up to the potential's cutoff; all its elements known.
        """
        around = _Surroundings.of(graph, self.species, self.radius)
        distances, pairs = self._distances(around), self._pair_ratios(around)
        atom = int(torch.maximum(distances, pairs).argmax())
        distance, pair = float(distances[atom]), float(pairs[atom])
        if max(distance, pair) <= 1:
            return Familiarity(max(distance, pair), atom, None)
        reason = self._pair_reason(around, atom) if pair > 1 else self._atom_reason(around, atom, distance)
        return Familiarity(max(distance, pair), atom, reason)

    def distances(self, graph: Graph) -> NDArray[np.float64]:
        """Distance of the farthest atom of each structure of a batch, shape (B,); 1 is the limit."""
        around = _Surroundings.of(graph, self.species, self.radius)
        atoms = torch.maximum(self._distances(around), self._pair_ratios(around))
        found = torch.zeros(len(graph["cell"]), dtype=atoms.dtype)
        return found.scatter_reduce(0, graph["batch"].cpu(), atoms, "amax").numpy()

    def _distances(self, around: _Surroundings) -> Tensor:
        """Distance of each atom's surroundings in units of the limit, shape (N,)."""
        features = around.features()
        found = torch.empty(len(features), dtype=features.dtype)
        for s, (whitening, environments, limit) in enumerate(self._elements):
            rows = (around.species == s).nonzero().squeeze(1)
            if not len(rows):
                continue
            known = limit > 0
            found[rows] = _nearest(features[rows], whitening, environments) / limit if known else math.inf
        return found

    def _pair_ratios(self, around: _Surroundings) -> Tensor:
        """How much nearer each atom's closest pair is than it may be, shape (N,); above 1 is too near."""
        shortest = _CLOSEST_SHARE * self._closest[around.species.unsqueeze(1), around.neighbour_species]
        return torch.where(around.distances < self.radius, shortest / around.distances, 0.0).amax(1)

    @cached_property
    def _closest(self) -> Tensor:
        return self.closest.double()

    @cached_property
    def _elements(self) -> list[tuple[Tensor, Tensor, float]]:
        """Whitening, environments and limit of each element, in double precision."""
        owner = self.environment_species
        return [
            (self.whitening[s].double(), self.environments[owner == s].double(), float(self.limits[s]))
            for s in range(len(self.species))
        ]

    def _pair_reason(self, around: _Surroundings, atom: int) -> str:
        distances, species = around.distances[atom], around.neighbour_species[atom]
        shortest = self._closest[around.species[atom], species]
        slot = int(torch.where(distances < self.radius, shortest / distances, 0.0).argmax())
        first = chemical_symbols[self.species[int(around.species[atom])]]
        second = chemical_symbols[self.species[int(species[slot])]]
        other = int(around.neighbours[atom, slot])
        place = f"atoms {atom} ({first}) and {other} ({second}) are {float(distances[slot]):.2f} Å apart"
        if math.isinf(float(shortest[slot])):
            return f"{place}, and in the training data no {first} and {second} come within {self.radius:g} Å"
        return f"{place}, where the shortest {first}–{second} distance in the training data is {shortest[slot]:.2f} Å"

    def _atom_reason(self, around: _Surroundings, atom: int, distance: float) -> str:
        species = int(around.species[atom])
        symbol = chemical_symbols[self.species[species]]
        low, high = self.neighbours[species].tolist()
        if high < 0:
            return f"atom {atom} is {symbol}, and the training data hold no {symbol}"
        text = f"the surroundings of atom {atom} ({symbol}) are unlike those of any {symbol} in the training data"
        count = int(around.counts()[atom])
        if not low <= count <= high:
            there = f"{low}" if low == high else f"{low} to {high}"
            text += f": it has {count} neighbours within {self.radius:g} Å, and there it has {there}"
        return f"{text} (distance {distance:.3g}, limit 1)"

    def tensors(self) -> dict[str, Tensor]:
        """For a file: matrices in float32."""
        return {name: _stored(getattr(self, name)) for name in _TENSORS}

    def facts(self) -> dict[str, Any]:
        """For a file: what is not a tensor, JSON-able."""
        return {"radius": self.radius, "periodic": self.periodic, "frames": self.frames}

    @classmethod
    def from_parts(
        cls, species: Sequence[int], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> TrainingDomain:
        """The domain that :meth:`tensors` and :meth:`facts` are of.

        Raises:
            ValueError: For parts that do not fit together.
        """
        radius, periodic, frames = (facts[name] for name in ("radius", "periodic", "frames"))
        if type(radius) not in (int, float) or not 0 < radius <= _RADIUS or type(periodic) is not bool:
            raise ValueError(f"statistics of the training data with radius {radius!r} and periodic {periodic!r}")
        if type(frames) is not int or frames < 1:
            raise ValueError(f"statistics of {frames!r} training frames")
        number = len(species)
        features = number * _functions(number)
        environments = len(tensors["environments"])
        shapes: dict[str, tuple[int, ...]] = {
            "closest": (number, number),
            "neighbours": (number, 2),
            "limits": (number,),
        }
        shapes |= {"whitening": (number, features, features), "environments": (environments, features)}
        shapes |= {"environment_species": (environments,)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(
                    f"{name} of the training data has shape {tuple(tensors[name].shape)}, expected {shape}"
                )
        return cls(tuple(species), float(radius), periodic, frames, *(tensors[name] for name in _TENSORS))


_TENSORS = ("closest", "neighbours", "limits", "whitening", "environments", "environment_species")


def _stored(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor.to(torch.int32)


def _functions(species: int) -> int:
    """Radial functions for each of so many elements."""
    return max(2, min(_FUNCTIONS, _MAX_FEATURES // species))


@dataclass(frozen=True)
class _Surroundings:
    """The slots of a graph, on the CPU.

    Attributes:
        distances: Å, shape (N, M).
        species: Index of each atom's element, shape (N,).
        neighbours, neighbour_species: Of each slot, shape (N, M).
        number: Of elements.
        radius: Å.
    """

    distances: Tensor
    species: Tensor
    neighbours: Tensor
    neighbour_species: Tensor
    number: int
    radius: float

    @classmethod
    def of(cls, graph: Graph, elements: Sequence[int], radius: float) -> _Surroundings:
        positions, neighbours, offsets, numbers = (
            graph[name].cpu() for name in ("positions", "neighbours", "offsets", "atomic_numbers")
        )
        distances = torch.linalg.vector_norm(positions[neighbours] - positions.unsqueeze(1) + offsets, dim=-1)
        species = torch.searchsorted(torch.tensor(list(elements), dtype=numbers.dtype), numbers)
        return cls(distances, species, neighbours, species[neighbours], len(elements), radius)

    def features(self) -> Tensor:
        """Symmetry functions, shape (N, d)."""
        functions = _functions(self.number)
        return radial_symmetry_functions(self.distances, self.neighbour_species, self.number, self.radius, functions)

    def counts(self) -> Tensor:
        """Neighbours within the radius, shape (N,)."""
        return (self.distances < self.radius).sum(1)

    def closest(self) -> Tensor:
        """Shortest distance within the radius of each pair of elements, shape (S, S), Å."""
        pair = self.species.unsqueeze(1) * self.number + self.neighbour_species
        distances = torch.where(self.distances < self.radius, self.distances, math.inf)
        found = torch.full((self.number**2,), math.inf, dtype=distances.dtype)
        return found.scatter_reduce(0, pair.flatten(), distances.flatten(), "amin").reshape(self.number, self.number)


@dataclass(frozen=True)
class _Atoms:
    """Atoms of all frames: features (N, d), index of the element (N,), number of the frame (N,)."""

    features: Tensor
    species: Tensor
    frames: Tensor

    def where(self, rows: Tensor) -> _Atoms:
        return _Atoms(self.features[rows], self.species[rows], self.frames[rows])


def _environments(atoms: _Atoms, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whitening (S, d, d), environments (k, d) and their elements (k,), all of the atoms given."""
    whitening, environments, owners = [], [], []
    for s in range(number):
        features = atoms.features[atoms.species == s].double()
        matrix, means = _clusters(features)
        whitening.append(matrix)
        environments.append(means @ matrix.T)
        owners.append(torch.full((len(means),), s))
    return torch.stack(whitening), torch.cat(environments), torch.cat(owners)


def _clusters(features: Tensor) -> tuple[Tensor, Tensor]:
    """Whitening matrix (d, d) of the scatter within clusters, and their means (k, d); no means without atoms."""
    from scipy.cluster.vq import kmeans2  # here: calculators do not need it, and it takes long to import

    size = features.shape[1]
    if not len(features):
        return torch.eye(size, dtype=torch.float64), features
    generator = np.random.default_rng(0)
    if len(features) > _SAMPLE:
        features = features[torch.from_numpy(generator.choice(len(features), _SAMPLE, replace=False))]
    number = min(_ENVIRONMENTS, max(1, len(features) // _ATOMS_EACH))
    # Empty clusters occur where environments are the same; they are left out.
    labels = kmeans2(features.numpy(), number, minit="++", seed=generator, missing="warn")[1] if number > 1 else None
    cluster = torch.zeros(len(features), dtype=torch.int64) if labels is None else torch.from_numpy(labels).long()
    kept, cluster = cluster.unique(return_inverse=True)
    counts = torch.bincount(cluster).unsqueeze(1)
    means = torch.zeros(len(kept), size, dtype=torch.float64).index_add(0, cluster, features) / counts
    scatter = features - means[cluster]
    covariance = scatter.T @ scatter / len(features) + _NOISE**2 * torch.eye(size, dtype=torch.float64)
    return torch.linalg.inv(torch.linalg.cholesky(covariance)), means


def _nearest(features: Tensor, whitening: Tensor, environments: Tensor) -> Tensor:
    """Distance of each row of features to the nearest environment, shape (rows,)."""
    return torch.cdist(features @ whitening.T, environments, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def _limits(atoms: _Atoms, number: int, frames: int) -> Tensor:
    """Largest distance of each element between halves of the frames, times the margin, shape (S,)."""
    limits = torch.zeros(number, dtype=torch.float64)
    half = torch.from_numpy(np.random.default_rng(1).permutation(frames) % 2)[atoms.frames]
    for side in (0, 1):
        known, new = atoms.where(half != side), atoms.where(half == side)
        whitening, environments, owner = _environments(known, number)
        for s in range(number):
            rows = new.features[new.species == s].double()
            if len(rows) and bool((owner == s).any()):
                limits[s] = max(float(limits[s]), float(_nearest(rows, whitening[s], environments[owner == s]).max()))
    # An element of one half only, as with a single frame, has no limit that could be known.
    present = torch.bincount(atoms.species, minlength=number) > 0
    return torch.where(present & (limits == 0), math.inf, _MARGIN * limits)
