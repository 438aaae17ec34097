"""Fine-tuning: a trained potential goes on to new molecules, elements, levels of theory; what it forgets is told.

A fine-tuning run is a training run (:mod:`ponita_ff.training.run`) with a start, settings that suit few frames, and
errors before and after on the new frames and on what the start knew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ponita_ff.data import Frame, read_frames
from ponita_ff.files import write_json
from ponita_ff.potential.file import find_potential, load_potential, read_header, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.settings import with_changes
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import POTENTIAL_FILE, ConfigError, TrainConfig
from ponita_ff.training.evaluate import Errors, evaluate
from ponita_ff.training.replay import at_level
from ponita_ff.training.run import TrainingData, prepare_data, train

__all__ = ["Change", "finetune", "finetune_config"]

logger = logging.getLogger(__name__)

#: Beside a base potential's file: frames of all that it knows, labelled by itself.
REPLAY_FILE = "replay.xyz"

#: Share of the frames that validate, and their least number.
_VALIDATION, _LEAST = 0.1, 2


@dataclass(frozen=True)
class Change:
    """Errors on some frames before and after; eV and eV/Å.

    Attributes:
        name: What the frames are: ``"new: test"``, ``"known: replay"``, …
        frames: How many.
    """

    name: str
    frames: int
    energy_before: float
    energy_after: float
    forces_before: float
    forces_after: float


def finetune_config(
    base: str | Path,
    data: Sequence[Path],
    test: Sequence[Path] = (),
    replay: Sequence[Path] | None = None,
    frames: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Settings for fine-tuning, with what suits the number of frames.

    Args:
        base: A potential file or the name of a shipped one.
        data: Labelled frames of the new level of theory; a tenth of them (at least two) validate.
        test: Frames for the errors, never seen in training; none: those that validate are shown.
        replay: Frames of what the base knows, trained on as well; None: ``replay.xyz`` beside the base's file if
            there is one; empty: none.
        frames: Use only so many of ``data``, drawn at random.
        overrides: Values by dotted name for any field of :class:`TrainConfig`, e.g. ``{"optimiser.time": "30m"}``.

    Raises:
        ConfigError, DataError, FileNotFoundError: Naming what is wrong.
    """
    path = find_potential(base)
    if replay is None:
        beside = path.with_name(REPLAY_FILE)
        replay = [beside] if beside.is_file() else []
    header = read_header(path)
    if header["form"] != "force-field":
        raise ConfigError(f"{path} holds a network of the published form, which is not trained here")
    number = sum(len(read_frames(file)) for file in data) if frames is None else frames
    validation = max(_LEAST, round(_VALIDATION * number))
    if number <= validation:
        raise ConfigError(f"{number} frames are too few to fine-tune on: {validation} are needed to validate alone")
    settings: dict[str, Any] = {
        "name": data[0].stem,
        "data": {
            "path": [str(file) for file in data],
            "train": number - validation,
            "validation": validation,
            "replay": [str(file) for file in replay],
        },
        "model": {name: value for name, value in header["network"].items() if name != "form"},
        "potential": {"start": str(path), "zbl_cutoff": load_potential(path).zbl_cutoff},
        "optimiser": _schedule(number),
    }
    if test:
        settings["data"]["test"] = [str(file) for file in test]
    return TrainConfig.from_mapping(with_changes(settings, overrides or {}), "these settings")


def _schedule(frames: int) -> dict[str, Any]:
    """Length, rates and average for so many frames; ``benchmarks/finetune.py`` measures what they give."""
    steps = int(min(20_000, max(1_000, 200 * frames**0.75)))
    return {
        "steps": steps,
        "learning_rate": 5e-4,
        "warmup_steps": steps // 20,
        "ema_decay": 0.99,
        "validate_every": steps // 10,
        "checkpoint_every": max(200, steps // 10),
    }


def finetune(config: TrainConfig, out: Path, resume: bool = False, progress: bool = True) -> list[Change]:
    """Train from ``config.potential.start`` and tell what it brought and what it cost.

    Args:
        config: See :func:`finetune_config`.
        out: Folder of the run; its ``potential.safetensors`` holds lineage and errors.
        resume: Continue from the folder's checkpoint.
        progress: Whether to show a progress bar.

    Returns:
        Errors before and after: on the new frames, and on replayed frames that never trained.

    Raises:
        ConfigError, DataError, ValueError, OSError: Before any work is lost, naming what is wrong.
    """
    if config.potential.start is None:
        raise ConfigError("fine-tuning needs potential.start, the potential that it goes on from")
    if not config.data.replay:
        logger.warning(
            "no frames to replay: what %s knew will be forgotten, and nothing measures how much (data.replay)",
            config.potential.start.name,
        )
    data = prepare_data(config.data, out)
    before = _errors(build_potential(config, data.train), config.potential.start, data)
    train(config, out, resume, progress)
    potential = load_potential(out / POTENTIAL_FILE)
    after = _errors(potential, config.potential.start, data)
    changes = [
        Change(name, old.frames, old.energy_mae, after[name].energy_mae, old.forces_mae, after[name].forces_mae)
        for name, old in before.items()
    ]
    potential.metadata["finetuning"] = [asdict(change) for change in changes]
    save_potential(potential, out / POTENTIAL_FILE)
    write_json(out / "report.json", potential.metadata)
    return changes


def _errors(potential: Potential, start: Path, data: TrainingData) -> dict[str, Errors]:
    """On each kind of frames; what the start knew is compared at the start's own level of theory."""
    kinds: dict[str, Sequence[Frame]] = {"new: validation": data.validation}
    if len(data.test):
        kinds["new: test"] = data.test
    if len(data.known):
        kinds["known: replay"] = at_level(data.known, load_potential(start), potential)
    return {name: evaluate(potential, frames).errors for name, frames in kinds.items()}
