"""A potential: an energy model with what a user asks of it, predictions for graphs and for many structures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from ponita_ff.backends.predictor import Predictor
from ponita_ff.energy.derivatives import predict
from ponita_ff.energy.model import EnergyModel
from ponita_ff.network.base import Network
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.many import Predictions, predict_many
from ponita_ff.structure.graph import Graph

__all__ = ["Potential", "Prediction", "Predictions"]


@dataclass(frozen=True)
class Prediction:
    """Energies in eV (float64), forces in eV/Å, stress in eV/Å³ with ASE's sign.

    Attributes:
        energy: Total energy of each structure, shape (B,).
        energies: Atomic energies, shape (N,), float64; they sum to ``energy``.
        forces: −dE/dx, shape (N, 3), or None when not asked for.
        stress: dE/dε / volume, shape (B, 3, 3), symmetric, or None when not asked for.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None


class Potential(EnergyModel):
    """An energy model (:class:`ponita_ff.energy.model.EnergyModel`) with its history and its predictions.

    Args:
        network, species, reference_energies, scale, zbl_cutoff: See :class:`ponita_ff.energy.model.EnergyModel`.
        metadata: JSON-able facts that travel in the file: units, training data, errors, where references came from.

    Attributes:
        file: Where it was read from; code compiled ahead of time lies beside it. None for one made in memory.
        domain: Statistics of its training data; None where they are not known.
    """

    def __init__(
        self,
        network: Network,
        species: Sequence[int],
        reference_energies: Mapping[int, float],
        scale: float = 1.0,
        zbl_cutoff: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(network, species, reference_energies, scale, zbl_cutoff)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.file: Path | None = None
        self.domain: TrainingDomain | None = None
        self._predictor: tuple[Any, Predictor, Any] | None = None

    def predictor(self, backend: str = "auto") -> Predictor:
        """Predictions of this potential as it is now, by the chosen backend (see :class:`Predictor`).

        Made once for the same weights, grid and rotations: native kernels take up to a second to set up.

        Raises:
            ValueError: For a backend that does not exist.
        """
        state = [*self.parameters(), *self.buffers()]
        key = (backend, self.scale, self.device, self.dtype, *((id(t), t._version) for t in state))
        if self._predictor is None or self._predictor[0] != key:
            # The tensors go with the key: an address may come again, a living tensor's cannot.
            self._predictor = (key, Predictor(self, backend, self.file), state)
        return self._predictor[1]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the predictor, which is this object's own."""
        return {**self.__dict__, "_predictor": None}

    def clone(self) -> Potential:
        """An independent copy, in eval mode, without gradients of weights."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def evaluate(
        self,
        structures: Sequence[Atoms],
        forces: bool = True,
        stress: bool = False,
        max_atoms: int | None = None,
        backend: str = "auto",
    ) -> Predictions:
        """Predict many structures, many in one pass: replicas, frames of a trajectory, candidates.

        Args:
            structures: Molecules and crystals of any sizes, mixed as they come.
            forces: Whether forces are wanted.
            stress: Whether stress is wanted; every structure must then be periodic in all directions.
            max_atoms: Atoms in one pass (a larger structure passes alone); bounds the memory. None: what suits the
                backend.
            backend: See :class:`ponita_ff.backends.predictor.Predictor`.

        Raises:
            ValueError: For a structure that cannot be calculated; the message begins with its number in the sequence.
            TypeError: For a single structure instead of a sequence.
        """
        return predict_many(self, self.predictor(backend), structures, forces, stress, max_atoms)

    def forward(self, graph: Graph, forces: bool = True, stress: bool = False) -> Prediction:
        """Predict, detached from autograd.

        Args:
            graph: One structure or a batch, on the potential's device; all its elements known.
            forces: Whether forces are wanted.
            stress: Whether stress is wanted; every structure then needs a cell with a volume.
        """
        with torch.set_grad_enabled(forces or stress):
            energy, energies, *rest = predict(self, graph, forces, stress)
        return Prediction(energy, energies, rest.pop(0) if forces else None, rest.pop(0) if stress else None)
