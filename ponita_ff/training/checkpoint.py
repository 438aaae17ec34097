"""The checkpoint file of a training run: written whole or not at all, hashed, and checked before it is used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from ponita_ff.files import write_atomically
from ponita_ff.settings import wrong_fields

__all__ = ["CHECKPOINT_VERSION", "Checkpoint", "CheckpointError", "Progress", "read_checkpoint", "write_checkpoint"]

logger = logging.getLogger(__name__)

#: Version of the file; a change of its contents or of the names of weights needs a new one.
CHECKPOINT_VERSION = 5

#: Versions that are read. 4 had neither a hash nor ``finished``.
_READABLE = (4, CHECKPOINT_VERSION)

Weights = dict[str, InstanceOf[Tensor]]
Count = Annotated[int, Field(ge=0)]


class CheckpointError(ValueError):
    """A file that is not a whole, unaltered checkpoint; the message names it."""


@with_config(ConfigDict(strict=True))
class Progress(TypedDict):
    """Progress of a run; see :class:`ponita_ff.training.trainer.TrainerState`."""

    step: Count
    elapsed: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    best_score: float
    best_step: Count
    history: list[dict[str, float]]


@with_config(ConfigDict(strict=True))
class Checkpoint(TypedDict):
    """All that the rest of a run depends on.

    Attributes:
        config: The settings, as JSON.
        potential: Weights by name.
        ema_potential: Their exponential moving average.
        best_weights: Weights of the best validation; None without early stopping.
        optimiser: States of the optimisers.
        state: Progress of the run.
        finished: Whether the run has come to its end with these settings.
    """

    config: str
    potential: Weights
    ema_potential: Weights
    best_weights: Weights | None
    optimiser: list[dict[str, Any]]
    state: Progress
    finished: bool


_CHECKPOINT = TypeAdapter(Checkpoint)


def write_checkpoint(path: Path, content: Checkpoint) -> None:
    """Write a checkpoint.

    Raises:
        OSError: With the reason (full disk, no permission, deleted folder); the old checkpoint is intact.
    """
    record = {"version": CHECKPOINT_VERSION, **content}
    record["sha256"] = _content_hash(record)
    write_atomically(path, lambda temporary: torch.save(record, temporary), make_folder=False)


def read_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint to a device.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is damaged or was altered, has fields of wrong types, or is of another version.
    """
    try:
        record: Any = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise CheckpointError(f"{path} is not a complete training checkpoint: {error}") from None
    if not isinstance(record, dict) or "version" not in record:
        raise CheckpointError(f"{path} is not a complete training checkpoint: it holds no version")
    version = record.pop("version")
    if type(version) is not int or version not in _READABLE:
        raise CheckpointError(
            f"{path} was made by another version of ponita_ff: finish the run with that version, or start a new one"
        )
    _check_hash(path, version, record)
    if version == 4:
        record.setdefault("finished", False)
    try:
        return _CHECKPOINT.validate_python(record)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a training checkpoint:\n{wrong_fields(error, values=False)}") from None


def _check_hash(path: Path, version: int, record: dict[str, Any]) -> None:
    """Compare the content with its hash, which is taken out."""
    found = record.pop("sha256", None)
    if found is None and version == 4:
        logger.warning("%s was written by an earlier version, without a hash: damage cannot be noticed", path)
        return
    try:
        expected = _content_hash({"version": version, **record})
    except TypeError as error:
        raise CheckpointError(f"{path} is not a training checkpoint: {error}") from None
    if found != expected:
        raise CheckpointError(
            f"{path} was altered after it was written (SHA-256 does not match): begin the run anew in another folder, "
            "or copy the file again"
        )


def _content_hash(content: object) -> str:
    """SHA-256 of nested mappings, sequences, tensors and plain values: of their structure, types and values."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"mapping {len(value)};".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"sequence {len(value)};".encode())
            for item in value:
                add(item)
        elif value is None or isinstance(value, bool | int | float | str):
            text = f"{type(value).__name__} {value!r}".encode()
            digest.update(f"{len(text)} ".encode() + text)
        else:
            raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")

    add(content)
    return digest.hexdigest()
