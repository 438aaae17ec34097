"""Fine-tuning: train a potential further on a new molecule, element or level of theory, and measure what it forgets.

A fine-tuning run is a training run (:mod:`ponita_ff.training.run`) that starts from a potential, with settings that
suit few frames. It reports errors before and after on new frames and on held-out replayed frames.
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
from ponita_ff.training.legacy import rename_overrides
from ponita_ff.training.replay import with_reference_energies_of
from ponita_ff.training.report_page import write_report_page
from ponita_ff.training.run import RunFolder, TrainingData, finished_potential, run_folder, train_in

__all__ = ["REPLAY_FILE", "ErrorChange", "finetune", "finetune_config"]

logger = logging.getLogger(__name__)

#: File beside that of a base potential: frames of what it was trained on, labelled by itself.
REPLAY_FILE = "replay.xyz"

#: Fraction of the frames that validate, and the smallest number of them.
_VALIDATION_FRACTION, _MIN_VALIDATION = 0.1, 2


@dataclass(frozen=True)
class ErrorChange:
    """Errors on some frames before and after fine-tuning.

    Attributes:
        name: Which frames: ``"new: validation"``, ``"new: test"`` or ``"replay holdout"``.
        frames: Number of frames.
        energy_before: Mean absolute error of energies before, eV.
        energy_after: The same after.
        forces_before: Mean absolute error of force components before, eV/Å.
        forces_after: The same after.
        energy_taught: The same after a teacher's labels, before the others; None without a teacher.
        forces_taught: The same of the force components.
    """

    name: str
    frames: int
    energy_before: float
    energy_after: float
    forces_before: float
    forces_after: float
    energy_taught: float | None = None
    forces_taught: float | None = None


def finetune_config(
    base: str | Path,
    data: Sequence[Path],
    test: Sequence[Path] = (),
    replay: Sequence[Path] | None = None,
    frames: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    most_steps: int = 20_000,
) -> TrainConfig:
    """Settings for fine-tuning that suit the number of frames.

    Args:
        base: A potential file or the name of a shipped potential.
        data: Files of labelled frames to train on; a tenth of the frames (at least two) validate.
        test: Files of frames for the errors reported at the end, never trained on.
        replay: Files of frames that the base was trained on, which are trained on as well. None: ``replay.xyz`` beside
            the base's file, if there is one. Empty: no replay.
        frames: Number of frames of ``data`` to use, drawn at random. None: all.
        overrides: Values by dotted name for any field of :class:`TrainConfig`, e.g. ``{"optimiser.time": "30m"}``;
            names of earlier versions are translated.
        most_steps: Number of steps for many frames.

    Raises:
        SettingsError: For settings that cannot be used, a base of the published form, or too few frames.
        DataError: For data that cannot be used.
        FileNotFoundError: For a base that does not exist.
    """
    path = find_potential(base)
    if replay is None:
        beside = path.with_name(REPLAY_FILE)
        replay = [beside] if beside.is_file() else []
    header = read_header(path)
    if header["form"] == "published":
        raise ConfigError(f"{path} holds a network of the published form, which is not trained here")
    number = sum(len(read_frames(file)) for file in data) if frames is None else frames
    validation = max(_MIN_VALIDATION, round(_VALIDATION_FRACTION * number))
    if number <= validation:
        raise ConfigError(f"{number} frames are too few to fine-tune on: {validation} are needed for validation alone")
    settings: dict[str, Any] = {
        "name": data[0].stem,
        "data": {
            "path": [str(file) for file in data],
            "train": number - validation,
            "validation": validation,
            "replay": [str(file) for file in replay],
        },
        "model": header["network"],
        "potential": {"start": str(path), "zbl_cutoff": load_potential(path).zbl_cutoff},
        "optimiser": _schedule(number, most_steps),
    }
    if test:
        settings["data"]["test"] = [str(file) for file in test]
    changed = with_changes(settings, rename_overrides(overrides or {}))
    return TrainConfig.from_mapping(changed, "these settings").with_absolute_paths()


def _schedule(frames: int, most_steps: int) -> dict[str, Any]:
    """Schedule for a number of frames; ``benchmarks/finetune.py`` measures its results.

    The learning rate was chosen on N-methylacetamide, which is no molecule of these: a low one was better with 50
    frames, a high one with 950. ``benchmarks/general.py few-frames --set optimiser.learning_rate=…`` compares them.
    """
    steps = int(min(most_steps, max(1_000, 200 * frames**0.75)))
    return {
        "steps": steps,
        "learning_rate": 5e-4 * min(1.0, max(0.4, (frames / 1000) ** 0.3)),
        "warmup_steps": steps // 20,
        "ema_decay": 0.99,
        "validate_every": steps // 10,
        "checkpoint_every": max(200, steps // 10),
    }


def finetune(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    force: bool = False,
    base: Path | None = None,
) -> list[ErrorChange]:
    """Train from ``config.potential.start`` and measure errors before and after.

    Args:
        config: See :func:`finetune_config`.
        out: Folder of the run. Its ``potential.safetensors`` records the start and the errors before and after.
        resume: Continue from the checkpoint in the folder.
        progress: Whether to show a progress bar.
        force: As of :func:`ponita_ff.training.run.train`.
        base: The potential before a teacher's labels, if it learned from them first (:mod:`ponita_ff.teaching`); its
            errors are those before.

    Returns:
        Errors before and after on the new frames and on the replay holdout.

    Raises:
        SettingsError, DataError: For settings or data that cannot be used.
        ValueError: For replayed frames with elements that the start does not know, or as in
            :func:`ponita_ff.training.run.train`.
        OSError: If the folder cannot be written.
    """
    if config.potential.start is None:
        raise ConfigError("fine-tuning needs potential.start, a potential to start from")
    config = config.with_absolute_paths()
    with run_folder(config, out, resume, force) as folder:
        if resume and (done := finished_potential(config, out)) and "finetuning" in done.metadata:
            return [ErrorChange(**change) for change in done.metadata["finetuning"]]
        return _finetune(config, folder, resume, progress, base)


def _finetune(
    config: TrainConfig, folder: RunFolder, resume: bool, progress: bool, base: Path | None
) -> list[ErrorChange]:
    if not config.data.replay:
        logger.warning(
            "no frames to replay (data.replay): the potential will forget what %s was trained on, and how much it "
            "forgets is not measured",
            config.potential.start and config.potential.start.name,
        )
    measured: list[tuple[TrainingData, dict[str, Errors], dict[str, Errors] | None]] = []

    def measure(data: TrainingData) -> None:
        start = _errors(build_potential(config, data.train, log=False), config, data)
        if base is None:
            measured.append((data, start, None))
            return
        untaught = config.with_start(base)
        measured.append((data, _errors(build_potential(untaught, data.train, log=False), untaught, data), start))

    train_in(folder, config, resume, progress, measure)
    potential = load_potential(folder.path / POTENTIAL_FILE)
    ((data, before, taught),) = measured
    after = _errors(potential, config, data)
    changes = [
        ErrorChange(
            name,
            old.frames,
            old.energy_mae,
            after[name].energy_mae,
            old.forces_mae,
            after[name].forces_mae,
            taught[name].energy_mae if taught else None,
            taught[name].forces_mae if taught else None,
        )
        for name, old in before.items()
    ]
    potential.metadata["finetuning"] = [asdict(change) for change in changes]
    save_potential(potential, folder.path / POTENTIAL_FILE)
    write_json(folder.path / "report.json", potential.metadata)
    write_report_page(folder.path)
    return changes


def _errors(potential: Potential, config: TrainConfig, data: TrainingData) -> dict[str, Errors]:
    """Errors by the name of the frames; replayed ones are compared relative to the potential's reference energies."""
    frames_by_name: dict[str, Sequence[Frame]] = {"new: validation": data.validation}
    if len(data.test):
        frames_by_name["new: test"] = data.test
    if len(data.replay_holdout) and config.potential.start is not None:
        start = load_potential(config.potential.start)
        holdout = with_reference_energies_of(potential, data.replay_holdout, start)
        frames_by_name["replay holdout"] = holdout
    return {name: evaluate(potential, frames).errors for name, frames in frames_by_name.items()}
