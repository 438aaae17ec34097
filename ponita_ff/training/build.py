"""From settings and frames to a fresh potential: species, scale, reference energies, neighbour count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from torch import nn

from ponita_ff.data import DataError, Frame, read_isolated_atoms
from ponita_ff.energy.references import fit_reference_energies
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.neighbours import neighbour_list
from ponita_ff.training.config import ConfigError, PotentialConfig, TrainConfig

__all__ = ["build_potential"]

logger = logging.getLogger(__name__)

#: Statistics need no more frames than this, however many there are; the difference to a start's energies fewer.
_STATISTICS_FRAMES, _REFERENCE_FRAMES = 5_000, 200

#: Elements of each row of the periodic table.
_PERIODS = (2, 8, 8, 18, 18, 32, 32)


def build_potential(config: TrainConfig, frames: Sequence[Frame]) -> Potential:
    """A potential scaled to its training set, with random weights or those of the potential that it starts from.

    Torch's own random state is left alone.

    Raises:
        ConfigError, DataError: For reference energies, species or a start that do not fit the data.
    """
    step = max(1, len(frames) // _STATISTICS_FRAMES)
    sample = [frames[i] for i in range(0, len(frames), step)]
    present = {int(z) for frame in sample for z in np.unique(frame.numbers)}
    species = sorted(present | {_number(symbol) for symbol in config.potential.extra_species})
    if config.potential.start is not None:
        if config.data.replay:
            species = sorted({*species, *read_header(config.potential.start)["species"]})
        return _started(config, config.potential.start, species, sample)
    references, origin = _reference_energies(config.potential, species, sample)
    scale = float(np.sqrt(np.mean(np.concatenate([np.square(frame.forces).ravel() for frame in sample]))))
    if scale == 0.0:
        raise DataError("all training forces are zero: the labels are missing or wrong")
    model = config.model
    if model.avg_num_neighbours is None:
        model = model.model_copy(update={"avg_num_neighbours": _average_neighbours(sample, model.cutoff)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = Ponita(model, len(species))
    metadata: dict[str, Any] = {"name": config.name, "reference_energies_from": origin}
    potential = Potential(network, species, references, scale, config.potential.zbl_cutoff, metadata)
    return potential.to(getattr(torch, config.dtype))


def _started(config: TrainConfig, path: Path, species: list[int], sample: Sequence[Frame]) -> Potential:
    """The potential of a file for these species alone, to train on: at the level of theory of the frames."""
    base = load_potential(path)
    network = base.network
    if not isinstance(network, Ponita):
        raise ConfigError(f"potential.start: {path} holds a network of the published form, which is not trained here")
    model, given = network.config.model_dump(), config.model.model_dump()
    # The number of neighbours scales random first weights and nothing else; kernels are continuous and run on any grid.
    free = {"avg_num_neighbours"} | ({"num_ori"} if given["num_ori"] and model["num_ori"] else set())
    wrong = [name for name in given if given[name] != model[name] and name not in free]
    if wrong:
        told = ", ".join(f"model.{name}: {model[name]}" for name in wrong)
        raise ConfigError(f"potential.start: {path} is another network than model describes; give {told}")
    if base.zbl_cutoff != config.potential.zbl_cutoff:
        raise ConfigError(f"potential.start: {path} has potential.zbl_cutoff: {base.zbl_cutoff}; give the same")
    before = network.config.num_ori
    network.set_grid(config.model.num_ori)
    network.config = network.config.model_copy(update={"num_ori": config.model.num_ori})
    places = [base.species.index(z) for z in (_nearest_element(z, base.species) for z in species)]
    network.embedding = nn.Embedding.from_pretrained(network.embedding.weight.detach()[places], freeze=False)
    known = dict(zip(base.species, base.reference_energies.tolist(), strict=True))
    metadata: dict[str, Any] = {
        "name": config.name,
        "started_from": {
            "name": base.metadata.get("name"),
            "file": path.name,
            "weights_sha256": read_header(path)["weights_sha256"],
            "num_ori": before,
            "training": base.metadata.get("training"),
            "errors": base.metadata.get("errors"),
            "started_from": base.metadata.get("started_from"),
        },
    }
    references = {z: known.get(z, 0.0) for z in species}
    potential = Potential(network, species, references, base.scale, base.zbl_cutoff, metadata)
    new = [z for z in species if z not in base.species]
    for z in new:
        like = chemical_symbols[_nearest_element(z, base.species)]
        logger.info("%s is new to %s and begins as %s", chemical_symbols[z], path.name, like)
    name, kept = base.metadata.get("name"), base.metadata.get("reference_energies_from")
    origin = _shift_references(potential, config.potential, sample, new, name or path.name)
    if config.potential.reference_energies == "keep" and not new and kept is not None:
        origin = kept if name == config.name else f"{name or path.name}: {kept}"
    potential.metadata["reference_energies_from"] = origin
    logger.info("reference energies: %s", origin)
    return potential.to(getattr(torch, config.dtype)).train().requires_grad_(True)


def _shift_references(
    potential: Potential, config: PotentialConfig, sample: Sequence[Frame], new: list[int], start: str
) -> str:
    """Bring a start's reference energies to the level of the frames, in place; returns where they are from."""
    given, species = config.reference_energies, potential.species
    if isinstance(given, dict | Path):
        present = sorted({int(z) for frame in sample for z in frame.numbers})
        energies, origin = _given_energies(config, present)
        old = potential.reference_energies.tolist()
        change = torch.tensor([energies.get(z, e) - e for z, e in zip(species, old, strict=True)], dtype=torch.float64)
    else:
        few = sample[:: max(1, len(sample) // _REFERENCE_FRAMES)]
        fitted = [z for z in species if z in new] if given == "keep" else list(species)
        origin = f"{start}: " + ("as they are" if given == "keep" else f"changed to fit {len(few)} training frames")
        if given == "keep" and new:
            origin += f", those of {', '.join(chemical_symbols[z] for z in new)} fitted to {len(few)} training frames"
        found = potential.evaluate([frame.to_atoms() for frame in few], forces=False).energies
        counts = np.array([[np.count_nonzero(frame.numbers == z) for z in fitted] for frame in few], dtype=np.float64)
        missing = np.array([frame.energy for frame in few]) - found
        changes = fit_reference_energies(fitted, counts.reshape(len(few), -1), missing) if fitted else {}
        change = torch.tensor([changes.get(z, 0.0) for z in species], dtype=torch.float64)
    with torch.no_grad():
        potential.reference_energies.add_(change.to(potential.reference_energies))
    return origin


def _nearest_element(z: int, known: Sequence[int]) -> int:
    """The known element that is nearest in the periodic table, itself if it is known: first by column, then by row."""
    column, row = _place_in_table(z)

    def distance(other: int) -> tuple[int, int, int]:
        its_column, its_row = _place_in_table(other)
        return abs(its_column - column), abs(its_row - row), abs(other - z)

    return min(known, key=distance)


def _place_in_table(z: int) -> tuple[int, int]:
    """Column (1 to 18, lanthanides and actinides in 3) and row."""
    row, first = 1, 1
    while z >= first + (length := _PERIODS[row - 1]):
        row, first = row + 1, first + length
    place = z - first + 1
    if length == 18:
        return place, row
    if length < 18:
        return (place if place <= (1 if length == 2 else 2) else place + 18 - length), row
    return (place if place <= 2 else max(3, place - 14)), row


def _number(symbol: str) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise ConfigError(f"{symbol!r} is not a chemical symbol")
    return int(atomic_numbers[symbol])


def _average_neighbours(frames: Sequence[Frame], cutoff: float) -> float:
    some = frames[:: max(1, len(frames) // 100)]
    counts = [len(neighbour_list(f.positions, cutoff, f.cell, f.pbc).receivers) / len(f) for f in some]
    return max(1.0, float(np.mean(counts)))


def _reference_energies(
    config: PotentialConfig, species: list[int], frames: Sequence[Frame]
) -> tuple[dict[int, float], str]:
    """Energies in eV by atomic number, and a sentence that says where they came from."""
    if config.reference_energies == "least-squares":
        counts = np.array([[np.count_nonzero(f.numbers == z) for z in species] for f in frames], dtype=np.float64)
        energies: NDArray[np.float64] = np.array([f.energy for f in frames])
        fitted = fit_reference_energies(species, counts, energies)
        return fitted, f"least squares over {len(frames)} training frames"
    return _given_energies(config, species)


def _given_energies(config: PotentialConfig, needed: list[int]) -> tuple[dict[int, float], str]:
    """The energies that the settings give, of these elements at least, and where they came from."""
    given = config.reference_energies
    if isinstance(given, Path):
        energies = read_isolated_atoms(given)
        origin = f"isolated atoms in {given.name}"
    else:
        energies = {_number(symbol): float(value) for symbol, value in dict(given).items()}  # type: ignore[arg-type]
        origin = "given in the settings"
    missing = [z for z in needed if z not in energies]
    if missing:
        raise ConfigError(f"potential.reference_energies has no energy for atomic numbers {missing} ({origin})")
    return energies, origin
