"""A training run: read and split the data, train, write the potential, report its errors."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from ponita_ff.outputs import OutputError, claim_folder, is_claimed
from ponita_ff.potential.device import choose_device
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import describe_hardware
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.build import build_potential
from ponita_ff.training.checkpoint import read_checkpoint
from ponita_ff.training.config import CHECKPOINT_FILE, FIRST_STAGE_FOLDER, POTENTIAL_FILE, DataConfig, TrainConfig
from ponita_ff.training.evaluate import Errors, evaluate, frame_graph
from ponita_ff.training.parallel import Processes, process_group
from ponita_ff.training.plots import plot_learning_curve, plot_parity
from ponita_ff.training.replay import mix_frames, split_replay, with_reference_energies_of
from ponita_ff.training.report_page import PICTURES, REPORT_PAGE, write_report_page
from ponita_ff.training.trainer import Trainer, read_metrics, saved_config

__all__ = [
    "RUN_FILES",
    "RunFolder",
    "TrainingData",
    "finished_potential",
    "is_started",
    "prepare_data",
    "run_folder",
    "train",
    "train_in",
    "training_domain",
]

logger = logging.getLogger(__name__)

_SPLIT_FILE, _CONFIG_FILE = "split.json", "config.yaml"

#: What a run overwrites in its folder. Settings and split may have been put there by the user, and are kept.
RUN_FILES = (CHECKPOINT_FILE, POTENTIAL_FILE, "report.json", REPORT_PAGE, "metrics.csv", *PICTURES)

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
        out: Folder of the run. If it (or its first stage) holds a split, that is used again, so that a resumed run
            keeps it.

    Raises:
        DataError: For data that cannot be used, naming file and frame.
    """
    if config.test is not None and config.test_frames:
        raise DataError("data: give either test, a file, or test_frames, a number, not both")
    parts = [_read(config, path) for path in config.files]
    frames = parts[0] if len(parts) == 1 else JoinedFrames(parts)
    digest = files_sha256(config.files)
    places = [out / _SPLIT_FILE, out / FIRST_STAGE_FOLDER / _SPLIT_FILE]
    split = _split(config, parts, next((path for path in places if path.exists()), places[0]), digest)
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


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, locked by its main process.

    Attributes:
        path: The folder.
        check: Raises if the folder was deleted or begun anew by another run.
    """

    path: Path
    check: Callable[[], object]


def train(
    config: TrainConfig, out: Path, resume: bool = False, progress: bool = True, force: bool = False
) -> Potential:
    """Train a potential and write potential, settings, split, logs and plots to a folder.

    Under ``torchrun``, all processes train together on the batches that a single process would have; the main process
    writes.

    Args:
        config: All settings; relative paths start at the working directory.
        out: Folder of the run.
        resume: Continue from the checkpoint in the folder.
        progress: Whether to show a progress bar.
        force: Overwrite a potential or settings of something else in the folder.

    Returns:
        The averaged potential, as written to ``out``.

    Raises:
        SettingsError, DataError: For settings or data that cannot be used.
        LockedError: If another run is using the folder.
        ValueError: If the folder already holds a run, or holds none to resume.
        FloatingPointError: If the loss is no longer finite.
        OSError: If the folder cannot be written, or was deleted meanwhile.
        KeyboardInterrupt: After a stop signal; resume the run to continue.
    """
    config = config.with_absolute_paths()
    with run_folder(config, out, resume, force) as folder:
        finished = finished_potential(config, out) if resume else None
        return finished or train_in(folder, config, resume, progress)


@contextmanager
def run_folder(config: TrainConfig, out: Path, resume: bool, force: bool = False) -> Iterator[RunFolder]:
    """Lock the folder of a run, and refuse a new run where something else would be overwritten.

    A run that was stopped before its first checkpoint begins anew, with a warning.

    Args:
        config, out, resume, force: As of :func:`train`.

    Raises:
        LockedError, ValueError, OSError: As :func:`train`.
    """
    if int(os.environ.get("RANK", "0")) != 0:  # torchrun's number of this process: the main one holds the lock
        yield RunFolder(out, lambda: None)
        return
    if not resume and is_started(out):
        raise ValueError(f"{out} already holds a run: continue it (ponita-ff train --out does), or give another folder")
    ours = is_claimed(out / _CONFIG_FILE)
    with claim_folder(out, RUN_FILES) as lock:
        if not resume:
            _clear_for_new_run(config, out, ours, force)
            made = {name for name in (_CONFIG_FILE, _SPLIT_FILE) if ours or not (out / name).exists()}
            lock.update({"files": sorted({*lock.content["files"], *made})})
        yield RunFolder(out, lock.check)


def _clear_for_new_run(config: TrainConfig, out: Path, ours: bool, force: bool) -> None:
    """Refuse to lose what lies in a folder without a checkpoint; take away what a stopped run left."""
    if (out / POTENTIAL_FILE).exists() and not force:
        raise OutputError(
            f"{out / POTENTIAL_FILE} exists without a {CHECKPOINT_FILE} to continue from, and would be overwritten: "
            "give another folder, move the file away, or give --force"
        )
    path = out / _CONFIG_FILE
    if not path.exists():
        return
    if ours:
        logger.warning("%s holds a run that was stopped before its first checkpoint: it begins anew", out)
    same = _holds(path, config)
    if not (ours or same or force):
        raise OutputError(
            f"{path} holds other settings, and no run to continue: give another folder, move the file away, or give "
            "--force to overwrite it"
        )
    if not same:
        path.unlink()
        if ours:
            (out / _SPLIT_FILE).unlink(missing_ok=True)  # of other settings


def _holds(path: Path, config: TrainConfig) -> bool:
    """Whether a file holds these settings."""
    try:
        return TrainConfig.from_yaml(path).with_absolute_paths() == config
    except ValueError:
        return False


def finished_potential(config: TrainConfig, out: Path) -> Potential | None:
    """The potential of a run that has come to its end with exactly these settings; None if there is more to do.

    Args:
        config: All settings, with absolute paths.
        out: Folder of the run.
    """
    stage, _ = config.stages(out.resolve())[-1]
    path = out / CHECKPOINT_FILE
    if not (path.exists() and (out / POTENTIAL_FILE).exists()):
        return None
    content = read_checkpoint(path, torch.device("cpu"))
    if not content["finished"] or not _same_run(saved_config(content, path), stage):
        return None
    logger.info(
        "already finished: %s holds %d steps; more of them, or more time, make the run longer",
        out,
        content["state"]["step"],
    )
    return load_potential(out / POTENTIAL_FILE)


def _same_run(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two settings give the same potential and report."""
    free = {"device", "workers", "backend"}
    return one.model_dump(exclude=free) == other.model_dump(exclude=free)


def train_in(
    folder: RunFolder,
    config: TrainConfig,
    resume: bool,
    progress: bool,
    prepared: Callable[[TrainingData], object] = lambda _: None,
) -> Potential:
    """Train in a locked folder; see :func:`train`.

    Args:
        folder: From :func:`run_folder`.
        config: All settings, with absolute paths.
        resume: Continue from the checkpoint in the folder.
        progress: Whether to show a progress bar.
        prepared: Called with the data before the training.
    """
    device, out = _device(config.device), folder.path
    *earlier, (last_stage, _) = config.stages(out.resolve())
    with process_group(device) as processes:
        processes.barrier()
        data = prepare_data(config.data, out)
        prepared(data)
        if processes.is_main and not resume:
            _save_config(config, out)
        run = _Run(folder, config, data, progress, device, processes)
        for stage, path in earlier:
            if not (resume and (path / POTENTIAL_FILE).exists()):
                run.train_stage(stage, stage, path, (path / CHECKPOINT_FILE).exists())
            processes.barrier()
            resume = (out / CHECKPOINT_FILE).exists()
        return run.train_stage(last_stage, config, out, resume)


def is_started(out: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return any((folder / CHECKPOINT_FILE).exists() for folder in (out, out / FIRST_STAGE_FOLDER))


def _save_config(config: TrainConfig, out: Path) -> None:
    """Write the settings, with all defaults; a file that holds them already stays as it is."""
    path = out / _CONFIG_FILE
    if not path.exists():
        write_text(path, yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))


@dataclass(frozen=True)
class _Run:
    """What the stages of a run share.

    Attributes:
        folder: Folder of the run.
        config: Settings of the whole run.
        data: Its data.
        progress: Whether to show a progress bar.
        device: Where to train.
        processes: Processes that train together.
    """

    folder: RunFolder
    config: TrainConfig
    data: TrainingData
    progress: bool
    device: torch.device
    processes: Processes

    def train_stage(self, stage: TrainConfig, saved_config: TrainConfig, out: Path, resume: bool) -> Potential:
        """Train one stage.

        Args:
            stage: Settings of the stage.
            saved_config: Settings that are written to ``config.yaml``: of the whole run in its last stage.
            out: Folder of the stage.
            resume: Continue from the checkpoint in the folder.
        """
        data, processes = self.data, self.processes
        potential = build_potential(stage, data.train).to(self.device)
        frames = data.train
        if self.config.potential.start is not None:
            # Replayed frames belong to the potential that the run starts from, in the final stage as well.
            base = load_potential(self.config.potential.start)
            replay = with_reference_energies_of(potential, data.replay, base)
            frames = mix_frames(data.train, replay, stage.data.replay_share)
        check = self.folder.check
        trainer = Trainer(potential, stage, frames, data.validation, out, self.progress, processes, check)
        if resume:
            trainer.load_checkpoint()
        elif processes.is_main:
            _save_config(saved_config, out)
            if not (out / _SPLIT_FILE).exists():
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
            check()
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
    """Evaluate a trained potential and write its file, ``report.json``, plots and the page with all of these.

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
    write_report_page(out)
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
