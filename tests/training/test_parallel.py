"""Several processes train as one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import read, write

from ponita_ff.data import InMemoryFrames
from ponita_ff.potential.file import read_header
from ponita_ff.training.parallel import Processes, balance
from ponita_ff.training.trainer import _BatchSampler


def test_deal_gives_every_structure_once_and_about_as_many_atoms() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, size=24).tolist()
    dealt = balance(sizes, 3)
    assert sorted(position for hand in dealt for position in hand) == list(range(24))
    atoms = [sum(sizes[position] for position in hand) for hand in dealt]
    assert max(atoms) - min(atoms) <= min(sizes) + 1


def test_deal_leaves_nobody_without() -> None:
    assert all(balance([1, 1, 50], 3))


def test_parts_of_a_batch_make_it_up(frames: InMemoryFrames) -> None:
    whole = _BatchSampler(frames, 7, 0, 0, Processes()).shard(3)
    parts = [_BatchSampler(frames, 7, 0, 0, Processes(rank, 3)).shard(3) for rank in range(3)]
    assert sorted(index for part in parts for index in part.indices) == sorted(whole.indices)
    assert sum(part.fractions[0] for part in parts) == pytest.approx(1.0)
    assert sum(part.fractions[1] for part in parts) == pytest.approx(1.0)
    for part in parts:
        assert [whole.indices[position] for position in part.positions] == part.indices


def test_more_processes_than_frames_in_a_batch(frames: InMemoryFrames) -> None:
    with pytest.raises(ValueError, match=r"batch of 3 frames cannot be distributed over 4 processes"):
        _BatchSampler(frames, 3, 0, 0, Processes(0, 4))


@pytest.fixture
def mixed(settings: dict[str, Any], frames_path: Path, water: list[Atoms], tmp_path: Path) -> dict[str, Any]:
    """Methanol and water, in double precision: the sums of two processes are rounded elsewhere."""
    write(tmp_path / "mixed.xyz", [*read(frames_path, ":"), *water], format="extxyz")
    settings["data"] = {"path": str(tmp_path / "mixed.xyz"), "train": 20, "validation": 2, "test_frames": 2}
    settings["optimiser"] |= {"steps": 50, "batch_size": 5, "validate_every": 1}
    return {**settings, "dtype": "float64", "backend": "native"}


def launch(config: Path, out: Path, processes: int, *options: str) -> list[dict[str, float]]:
    """Train in a command of its own; returns the rows of the log."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*start, "-m", "ponita_ff", "train", str(config), "--out", str(out), "--no-progress", *options]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with (out / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_lose_what_one_loses(mixed: dict[str, Any], tmp_path: Path) -> None:
    """Over 50 steps, 1e-6: losses, and the errors of the averaged potential."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(mixed), encoding="utf-8")
    one, two = (launch(config, tmp_path / str(processes), processes) for processes in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [*range(1, 51)]
    for name in ("train_loss", "validation_energy_mae", "validation_forces_mae"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=1e-6, err_msg=name)
    assert one[-1]["train_loss"] < one[0]["train_loss"]
    headers = [read_header(tmp_path / name / "potential.safetensors") for name in ("1", "2")]
    assert headers[0]["metadata"]["data"] == headers[1]["metadata"]["data"]
