"""A whole training run: read and split the data, train, write the potential, report."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ponita_ff.data import (
    DataError,
    Frame,
    JoinedFrames,
    Split,
    Units,
    check_plausible,
    files_sha256,
    joined_split,
    random_split,
    read_frames,
    rmd17_split,
)
from ponita_ff.files import write_json, write_text
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import CHECKPOINT_FILE, FIRST_STAGE, POTENTIAL_FILE, DataConfig, TrainConfig
from ponita_ff.training.evaluate import Evaluation, evaluate
from ponita_ff.training.parallel import Processes, joined_processes
from ponita_ff.training.plots import plot_learning_curve, plot_parity
from ponita_ff.training.replay import at_level, mixed, split_replay
from ponita_ff.training.trainer import Trainer, read_metrics

__all__ = ["TrainingData", "describe_hardware", "is_started", "prepare_data", "train"]

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")

_SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class TrainingData:
    """Frames of a run and where they came from; ``known`` are those of a replay that measure only."""

    train: Sequence[Frame]
    validation: Sequence[Frame]
    test: Sequence[Frame]
    replay: Sequence[Frame]
    known: Sequence[Frame]
    split: Split
    provenance: dict[str, Any]


def prepare_data(config: DataConfig, out: Path) -> TrainingData:
    """Read and split the data; a split that ``out`` already holds is used again, so that a resumed run keeps it.

    Raises:
        DataError: Naming file and frame, for data that cannot be used.
    """
    parts = [_read(config, path) for path in config.files]
    frames = parts[0] if len(parts) == 1 else JoinedFrames(parts)
    digest = files_sha256(config.files)
    split_path = out / _SPLIT_FILE
    if split_path.exists():
        split = Split.load(split_path, source=config.files)
    elif config.protocol == "rmd17":
        split = joined_split([rmd17_split(len(part), config.seed) for part in parts], source_sha256=digest)
    else:
        assert config.train is not None and config.validation is not None  # the settings have been validated
        split = random_split(
            len(frames), config.train, config.validation, config.test_frames, config.seed, source_sha256=digest
        )
    drawn, validation, held_out = split.apply(frames)
    further = JoinedFrames([read_frames(path) for path in config.further])
    train: Sequence[Frame] = JoinedFrames([drawn, further]) if config.further else drawn
    test: Sequence[Frame] = held_out
    provenance: dict[str, Any] = {"file": _names(config.files), "sha256": digest, "train": len(train)}
    provenance |= {"validation": len(validation), "protocol": config.protocol, "split_seed": config.seed}
    if config.further:
        provenance |= {"further_file": _names(config.further), "further_sha256": files_sha256(config.further)}
        provenance["further"] = len(further)
    if config.test is not None:
        if config.test_frames:
            raise DataError("data: give either test, a file, or test_frames, a number, not both")
        test = JoinedFrames([_read(config, path) for path in config.test_files])
        provenance |= {"test_file": _names(config.test_files), "test_sha256": files_sha256(config.test_files)}
    provenance["test"] = len(test)
    replay, known = split_replay(JoinedFrames([read_frames(path) for path in config.replay]))
    if config.replay:
        provenance |= {"replay_file": _names(config.replay), "replay_sha256": files_sha256(config.replay)}
        provenance["replay"] = len(replay)
    return TrainingData(train, validation, test, replay, known, split, provenance)


def _names(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files)


def _read(config: DataConfig, path: Path) -> Sequence[Frame]:
    units = None if config.units is None else Units(config.units.energy, config.units.length)
    frames = read_frames(
        path,
        units=units,
        energy_key=config.energy_key,
        forces_key=config.forces_key,
        stress_key=config.stress_key,
    )
    check_plausible(frames)
    return frames


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        # One GPU for each process that torchrun starts on a machine.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else _CPU
    return torch.device(name)


def train(config: TrainConfig, out: Path, resume: bool = False, progress: bool = True) -> Potential:
    """Train a potential; ``out`` ends with potential, settings, split, logs and plots.

    Args:
        config: All settings.
        out: Folder of the run.
        resume: Continue from the folder's checkpoint.
        progress: Whether to show a progress bar.

    Returns:
        The averaged potential, as written to ``out``.

    Under ``torchrun`` all processes train together, on the batches that one alone would have; the first one writes.

    Raises:
        ConfigError, DataError, ValueError, OSError: Before any work is lost, naming what is wrong.
    """
    device = _pick_device(config.device)
    if not resume and is_started(out):
        raise ValueError(f"{out} already holds a run: continue it with --resume, or give another folder")
    stages = config.stages(out)
    with joined_processes(device) as processes:
        for stage, folder in stages[:-1]:
            if processes.leads:
                _save_config(config, out)
            if not (resume and (folder / POTENTIAL_FILE).exists()):
                _train(stage, folder, (folder / CHECKPOINT_FILE).exists(), progress, device, processes, stage)
            processes.wait()
            resume = (out / CHECKPOINT_FILE).exists()
        return _train(stages[-1][0], out, resume, progress, device, processes, config)


def is_started(out: Path) -> bool:
    """Whether a folder holds a run that can go on."""
    return any((folder / CHECKPOINT_FILE).exists() for folder in (out, out / FIRST_STAGE))


def _save_config(config: TrainConfig, out: Path) -> None:
    """Write the settings, with every default filled in."""
    text = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    write_text(out / "config.yaml", text)


def _train(
    config: TrainConfig,
    out: Path,
    resume: bool,
    progress: bool,
    device: torch.device,
    processes: Processes,
    whole: TrainConfig,
) -> Potential:
    """Train as ``config`` says; ``whole`` are the settings to write down."""
    data = prepare_data(config.data, out)
    potential = build_potential(config, data.train).to(device)
    frames = data.train
    if whole.potential.start is not None:  # replayed frames are of its level of theory, in a second part too
        replay = at_level(data.replay, load_potential(whole.potential.start), potential)
        frames = mixed(data.train, replay, config.data.replay_share)
    trainer = Trainer(potential, config, frames, data.validation, out, progress, processes)
    if resume:
        trainer.load_checkpoint()
    elif processes.leads:
        _save_config(whole, out)
        data.split.save(out / _SPLIT_FILE)
    if processes.leads:
        logger.info(
            "training on %d frames%s, validating on %d; %d weights, %s",
            len(data.train),
            f" and {len(data.replay)} replayed ones" if len(data.replay) else "",
            len(data.validation),
            trainer.optimiser.weights.values.numel(),
            potential.device,
        )
    average = trainer.run()
    average.average_rotations(config.potential.rotations)
    if processes.leads:
        _report(average, trainer, data, out, read_metrics(out / FIRST_STAGE) if whole.finish else [])
    return average


def _report(
    potential: Potential, trainer: Trainer, data: TrainingData, out: Path, first: list[dict[str, float]]
) -> None:
    """Errors on every part, in the potential's file, a JSON file and plots; ``first``: rows of the part before."""
    results = {"validation": evaluate(potential, data.validation, backend="auto")}
    if len(data.test):
        results["test"] = evaluate(potential, data.test, backend="auto")
    potential.metadata["data"] = data.provenance
    potential.metadata["errors"] = {name: result.errors.as_dict() for name, result in results.items()}
    potential.metadata["training"] = {
        "steps": trainer.state.step,
        "seconds": round(trainer.state_seconds, 1),
        "hardware": describe_hardware(potential.device),
    }
    save_potential(potential, out / POTENTIAL_FILE)
    write_json(out / "report.json", potential.metadata)
    plot_learning_curve(trainer.state.history, out / "learning_curve.png", first)
    name, shown = list(results.items())[-1]
    plot_parity(shown, f"{name} frames", out / "parity.png")
    for name, result in results.items():
        _log_errors(name, result)


def describe_hardware(device: torch.device) -> str:
    """What computed a number: the GPU's name, or the processor's with cores and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _log_errors(name: str, result: Evaluation) -> None:
    errors = result.errors
    logger.info(
        "%s (%d frames): energy MAE %.3f meV, force MAE %.3f meV/Å, force RMSE %.3f meV/Å",
        name,
        errors.frames,
        1e3 * errors.energy_mae,
        1e3 * errors.forces_mae,
        1e3 * errors.forces_rmse,
    )
