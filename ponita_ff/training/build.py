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

from ponita_ff.checkpoint import load_potential, read_header
from ponita_ff.data import DataError, Frame, read_isolated_atoms
from ponita_ff.model import Ponita
from ponita_ff.neighbours import neighbour_list
from ponita_ff.potential import Potential
from ponita_ff.readout import fit_reference_energies
from ponita_ff.training.config import ConfigError, PotentialConfig, TrainConfig

__all__ = ["build_potential"]

logger = logging.getLogger(__name__)

#: Statistics need no more frames than this, however many there are.
_STATISTICS_FRAMES = 5_000


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
        return _started(config, config.potential.start, species)
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


def _started(config: TrainConfig, path: Path, species: list[int]) -> Potential:
    """The potential of a file for these species alone, to train on."""
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
    network.set_grid(config.model.num_ori)
    network.config = network.config.model_copy(update={"num_ori": config.model.num_ori})
    if base.zbl_cutoff != config.potential.zbl_cutoff:
        raise ConfigError(f"potential.start: {path} has potential.zbl_cutoff: {base.zbl_cutoff}; give the same")
    missing = [chemical_symbols[z] for z in species if z not in base.species]
    if missing:
        raise ConfigError(f"potential.start: {path} does not know {', '.join(missing)}")
    places = [base.species.index(z) for z in species]
    network.embedding = nn.Embedding.from_pretrained(network.embedding.weight.detach()[places], freeze=False)
    references = {z: float(base.reference_energies[place]) for z, place in zip(species, places, strict=True)}
    metadata = {
        "name": config.name,
        "reference_energies_from": f"{path.name}: {base.metadata.get('reference_energies_from', 'not recorded')}",
        "started_from": {
            "file": path.name,
            "weights_sha256": read_header(path)["weights_sha256"],
            "training": base.metadata.get("training"),
            "started_from": base.metadata.get("started_from"),
        },
    }
    potential = Potential(network, species, references, base.scale, base.zbl_cutoff, metadata)
    return potential.to(getattr(torch, config.dtype)).train().requires_grad_(True)


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
    given = config.reference_energies
    if given == "least-squares":
        counts = np.array([[np.count_nonzero(f.numbers == z) for z in species] for f in frames], dtype=np.float64)
        energies: NDArray[np.float64] = np.array([f.energy for f in frames])
        fitted = fit_reference_energies(species, counts, energies)
        return fitted, f"least squares over {len(frames)} training frames"
    if isinstance(given, Path):
        energies_by_number = read_isolated_atoms(given)
        origin = f"isolated atoms in {given.name}"
    else:
        energies_by_number = {_number(symbol): float(value) for symbol, value in dict(given).items()}
        origin = "given in the settings"
    missing = [z for z in species if z not in energies_by_number]
    if missing:
        raise ConfigError(f"potential.reference_energies has no energy for atomic numbers {missing} ({origin})")
    return {z: energies_by_number[z] for z in species}, origin
