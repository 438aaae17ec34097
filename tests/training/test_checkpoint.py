"""The checkpoint file: whole and unaltered, or refused in one sentence."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ponita_ff.training.checkpoint import CheckpointError, _content_hash, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


def content() -> Any:
    """Small, with everything that a checkpoint may hold."""
    weights = {"weight": torch.arange(64.0).reshape(8, 8), "count": torch.tensor(3)}
    adam = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "x": None}]}
    row = {"step": 10.0, "train_loss": 0.5}
    state = {"step": 10, "elapsed": 1.5, "best_score": float("inf"), "best_step": 0, "history": [row]}
    return {
        "config": "{}",
        "potential": weights,
        "ema_potential": {name: value.clone() for name, value in weights.items()},
        "best_weights": None,
        "optimiser": [adam],
        "state": state,
        "finished": True,
    }


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pt", content())
    found = read_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert _content_hash(found) == _content_hash(content())


def test_any_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, content())
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename]
        sizes = {info.filename: info.file_size for info in records}
        starts = {name: good.index(archive.read(name)) for name in sizes}
    assert sum(sizes.values()) >= 2 * 64 * 4
    for name, start in starts.items():
        for offset in range(0, sizes[name], 13):
            damaged = bytearray(good)
            damaged[start + offset] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"checkpoint\.pt was altered .*SHA-256 does not match"):
                read_checkpoint(path, CPU)


def test_no_flipped_bit_gives_another_checkpoint_or_a_traceback(tmp_path: Path) -> None:
    """Anywhere in the file: it is refused, or makes no difference (in the padding of the archive)."""
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, content())
    good, expected = path.read_bytes(), _content_hash(content())
    refused = 0
    for position in range(0, len(good), 29):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert _content_hash(read_checkpoint(path, CPU)) == expected
        except CheckpointError:
            refused += 1
    assert refused > 20


def nested(name: str, value: object) -> Any:
    changed = content()
    *parents, last = name.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", 7),
        ("potential", []),
        ("potential", {"weight": [1.0]}),
        ("ema_potential", None),
        ("best_weights", 1.0),
        ("optimiser", {}),
        ("optimiser", [1]),
        ("state", 3),
        ("state.step", "10"),
        ("state.step", 10.5),
        ("state.step", -1),
        ("state.elapsed", float("nan")),
        ("state.best_score", None),
        ("state.history", [{"step": "ten"}]),
        ("finished", "yes"),
    ],
)
def test_fields_of_wrong_types_are_named(name: str, value: object, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pt", nested(name, value))
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt is not a training checkpoint:\n +{name}"):
        read_checkpoint(tmp_path / "checkpoint.pt", CPU)


@pytest.mark.parametrize("record", [[1], {"step": 1}, {"version": "5"}, {"version": 3}, {"version": 5, "sha256": 1}])
def test_other_files_of_torch_are_refused(record: object, tmp_path: Path) -> None:
    torch.save(record, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt (is not|was)"):
        read_checkpoint(tmp_path / "checkpoint.pt", CPU)


def test_a_checkpoint_of_before_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {name: value for name, value in content().items() if name != "finished"}
    torch.save({"version": 4, **old}, tmp_path / "checkpoint.pt")
    found = read_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert found["finished"] is False and torch.equal(found["potential"]["weight"], old["potential"]["weight"])
    assert caplog.text.count("without a hash") == 1
    torch.save({"version": 5, **old}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(tmp_path / "checkpoint.pt", CPU)


def test_a_deleted_folder_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: the folder .*gone is gone"):
        write_checkpoint(tmp_path / "gone" / "checkpoint.pt", content())
    assert not (tmp_path / "gone").exists()
