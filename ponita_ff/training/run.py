"""A training run: read and split the data, train, write the potential, report its errors."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
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
    file_sha256,
    files_sha256,
    joined_split,
    random_split,
    read_frames,
    rmd17_split,
)
from ponita_ff.files import write_json, write_text
from ponita_ff.potential.device import choose_device
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import describe_hardware
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import CHECKPOINT_FILE, FIRST_STAGE_FOLDER, POTENTIAL_FILE, DataConfig, TrainConfig
from ponita_ff.training.evaluate import Errors, evaluate, frame_graph
from ponita_ff.training.parallel import Processes, process_group
from ponita_ff.training.plots import plot_learning_curve, plot_parity
from ponita_ff.training.replay import mix_frames, split_replay, with_reference_energies_of
from ponita_ff.training.trainer import Trainer, read_metrics

__all__ = ["TrainingData", "is_started", "prepare_data", "train", "training_domain"]

logger = logging.getLogger(__name__)

_SPLIT_FILE = "split.json"

#: Frames that statistics of the training data are of, at most, and atoms that are looked at together.
_DOMAIN_FRAMES, _DOMAIN_ATOMS = 20_000, 1000


@dataclass(frozen=True)
class TrainingData:
    """Frames of a run.

    Attributes:
        train: Frames to train on.
        validation: Frames to validate on.
        test: Frames for the errors reported at the end.
        replay: Replayed frames that are trained on.
        replay_holdout: Replayed frames that are held out to measure what the start forgets.
        split: Which frames of the files are in ``train``, ``validation`` and ``test``.
        provenance: Files, hashes and numbers of frames, for the potential's metadata.
    """

    train: Sequence[Frame]
    validation: Sequence[Frame]
    test: Sequence[Frame]
    replay: Sequence[Frame]
    replay_holdout: Sequence[Frame]
    split: Split
    provenance: dict[str, Any]


def prepare_data(config: DataConfig, out: Path) -> TrainingData:
    """Read and split the data.

    Args:
        config: Settings of the data.
        out: Folder of the run. If it holds a split, that is used again, so that a resumed run keeps it.

    Raises:
        DataError: For data that cannot be used, naming file and frame.
    """
    if config.test is not None and config.test_frames:
        raise DataError("data: give either test, a file, or test_frames, a number, not both")
    parts = [_read(config, path) for path in config.files]
    frames = parts[0] if len(parts) == 1 else JoinedFrames(parts)
    digest = files_sha256(config.files)
    split = _split(config, parts, out / _SPLIT_FILE, digest)
    train: Sequence[Frame]
    test: Sequence[Frame]
    train, validation, test = split.apply(frames)
    extra_train = JoinedFrames([read_frames(path) for path in config.extra_train])
    if config.extra_train:
        train = JoinedFrames([train, extra_train])
    if config.test is not None:
        test = JoinedFrames([_read(config, path) for path in config.test_files])
    replay, replay_holdout = split_replay(JoinedFrames([read_frames(path) for path in config.replay]))
    provenance: dict[str, Any] = {"file": _names(config.files), "sha256": digest, "train": len(train)}
    provenance |= {"validation": len(validation), "protocol": config.protocol, "split_seed": config.seed}
    provenance["files_sha256"] = [file_sha256(path) for path in config.files]
    provenance |= _files_provenance("extra_train", config.extra_train)
    if config.extra_train:
        provenance["extra_train"] = len(extra_train)
    provenance |= _files_provenance("test", config.test_files) | {"test": len(test)}
    provenance |= _files_provenance("replay", config.replay)
    if config.replay:
        provenance["replay"] = len(replay)
    return TrainingData(train, validation, test, replay, replay_holdout, split, provenance)


def _split(config: DataConfig, parts: Sequence[Sequence[Frame]], path: Path, sha256: str) -> Split:
    """The split that was saved at ``path``, else a new one of the frames of all files."""
    if path.exists():
        return Split.load(path, source=config.files)
    if config.protocol == "rmd17":
        return joined_split([rmd17_split(len(part), config.seed) for part in parts], source_sha256=sha256)
    assert config.train is not None and config.validation is not None  # checked with the settings
    number = sum(len(part) for part in parts)
    return random_split(number, config.train, config.validation, config.test_frames, config.seed, source_sha256=sha256)


def _files_provenance(name: str, files: Sequence[Path]) -> dict[str, Any]:
    """Names and hashes of some files: ``name``_file, ``name``_sha256 of all together, and ``name``_files_sha256."""
    if not files:
        return {}
    hashes = [file_sha256(path) for path in files]
    return {f"{name}_file": _names(files), f"{name}_sha256": files_sha256(files), f"{name}_files_sha256": hashes}


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


def _device(name: str) -> torch.device:
    if name != "auto":
        return choose_device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # torchrun starts one process for each GPU of a machine.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def train(config: TrainConfig, out: Path, resume: bool = False, progress: bool = True) -> Potential:
    """Train a potential and write potential, settings, split, logs and plots to a folder.

    Under ``torchrun``, all processes train together on the batches that a single process would have; the main process
    writes.

    Args:
        config: All settings.
        out: Folder of the run.
        resume: Continue from the checkpoint in the folder.
        progress: Whether to show a progress bar.

    Returns:
        The averaged potential, as written to ``out``.

    Raises:
        SettingsError, DataError: For settings or data that cannot be used.
        ValueError: If the folder already holds a run, or holds none to resume.
        FloatingPointError: If the loss is no longer finite.
        OSError: If the folder cannot be written.
    """
    device = _device(config.device)
    if not resume and is_started(out):
        raise ValueError(f"{out} already holds a run: continue it (ponita-ff train --out does), or give another folder")
    *earlier, (last_stage, _) = config.stages(out)
    with process_group(device) as processes:
        for stage, folder in earlier:
            if processes.is_main:
                _save_config(config, out)
            if not (resume and (folder / POTENTIAL_FILE).exists()):
                _train_stage(stage, stage, folder, (folder / CHECKPOINT_FILE).exists(), progress, device, processes)
            processes.barrier()
            resume = (out / CHECKPOINT_FILE).exists()
        return _train_stage(last_stage, config, out, resume, progress, device, processes)


def is_started(out: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return any((folder / CHECKPOINT_FILE).exists() for folder in (out, out / FIRST_STAGE_FOLDER))


def _save_config(config: TrainConfig, out: Path) -> None:
    """Write the settings, with all defaults."""
    text = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    write_text(out / "config.yaml", text)


def _train_stage(
    stage: TrainConfig,
    saved_config: TrainConfig,
    out: Path,
    resume: bool,
    progress: bool,
    device: torch.device,
    processes: Processes,
) -> Potential:
    """Train one stage of a run.

    Args:
        stage: Settings of the stage.
        saved_config: Settings that are written to ``config.yaml``: of the whole run in its last stage.
        out: Folder of the stage.
        resume: Continue from the checkpoint in the folder.
        progress: Whether to show a progress bar.
        device: Where to train.
        processes: Processes that train together.
    """
    data = prepare_data(stage.data, out)
    potential = build_potential(stage, data.train).to(device)
    frames = data.train
    if saved_config.potential.start is not None:
        # Replayed frames belong to the potential that the run starts from, in the final stage as well.
        base = load_potential(saved_config.potential.start)
        replay = with_reference_energies_of(potential, data.replay, base)
        frames = mix_frames(data.train, replay, stage.data.replay_share)
    trainer = Trainer(potential, stage, frames, data.validation, out, progress, processes)
    if resume:
        trainer.load_checkpoint()
    elif processes.is_main:
        _save_config(saved_config, out)
        data.split.save(out / _SPLIT_FILE)
    if processes.is_main:
        logger.info(
            "training on %d frames%s, validating on %d; %d weights, %s",
            len(data.train),
            f" and {len(data.replay)} replayed ones" if len(data.replay) else "",
            len(data.validation),
            trainer.optimiser.weights.values.numel(),
            potential.device,
        )
    trained = trainer.run()
    trained.average_rotations(stage.potential.rotations)
    if processes.is_main:
        first_stage = read_metrics(out / FIRST_STAGE_FOLDER) if saved_config.final_stage else []
        _report(trained, trainer, data, out, first_stage)
    return trained


def _report(
    potential: Potential,
    trainer: Trainer,
    data: TrainingData,
    out: Path,
    first_stage: list[dict[str, float]],
) -> None:
    """Evaluate a trained potential and write its file, ``report.json`` and plots.

    Args:
        potential: The trained potential; its metadata are completed.
        trainer: What trained it.
        data: Validation and test frames, and where all frames are from.
        out: Folder of the stage.
        first_stage: Rows of ``metrics.csv`` of the first stage, in a run with a final stage.
    """
    results = {"validation": evaluate(potential, data.validation, backend="auto")}
    if len(data.test):
        results["test"] = evaluate(potential, data.test, backend="auto")
    potential.domain = training_domain(potential, JoinedFrames([data.train, data.replay]))
    potential.metadata["data"] = data.provenance
    potential.metadata["errors"] = {name: result.errors.as_dict() for name, result in results.items()}
    potential.metadata["training"] = {
        "steps": trainer.state.step,
        "seconds": round(trainer.elapsed_seconds, 1),
        "hardware": describe_hardware(potential.device),
    }
    save_potential(potential, out / POTENTIAL_FILE)
    write_json(out / "report.json", potential.metadata)
    plot_learning_curve(trainer.state.history, out / "learning_curve.png", first_stage)
    name, result = list(results.items())[-1]
    plot_parity(result, f"{name} frames", out / "parity.png")
    for name, result in results.items():
        _log_errors(name, result.errors)


def training_domain(potential: Potential, frames: Sequence[Frame]) -> TrainingDomain:
    """Statistics of the frames that a potential was trained on, of at most 20,000 of them, evenly spaced."""
    every = max(1, -(-len(frames) // _DOMAIN_FRAMES))

    def batches() -> Iterator[Graph]:
        batch: list[Graph] = []
        for index in range(0, len(frames), every):
            batch.append(frame_graph(frames[index], potential.cutoff))
            if sum(graph.num_nodes for graph in batch) >= _DOMAIN_ATOMS:
                yield batch_graphs(batch)
                batch = []
        if batch:
            yield batch_graphs(batch)

    return TrainingDomain.from_graphs(batches(), potential.species, potential.cutoff)


def _log_errors(name: str, errors: Errors) -> None:
    logger.info(
        "%s (%d frames): energy MAE %.3f meV, force MAE %.3f meV/Å, force RMSE %.3f meV/Å",
        name,
        errors.frames,
        1e3 * errors.energy_mae,
        1e3 * errors.forces_mae,
        1e3 * errors.forces_rmse,
    )
