"""Errors of a potential on labelled frames, predicted in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ponita_ff.data import Frame
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

__all__ = ["Errors", "Evaluation", "FormulaErrors", "evaluate", "frame_graph"]

#: With more chemical formulas than these, errors of each are no summary.
_MOST_FORMULAS = 100


def frame_graph(frame: Frame, cutoff: float | None) -> Graph:
    """Graph of a labelled frame, with its labels."""
    periodic = bool(frame.pbc.any())
    graph = build_graph(frame.numbers, frame.positions, cutoff, frame.cell if periodic else None, frame.pbc)
    graph.energy = torch.tensor([frame.energy], dtype=torch.float64)
    graph.forces = torch.from_numpy(np.array(frame.forces))
    if frame.stress is not None:
        graph.stress = torch.from_numpy(np.array(frame.stress))[None]
    return graph


@dataclass(frozen=True)
class FormulaErrors:
    """Errors of the frames with one chemical formula, eV and eV/Å."""

    frames: int
    energy_mae: float
    forces_mae: float


@dataclass(frozen=True)
class Errors:
    """Errors in eV, eV/Å and eV/Å³; ``stress_mae`` is None where there are no labels.

    ``by_formula`` has those of every chemical formula (Hill order) where there are several, up to a hundred.
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
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Predictions beside labels: energies (n,), forces (total atoms, 3), and the errors between them."""

    errors: Errors
    energy: NDArray[np.float64]
    energy_label: NDArray[np.float64]
    forces: NDArray[np.float64]
    forces_label: NDArray[np.float64]
    num_atoms: NDArray[np.int64]


def _batches(frames: Sequence[Frame], batch_size: int) -> Iterator[list[Frame]]:
    for start in range(0, len(frames), batch_size):
        yield [frames[i] for i in range(start, min(start + batch_size, len(frames)))]


def check_frame(potential: Potential, frame: Frame) -> None:
    """Refuse a frame with elements that the potential does not know.

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
        potential: Not changed.
        frames: At least one.
        batch_size: Frames per pass.
        progress: Called with the number of frames done so far.
        backend: See :class:`ponita_ff.backends.predictor.Predictor`.

    Raises:
        ValueError: For no frames, elements that the potential does not know, or a backend that does not exist.
    """
    if len(frames) == 0:
        raise ValueError("no frames to evaluate: the data set or its split is empty")
    predict = potential.predictor(backend)
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("e", "e0", "f", "f0", "s", "s0")}
    numbers: list[NDArray[np.int64]] = []
    done = 0
    for chunk in _batches(frames, batch_size):
        for frame in chunk:
            check_frame(potential, frame)
        graph = batch_graphs([frame_graph(frame, potential.cutoff) for frame in chunk]).to(potential.device)
        with_stress = all(frame.stress is not None for frame in chunk)
        energy, _, forces, *stress = predict(graph, with_stress)
        rows["e"].append(energy.cpu().numpy())
        rows["e0"].append(np.array([frame.energy for frame in chunk]))
        rows["f"].append(forces.cpu().numpy())
        rows["f0"].append(np.concatenate([frame.forces for frame in chunk]))
        if with_stress:
            rows["s"].append(stress[0].cpu().numpy())
            rows["s0"].append(np.stack([frame.stress for frame in chunk if frame.stress is not None]))
        numbers.extend(frame.numbers for frame in chunk)
        done += len(chunk)
        if progress is not None:
            progress(done)
    joined = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    counts = np.array([len(z) for z in numbers])
    return Evaluation(
        errors=_errors(joined, numbers, counts),
        energy=joined["e"],
        energy_label=joined["e0"],
        forces=joined["f"],
        forces_label=joined["f0"],
        num_atoms=counts,
    )


def _errors(
    values: dict[str, NDArray[np.float64]], structures: list[NDArray[np.int64]], counts: NDArray[np.int64]
) -> Errors:
    energy, forces = values["e"] - values["e0"], values["f"] - values["f0"]
    numbers = np.concatenate(structures)
    elements = sorted({int(z) for z in numbers})
    return Errors(
        frames=len(counts),
        energy_mae=float(np.abs(energy).mean()),
        energy_rmse=float(np.sqrt(np.square(energy).mean())),
        energy_mae_per_atom=float(np.abs(energy / counts).mean()),
        forces_mae=float(np.abs(forces).mean()),
        forces_rmse=float(np.sqrt(np.square(forces).mean())),
        forces_mae_by_element={chemical_symbols[z]: float(np.abs(forces[numbers == z]).mean()) for z in elements},
        stress_mae=float(np.abs(values["s"] - values["s0"]).mean()) if "s" in values else None,
        by_formula=_by_formula(energy, forces, structures, counts),
    )


def _by_formula(
    energy: NDArray[np.float64],
    forces: NDArray[np.float64],
    structures: list[NDArray[np.int64]],
    counts: NDArray[np.int64],
) -> dict[str, FormulaErrors]:
    names: dict[bytes, str] = {}
    for numbers in structures:
        key = np.sort(numbers).tobytes()
        if key not in names:
            names[key] = Atoms(numbers).get_chemical_formula()
    if not 1 < len(names) <= _MOST_FORMULAS:
        return {}
    of_frame = np.array([names[np.sort(numbers).tobytes()] for numbers in structures])
    of_atom = np.repeat(of_frame, counts)
    return {
        name: FormulaErrors(
            frames=int((of_frame == name).sum()),
            energy_mae=float(np.abs(energy[of_frame == name]).mean()),
            forces_mae=float(np.abs(forces[of_atom == name]).mean()),
        )
        for name in sorted(names.values())
    }
