"""A small labelled set that the tests make themselves: rattled methanol with ASE's EMT."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write
from methanol import make_frames
from training_pictures import drawn_plots, plots_left_out

from ponita_ff.data import InMemoryFrames

__all__ = ["drawn_plots", "plots_left_out"]


@pytest.fixture(scope="session")
def frames() -> InMemoryFrames:
    """Twenty frames."""
    return make_frames(20)


@pytest.fixture(scope="session")
def frames_path(tmp_path_factory: pytest.TempPathFactory, frames: InMemoryFrames) -> Path:
    """The same frames as extended XYZ."""
    path = tmp_path_factory.mktemp("frames") / "frames.xyz"
    write(path, [frame.to_atoms() for frame in frames], format="extxyz")
    return path


@pytest.fixture(scope="session")
def water() -> list[Atoms]:
    """Eight rattled water molecules, labelled with EMT."""
    molecules = []
    for seed in range(8):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        molecules.append(atoms)
    return molecules


@pytest.fixture
def settings(frames_path: Path) -> dict[str, object]:
    """A run that takes a second."""
    return {
        "data": {"path": str(frames_path), "train": 12, "validation": 4, "test_frames": 4},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {
            "steps": 30,
            "batch_size": 3,
            "warmup_steps": 5,
            "validate_every": 10,
            "checkpoint_every": 5,
            "learning_rate": 0.01,
            "muon_lr_multiplier": 1.0,
        },
        "device": "cpu",
    }


@pytest.fixture
def config_path(tmp_path: Path, settings: dict[str, object]) -> Path:
    """The same as a YAML file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
