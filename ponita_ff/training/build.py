"""Builds the potential of a run from settings and frames: species, scale, reference energies, initial weights."""

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
from ponita_ff.network.config import GridConfig
from ponita_ff.network.form import Form
from ponita_ff.network.forms import make_network
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.neighbours import neighbour_list
from ponita_ff.training.config import ConfigError, PotentialConfig, TrainConfig

__all__ = ["build_potential"]

logger = logging.getLogger(__name__)

#: Frames for the statistics of the training set, and frames that a start's reference energies are fitted to.
_STATISTICS_FRAMES, _REFERENCE_FRAMES = 5_000, 200

#: Frames that the average number of neighbours is taken over.
_NEIGHBOUR_FRAMES = 100

#: Number of elements in each period of the periodic table.
_PERIOD_LENGTHS = (2, 8, 8, 18, 18, 32, 32)


def build_potential(config: TrainConfig, frames: Sequence[Frame], log: bool = True) -> Potential:
    """The potential that a run trains, with random weights or those of the potential that it starts from.

    Its scale and reference energies are fitted to the frames. Torch's global random state does not change.

    Args:
        config: All settings.
        frames: Training frames.
        log: Whether to log where reference energies and embeddings are from.

    Raises:
        ConfigError: For reference energies, species or a start that do not fit the data or the settings.
        DataError: If all forces are zero.
    """
    step = max(1, len(frames) // _STATISTICS_FRAMES)
    sample = [frames[i] for i in range(0, len(frames), step)]  # read once: a large set may be on disk
    present = {int(z) for frame in sample for z in np.unique(frame.numbers)}
    species = sorted(present | {_atomic_number(symbol) for symbol in config.potential.extra_species})
    if config.potential.start is None:
        return _random_potential(config, species, sample)
    if config.data.replay:
        species = sorted({*species, *read_header(config.potential.start)["species"]})
    return _potential_from_start(
        config, config.potential.start, species, sample, logging.INFO if log else logging.DEBUG
    )


def _random_potential(config: TrainConfig, species: list[int], sample: Sequence[Frame]) -> Potential:
    """A potential with random weights."""
    references, origin = _reference_energies(config.potential, species, sample)
    scale = float(np.sqrt(np.mean(np.concatenate([np.square(frame.forces).ravel() for frame in sample]))))
    if scale == 0.0:
        raise DataError("all training forces are zero: the labels are missing or wrong")
    model = config.model
    if model.avg_num_neighbours is None:
        model = model.model_copy(update={"avg_num_neighbours": _average_neighbours(sample, model.cutoff)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = make_network(model, len(species))
    metadata: dict[str, Any] = {"name": config.name, "reference_energies_from": origin}
    potential = Potential(network, species, references, scale, config.potential.zbl_cutoff, metadata)
    return potential.to(getattr(torch, config.dtype))


def _potential_from_start(
    config: TrainConfig, path: Path, species: list[int], sample: Sequence[Frame], level: int
) -> Potential:
    """The potential in a file, for these species only and with reference energies that fit the frames."""
    base = load_potential(path)
    network = _network_of_start(config, base, path)
    base_num_ori = 0
    if isinstance(config.model, GridConfig):
        base_num_ori = network.config.num_ori
        network.set_grid(config.model.num_ori)
        network.config = network.config.model_copy(update={"num_ori": config.model.num_ori})
    rows = [base.species.index(_nearest_element(z, base.species)) for z in species]
    network.embedding = nn.Embedding.from_pretrained(network.embedding.weight.detach()[rows], freeze=False)
    base_references = dict(zip(base.species, base.reference_energies.tolist(), strict=True))
    references = {z: base_references.get(z, 0.0) for z in species}
    metadata = {"name": config.name, "started_from": _lineage(base, path, base_num_ori)}
    potential = Potential(network, species, references, base.scale, base.zbl_cutoff, metadata)
    new_elements = [z for z in species if z not in base.species]
    for z in new_elements:
        nearest = chemical_symbols[_nearest_element(z, base.species)]
        logger.log(
            level, "%s does not know %s; its embedding starts from that of %s", path.name, chemical_symbols[z], nearest
        )
    origin = _shift_reference_energies(potential, config, sample, new_elements, base, path)
    potential.metadata["reference_energies_from"] = origin
    logger.log(level, "reference energies: %s", origin)
    return potential.to(getattr(torch, config.dtype)).train().requires_grad_(True)


def _network_of_start(config: TrainConfig, base: Potential, path: Path) -> Form:
    """The network to start from.

    Raises:
        ConfigError: If the settings describe another network or another repulsion, naming what to give.
    """
    network = base.network
    if not isinstance(network, Form):
        raise ConfigError(f"potential.start: {path} holds a network of the published form, which is not trained here")
    own, given = network.config.model_dump(), config.model.model_dump()
    # avg_num_neighbours only scales random initial weights. Kernels are continuous, so they run on any grid.
    free = {"avg_num_neighbours"} | ({"num_ori"} if given.get("num_ori") and own.get("num_ori") else set())
    wrong = [name for name in own if given.get(name) != own[name] and name not in free]
    if wrong:
        needed = ", ".join(f"model.{name}: {own[name]}" for name in wrong)
        raise ConfigError(f"potential.start: {path} is another network than model describes; give {needed}")
    if base.zbl_cutoff != config.potential.zbl_cutoff:
        raise ConfigError(f"potential.start: {path} has potential.zbl_cutoff: {base.zbl_cutoff}; give the same")
    return network


def _lineage(base: Potential, path: Path, num_ori: int) -> dict[str, Any]:
    """Metadata of the potential that a run starts from."""
    return {
        "name": base.metadata.get("name"),
        "file": path.name,
        "weights_sha256": read_header(path)["weights_sha256"],
        "num_ori": num_ori,
        "training": base.metadata.get("training"),
        "errors": base.metadata.get("errors"),
        "started_from": base.metadata.get("started_from"),
    }


def _shift_reference_energies(
    potential: Potential,
    config: TrainConfig,
    sample: Sequence[Frame],
    new_elements: list[int],
    base: Potential,
    path: Path,
) -> str:
    """Bring a start's reference energies to the level of theory of the frames, in place.

    Returns:
        A sentence that says where they are from.
    """
    species, name = potential.species, base.metadata.get("name")
    if isinstance(config.potential.reference_energies, dict | Path):
        present = sorted({int(z) for frame in sample for z in frame.numbers})
        energies, origin = _given_energies(config.potential, present)
        old = dict(zip(species, potential.reference_energies.tolist(), strict=True))
        shifts = {z: energies[z] - old[z] for z in species if z in energies}
    else:
        keep = config.potential.reference_energies == "keep"
        shifts, origin = _fitted_shifts(potential, sample, keep, new_elements)
        origin = f"{name or path.name}: {origin}"
    shift = torch.tensor([shifts.get(z, 0.0) for z in species], dtype=torch.float64)
    with torch.no_grad():
        potential.reference_energies.add_(shift.to(potential.reference_energies))
    base_origin = base.metadata.get("reference_energies_from")
    if config.potential.reference_energies == "keep" and not new_elements and base_origin is not None:
        return base_origin if name == config.name else f"{name or path.name}: {base_origin}"
    return origin


def _fitted_shifts(
    potential: Potential, sample: Sequence[Frame], keep: bool, new_elements: list[int]
) -> tuple[dict[int, float], str]:
    """Shifts of reference energies that make the potential's energies right on average, and where they are from.

    Args:
        potential: A potential with the start's reference energies.
        sample: Training frames.
        keep: Fit the reference energies of new elements only.
        new_elements: Atomic numbers of elements that the start does not know.
    """
    frames = sample[:: max(1, len(sample) // _REFERENCE_FRAMES)]
    fitted = new_elements if keep else list(potential.species)
    origin = "as they are" if keep else f"changed to fit {len(frames)} training frames"
    if keep and new_elements:
        symbols = ", ".join(chemical_symbols[z] for z in new_elements)
        origin += f", those of {symbols} fitted to {len(frames)} training frames"
    if not fitted:
        return {}, origin
    predicted = potential.evaluate([frame.to_atoms() for frame in frames], forces=False).energies
    residuals = np.array([frame.energy for frame in frames]) - predicted
    return fit_reference_energies(fitted, _element_counts(frames, fitted), residuals), origin


def _element_counts(frames: Sequence[Frame], species: list[int]) -> NDArray[np.float64]:
    """Number of atoms of each species in each frame, shape (frames, species)."""
    return np.array([[np.count_nonzero(frame.numbers == z) for z in species] for frame in frames], dtype=np.float64)


def _nearest_element(z: int, known: Sequence[int]) -> int:
    """The nearest known element in the periodic table, first by group, then by period; ``z`` itself if it is known."""
    group, period = _group_and_period(z)

    def distance(other: int) -> tuple[int, int, int]:
        other_group, other_period = _group_and_period(other)
        return abs(other_group - group), abs(other_period - period), abs(other - z)

    return min(known, key=distance)


def _group_and_period(z: int) -> tuple[int, int]:
    """Group (1 to 18; 3 for lanthanides and actinides) and period of an element."""
    period, first = 1, 1
    while z >= first + (length := _PERIOD_LENGTHS[period - 1]):
        period, first = period + 1, first + length
    place = z - first + 1
    if length == 18:
        return place, period
    if length < 18:
        return (place if place <= (1 if length == 2 else 2) else place + 18 - length), period
    return (place if place <= 2 else max(3, place - 14)), period


def _atomic_number(symbol: str) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise ConfigError(f"{symbol!r} is not a chemical symbol")
    return int(atomic_numbers[symbol])


def _average_neighbours(frames: Sequence[Frame], cutoff: float) -> float:
    """Average number of neighbours within the cutoff (Å), at least 1."""
    sample = frames[:: max(1, len(frames) // _NEIGHBOUR_FRAMES)]
    counts = [len(neighbour_list(f.positions, cutoff, f.cell, f.pbc).receivers) / len(f) for f in sample]
    return max(1.0, float(np.mean(counts)))


def _reference_energies(
    config: PotentialConfig, species: list[int], frames: Sequence[Frame]
) -> tuple[dict[int, float], str]:
    """Reference energies in eV by atomic number, and a sentence that says where they are from."""
    if config.reference_energies == "least-squares":
        energies: NDArray[np.float64] = np.array([f.energy for f in frames])
        fitted = fit_reference_energies(species, _element_counts(frames, species), energies)
        return fitted, f"least squares over {len(frames)} training frames"
    return _given_energies(config, species)


def _given_energies(config: PotentialConfig, needed: list[int]) -> tuple[dict[int, float], str]:
    """The reference energies that the settings give, and where they are from.

    Raises:
        ConfigError: If one of the needed elements is missing.
    """
    given = config.reference_energies
    if isinstance(given, Path):
        energies = read_isolated_atoms(given)
        origin = f"isolated atoms in {given.name}"
    else:
        energies = {_atomic_number(symbol): float(value) for symbol, value in dict(given).items()}  # type: ignore[arg-type]
        origin = "given in the settings"
    missing = [z for z in needed if z not in energies]
    if missing:
        raise ConfigError(f"potential.reference_energies has no energy for atomic numbers {missing} ({origin})")
    return energies, origin
