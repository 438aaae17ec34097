"""Errors of a potential on labelled frames, predicted in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ponita_ff.data import Frame
from ponita_ff.energy.references import fit_reference_energies
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

__all__ = ["Errors", "Evaluation", "FormulaErrors", "check_frame", "evaluate", "frame_graph", "trained_on"]

#: Errors by chemical formula are reported for at most this many formulas; for more they would be no summary.
_MAX_FORMULAS = 100

#: Mean error of the energy per atom from which labels are of another level of theory, eV.
OTHER_LEVEL = 1.0

#: Arrays that are collected from all batches.
_QUANTITIES = ("energy", "energy_label", "forces", "forces_label", "stress", "stress_label")


def frame_graph(frame: Frame, cutoff: float | None) -> Graph:
    """Graph of a frame with its labels.

    Args:
        frame: A labelled frame.
        cutoff: Cutoff of the neighbour list in Å; None for a complete graph.

    Returns:
        A graph with ``energy`` (1,) in eV, ``forces`` (N, 3) in eV/Å and, if labelled, ``stress`` (1, 3, 3) in eV/Å³.
    """
    periodic = bool(frame.pbc.any())
    graph = build_graph(frame.numbers, frame.positions, cutoff, frame.cell if periodic else None, frame.pbc)
    graph.energy = torch.tensor([frame.energy], dtype=torch.float64)
    graph.forces = torch.from_numpy(np.array(frame.forces))
    if frame.stress is not None:
        graph.stress = torch.from_numpy(np.array(frame.stress))[None]
    return graph


@dataclass(frozen=True)
class FormulaErrors:
    """Errors of the frames with one chemical formula.

    Attributes:
        frames: Number of frames.
        energy_mae: Mean absolute error of energies, eV.
        forces_mae: Mean absolute error of force components, eV/Å.
    """

    frames: int
    energy_mae: float
    forces_mae: float


@dataclass(frozen=True)
class Errors:
    """Errors of a potential on labelled frames.

    Attributes:
        frames: Number of frames.
        energy_mae: Mean absolute error of energies, eV.
        energy_rmse: Root mean square error of energies, eV.
        energy_mae_per_atom: Mean absolute error of energies per atom, eV.
        forces_mae: Mean absolute error of force components, eV/Å.
        forces_rmse: Root mean square error of force components, eV/Å.
        forces_mae_by_element: ``forces_mae`` by chemical symbol.
        stress_mae: Mean absolute error of stress components, eV/Å³; None without stress labels.
        by_formula: Errors by chemical formula (Hill order) if there are between 2 and 100 formulas, else empty.
    """

    frames: int
    energy_mae: float
    energy_rmse: float
    energy_mae_per_atom: float
    forces_mae: float
    forces_rmse: float
    forces_mae_by_element: dict[str, float]
    stress_mae: float | None = None
    by_formula: dict[str, FormulaErrors] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The errors as a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Predictions and labels of n frames with N atoms in total.

    Attributes:
        errors: Errors of the predictions.
        energy: Predicted energies, shape (n,), eV.
        energy_label: Labels of the energies, same shape.
        forces: Predicted forces, shape (N, 3), eV/Å.
        forces_label: Labels of the forces, same shape.
        num_atoms: Atoms of each frame, shape (n,).
        shifted: Errors after the energy of each element is shifted by what suits the labels best; given where energies
            are off by more than 1 eV/atom, as they are at another level of theory.
    """

    errors: Errors
    energy: NDArray[np.float64]
    energy_label: NDArray[np.float64]
    forces: NDArray[np.float64]
    forces_label: NDArray[np.float64]
    num_atoms: NDArray[np.int64]
    shifted: Errors | None = None


def _batches(frames: Sequence[Frame], batch_size: int) -> Iterator[list[Frame]]:
    for start in range(0, len(frames), batch_size):
        yield [frames[i] for i in range(start, min(start + batch_size, len(frames)))]


def trained_on(metadata: Mapping[str, Any], sha256: str) -> bool:
    """Whether a potential's metadata say that it was trained on frames of the file with this hash."""
    data = metadata.get("data")
    if not isinstance(data, dict):
        return False
    known = {data.get(f"{name}sha256") for name in ("", "extra_train_", "further_", "replay_")}
    for name in ("", "extra_train_", "replay_"):
        known |= set(data.get(f"{name}files_sha256") or ())
    return sha256 in known


def check_frame(potential: Potential, frame: Frame) -> None:
    """Check that the potential knows all elements of a frame.

    Raises:
        ValueError: Naming the frame, its first such atom and the known elements.
    """
    try:
        potential.check_species(frame.numbers)
    except ValueError as error:
        raise ValueError(f"{frame.source}: {error}") from None


def evaluate(
    potential: Potential,
    frames: Sequence[Frame],
    batch_size: int = 10,
    progress: Callable[[int], None] | None = None,
    backend: str = "eager",
) -> Evaluation:
    """Predict every frame and compare with its labels.

    Args:
        potential: The potential; it is not changed.
        frames: Labelled frames, at least one.
        batch_size: Frames in a batch.
        progress: Called with the number of frames done so far.
        backend: See :class:`ponita_ff.backends.predictor.Predictor`.

    Raises:
        ValueError: Without frames, for elements that the potential does not know, or for an unknown backend.
    """
    if len(frames) == 0:
        raise ValueError("no frames to evaluate: the data set or its split is empty")
    predict = potential.predictor(backend)
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _QUANTITIES}
    structures: list[NDArray[np.int64]] = []
    done = 0
    for batch in _batches(frames, batch_size):
        for frame in batch:
            check_frame(potential, frame)
        graph = batch_graphs([frame_graph(frame, potential.cutoff) for frame in batch]).to(potential.device)
        with_stress = all(frame.stress is not None for frame in batch)
        energy, _, forces, *stress = predict(graph, with_stress)
        rows["energy"].append(energy.cpu().numpy())
        rows["energy_label"].append(np.array([frame.energy for frame in batch]))
        rows["forces"].append(forces.cpu().numpy())
        rows["forces_label"].append(np.concatenate([frame.forces for frame in batch]))
        if with_stress:
            rows["stress"].append(stress[0].cpu().numpy())
            rows["stress_label"].append(np.stack([frame.stress for frame in batch if frame.stress is not None]))
        structures.extend(frame.numbers for frame in batch)
        done += len(batch)
        if progress is not None:
            progress(done)
    values = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    num_atoms = np.array([len(numbers) for numbers in structures])
    errors = _errors(values, structures, num_atoms)
    other_level = errors.energy_mae_per_atom > OTHER_LEVEL
    return Evaluation(
        shifted=_errors(_with_best_shifts(values, structures), structures, num_atoms) if other_level else None,
        errors=errors,
        energy=values["energy"],
        energy_label=values["energy_label"],
        forces=values["forces"],
        forces_label=values["forces_label"],
        num_atoms=num_atoms,
    )


def _with_best_shifts(
    values: dict[str, NDArray[np.float64]], structures: list[NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """The same with predicted energies shifted, element by element, to fit the labels."""
    elements = sorted({int(z) for numbers in structures for z in numbers})
    counts = np.array([[np.count_nonzero(numbers == z) for z in elements] for numbers in structures], dtype=np.float64)
    shifts = fit_reference_energies(elements, counts, values["energy_label"] - values["energy"])
    return {**values, "energy": values["energy"] + counts @ np.array([shifts[z] for z in elements])}


def _errors(
    values: dict[str, NDArray[np.float64]], structures: list[NDArray[np.int64]], num_atoms: NDArray[np.int64]
) -> Errors:
    energy, forces = values["energy"] - values["energy_label"], values["forces"] - values["forces_label"]
    numbers = np.concatenate(structures)
    elements = sorted({int(z) for z in numbers})
    stress_mae = float(np.abs(values["stress"] - values["stress_label"]).mean()) if "stress" in values else None
    return Errors(
        frames=len(num_atoms),
        energy_mae=float(np.abs(energy).mean()),
        energy_rmse=float(np.sqrt(np.square(energy).mean())),
        energy_mae_per_atom=float(np.abs(energy / num_atoms).mean()),
        forces_mae=float(np.abs(forces).mean()),
        forces_rmse=float(np.sqrt(np.square(forces).mean())),
        forces_mae_by_element={chemical_symbols[z]: float(np.abs(forces[numbers == z]).mean()) for z in elements},
        stress_mae=stress_mae,
        by_formula=_errors_by_formula(energy, forces, structures, num_atoms),
    )


def _errors_by_formula(
    energy: NDArray[np.float64],
    forces: NDArray[np.float64],
    structures: list[NDArray[np.int64]],
    num_atoms: NDArray[np.int64],
) -> dict[str, FormulaErrors]:
    """Errors by chemical formula; empty for a single one or for too many."""
    names: dict[bytes, str] = {}
    for numbers in structures:
        key = np.sort(numbers).tobytes()
        if key not in names:
            names[key] = Atoms(numbers).get_chemical_formula()
    if not 1 < len(names) <= _MAX_FORMULAS:
        return {}
    frame_formulas = np.array([names[np.sort(numbers).tobytes()] for numbers in structures])
    atom_formulas = np.repeat(frame_formulas, num_atoms)
    return {
        name: FormulaErrors(
            frames=int((frame_formulas == name).sum()),
            energy_mae=float(np.abs(energy[frame_formulas == name]).mean()),
            forces_mae=float(np.abs(forces[atom_formulas == name]).mean()),
        )
        for name in sorted(names.values())
    }
