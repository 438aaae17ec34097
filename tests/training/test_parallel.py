"""Several processes train as one."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import read, write
from forked import command, started

from ponita_ff.data import InMemoryFrames
from ponita_ff.potential.file import read_header
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.parallel import Processes, balance
from ponita_ff.training.run import train
from ponita_ff.training.trainer import _BatchSampler, read_metrics


def test_balance_gives_every_structure_once_and_about_as_many_atoms() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, size=24).tolist()
    assigned = balance(sizes, 3)
    assert sorted(position for positions in assigned for position in positions) == list(range(24))
    atoms = [sum(sizes[position] for position in positions) for positions in assigned]
    assert max(atoms) - min(atoms) <= min(sizes) + 1


def test_balance_gives_every_process_a_structure() -> None:
    assert all(balance([1, 1, 50], 3))


def test_shards_add_up_to_the_batch(frames: InMemoryFrames) -> None:
    whole = _BatchSampler(frames, 7, 0, 0, Processes()).shard(3)
    shards = [_BatchSampler(frames, 7, 0, 0, Processes(rank, 3)).shard(3) for rank in range(3)]
    assert sorted(index for shard in shards for index in shard.indices) == sorted(whole.indices)
    assert sum(shard.fractions[0] for shard in shards) == pytest.approx(1.0)
    assert sum(shard.fractions[1] for shard in shards) == pytest.approx(1.0)
    for shard in shards:
        assert [whole.indices[position] for position in shard.positions] == shard.indices


def test_more_processes_than_frames_in_a_batch(frames: InMemoryFrames) -> None:
    with pytest.raises(ValueError, match=r"batch of 3 frames cannot be distributed over 4 processes"):
        _BatchSampler(frames, 3, 0, 0, Processes(0, 4))


@pytest.fixture
def mixed(settings: dict[str, Any], frames_path: Path, water: list[Atoms], tmp_path: Path) -> dict[str, Any]:
    """Methanol and water, in double precision: the sums of two processes are rounded elsewhere."""
    write(tmp_path / "mixed.xyz", [*read(frames_path, ":"), *water], format="extxyz")
    settings["data"] = {"path": str(tmp_path / "mixed.xyz"), "train": 20, "validation": 2, "test_frames": 2}
    settings["optimiser"] |= {"steps": 50, "batch_size": 5, "validate_every": 5}
    return {**settings, "dtype": "float64", "backend": "native"}


def train_in_two_processes(config: Path, out: Path) -> None:
    """With the variables that torchrun gives each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = ["train", str(config), "--out", str(out), "--no-progress"]
    with ExitStack() as stack:
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        processes = [stack.enter_context(started(command, arguments, shared | rank)) for rank in ranks]
        for process in processes:
            process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]


def test_two_processes_lose_what_one_loses(mixed: dict[str, Any], tmp_path: Path) -> None:
    """Over 50 steps, 1e-6: losses, and the errors of the averaged potential."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(mixed), encoding="utf-8")
    train(TrainConfig.from_mapping(mixed), tmp_path / "1", progress=False)
    train_in_two_processes(config, tmp_path / "2")
    one, two = (read_metrics(tmp_path / name) for name in ("1", "2"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [*range(5, 51, 5)]
    for name in ("train_loss", "validation_energy_mae", "validation_forces_mae"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=1e-6, err_msg=name)
    assert one[-1]["train_loss"] < one[0]["train_loss"]
    headers = [read_header(tmp_path / name / "potential.safetensors") for name in ("1", "2")]
    assert headers[0]["metadata"]["data"] == headers[1]["metadata"]["data"]
