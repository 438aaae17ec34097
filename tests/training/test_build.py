"""From settings and frames to a potential: what a start brings, and what new frames change of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from ponita_ff.data import InMemoryFrames
from ponita_ff.potential import file as checkpoint
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import ConfigError, TrainConfig
from ponita_ff.training.evaluate import frame_graph


def started(settings: dict[str, Any], frames: InMemoryFrames, base: Path, **potential: Any) -> Potential:
    """What a run with this start begins with."""
    settings = {**settings, "potential": {"start": str(base), "reference_energies": "keep", **potential}}
    return build_potential(TrainConfig.from_mapping(settings), frames)


def changed(frames: InMemoryFrames, **fields: Any) -> InMemoryFrames:
    """Frames with other fields, each a function of the frame."""
    return InMemoryFrames(dataclasses.replace(f, **{k: make(f) for k, make in fields.items()}) for f in frames)


@pytest.fixture
def base(settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path) -> Path:
    """A potential that knows nitrogen beside what the frames hold, with weights of its own."""
    settings = {**settings, "seed": 5, "potential": {"reference_energies": {"H": -1, "C": -2, "N": -4, "O": -3}}}
    settings["potential"]["extra_species"] = ["N"]
    path = tmp_path / "base.safetensors"
    checkpoint.save_potential(build_potential(TrainConfig.from_mapping(settings), frames), path)
    return path


def test_start_from_a_potential(settings: dict[str, Any], frames: InMemoryFrames, base: Path) -> None:
    potential, origin = started(settings, frames, base), load_potential(base)
    assert potential.species == (1, 6, 8)
    assert potential.reference_energies.tolist() == [-1.0, -2.0, -3.0]
    graph = frame_graph(frames[0], origin.cutoff)
    torch.testing.assert_close(potential(graph).energy, origin(graph).energy)
    assert potential.training
    assert all(parameter.requires_grad for parameter in potential.parameters())
    lineage = potential.metadata["started_from"]
    assert lineage["file"] == "base.safetensors"
    assert lineage["weights_sha256"] == read_header(base)["weights_sha256"]


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "channels", 16, r"base\.safetensors is another network.*give model\.channels: 8"),
        ("potential", "zbl_cutoff", 1.0, r"potential\.zbl_cutoff: None; give the same"),
    ],
)
def test_start_that_does_not_fit(
    section: str, field: str, value: Any, message: str, settings: dict[str, Any], frames: InMemoryFrames, base: Path
) -> None:
    settings["potential"] = {"start": str(base)}
    settings[section] = {**settings[section], field: value}
    with pytest.raises(ConfigError, match=message):
        build_potential(TrainConfig.from_mapping(settings), frames)


def test_a_start_on_another_grid(settings: dict[str, Any], frames: InMemoryFrames, base: Path) -> None:
    settings["model"] = {**settings["model"], "num_ori": 20}
    potential, origin = started(settings, frames, base), load_potential(base)
    origin.set_grid(20)
    graph = frame_graph(frames[0], origin.cutoff)
    torch.testing.assert_close(potential(graph).energy, origin(graph).energy)
    assert potential.network.config.num_ori == 20
    settings["model"]["num_ori"] = 0
    settings["model"]["l_max"] = 0
    with pytest.raises(ConfigError, match=r"give model\.num_ori"):
        started(settings, frames, base)


def test_new_frames_shift_the_reference_energies(settings: dict[str, Any], frames: InMemoryFrames, base: Path) -> None:
    """By what makes their energies right on average, and by no more; or not at all where that is asked for."""
    origin = load_potential(base)
    counts = np.array([4.0, 1.0, 0.0, 1.0])  # of H, C, N, O in methanol
    told = origin.evaluate([frame.to_atoms() for frame in frames]).energies
    other = InMemoryFrames(
        dataclasses.replace(frame, energy=float(energy) + 100.0) for frame, energy in zip(frames, told, strict=True)
    )
    settings["potential"] = {"start": str(base), "extra_species": ["N"]}
    potential = build_potential(TrainConfig.from_mapping(settings), other)
    change = potential.reference_energies - origin.reference_energies
    np.testing.assert_allclose(change, 100.0 * counts / (counts @ counts), atol=1e-6)
    assert "changed to fit 20 training frames" in potential.metadata["reference_energies_from"]
    kept = started(settings, other, base, extra_species=["N"])
    assert torch.equal(kept.reference_energies, origin.reference_energies)
    assert kept.metadata["reference_energies_from"].endswith(origin.metadata["reference_energies_from"])


def test_isolated_atoms_of_the_new_level(
    settings: dict[str, Any], frames: InMemoryFrames, base: Path, tmp_path: Path
) -> None:
    """They replace those of the start; elements that the frames lack keep theirs."""
    path = tmp_path / "atoms.xyz"
    atoms = [
        Atoms(symbol, info={"energy": energy}) for symbol, energy in (("H", -13.0), ("C", -1030.0), ("O", -2040.0))
    ]
    for one in atoms:
        one.info["config_type"] = "IsolatedAtom"
    write(path, atoms, format="extxyz")
    potential = started(settings, frames, base, reference_energies=str(path), extra_species=["N"])
    assert potential.reference_energies.tolist() == [-13.0, -1030.0, -4.0, -2040.0]
    with pytest.raises(ConfigError, match=r"no energy for atomic numbers \[8\]"):
        started(settings, frames, base, reference_energies={"H": -1.0, "C": -2.0})


@pytest.mark.parametrize(
    ("new", "like"), [(16, 8), (34, 8), (15, 7), (14, 6), (9, 8), (3, 1), (55, 1), (28, 6), (25, 1), (57, 1), (92, 1)]
)
def test_a_new_element_begins_as_its_nearest(
    new: int, like: int, settings: dict[str, Any], frames: InMemoryFrames, base: Path
) -> None:
    """The nearest column of the periodic table, then the nearest row."""
    strange = changed(frames, numbers=lambda f: np.where(f.numbers == 8, new, f.numbers))
    potential, origin = started(settings, strange, base), load_potential(base)
    row = potential.network.embedding.weight[potential.species.index(new)]
    assert torch.equal(row, origin.network.embedding.weight[origin.species.index(like)])
    for z in (1, 6):  # these stay what they were
        place, before = potential.species.index(z), origin.species.index(z)
        assert torch.equal(potential.network.embedding.weight[place], origin.network.embedding.weight[before])
        assert potential.reference_energies[place] == origin.reference_energies[before]
    energies = potential.evaluate([frame.to_atoms() for frame in strange]).energies
    assert np.mean([frame.energy for frame in strange]) == pytest.approx(energies.mean(), abs=1e-6)


def test_replay_keeps_all_elements_of_the_start(settings: dict[str, Any], frames: InMemoryFrames, base: Path) -> None:
    settings["data"] = {**settings["data"], "replay": ["anything.xyz"]}
    assert started(settings, frames, base).species == (1, 6, 7, 8)


def test_reference_energies_and_scale(settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path) -> None:
    config = TrainConfig.from_mapping(settings)
    potential = build_potential(config, frames)
    counts = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)
    mean = np.mean([frame.energy for frame in frames])
    assert float(counts @ potential.reference_energies) == pytest.approx(mean, abs=1e-9)
    forces = np.concatenate([frame.forces for frame in frames])
    assert potential.scale == pytest.approx(np.sqrt(np.square(forces).mean()))
    settings["potential"] = {"reference_energies": {"H": -1.0, "C": -2.0, "O": -3.0}, "extra_species": ["N"]}
    with pytest.raises(ConfigError, match="7"):
        build_potential(TrainConfig.from_mapping(settings), frames)
    settings["potential"]["reference_energies"]["N"] = -4.0
    potential = build_potential(TrainConfig.from_mapping(settings), frames)
    assert potential.species == (1, 6, 7, 8)
    assert potential.reference_energies.tolist() == [-1.0, -2.0, -4.0, -3.0]
