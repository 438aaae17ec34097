"""The training loop. A resumed run gives the same weights bit for bit; its state is one checkpoint file."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ponita_ff.data import Frame, frame_sizes
from ponita_ff.files import write_atomically
from ponita_ff.network.orientations import random_rotations
from ponita_ff.potential.potential import Potential
from ponita_ff.progress import progress_bar
from ponita_ff.signals import StopRequest, stop_between_steps
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from ponita_ff.training.config import CHECKPOINT_FILE, LossConfig, TrainConfig
from ponita_ff.training.evaluate import Errors, check_frame, evaluate, frame_graph
from ponita_ff.training.learning_rate_multipliers import learning_rate_multipliers
from ponita_ff.training.optimisers import FlatWeights, Optimiser
from ponita_ff.training.parallel import Processes, balance
from ponita_ff.training.resident import ResidentFrames, rotate_structures
from ponita_ff.training.step import LossTerms, TrainingStep

__all__ = ["Trainer", "TrainerState", "read_metrics", "saved_config", "validation_score"]

logger = logging.getLogger(__name__)

#: Graphs are cached if there are at most this many frames.
_MAX_CACHED_FRAMES = 20_000

#: Longest time between two checkpoints, s, however slow the steps are.
_CHECKPOINT_INTERVAL = 60.0

#: Steps between two looks at the losses on a GPU.
_FINITE_INTERVAL = 50

#: Stands for the fraction of a run that is to be stopped; fractions by time may be a little above 1.
_STOPPED = math.inf

_METRICS_FILE = "metrics.csv"

#: Steps between two updates of the progress bar.
_PROGRESS_INTERVAL = 20


class _GraphDataset(Dataset[Graph]):
    """Frames as graphs; they are cached after first use if there are few enough of them."""

    def __init__(self, frames: Sequence[Frame], potential: Potential) -> None:
        self.frames, self.potential = frames, potential
        self.cache: dict[int, Graph] | None = {} if len(frames) <= _MAX_CACHED_FRAMES else None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Graph:
        if self.cache is None:
            return self._build(index)
        if index not in self.cache:
            self.cache[index] = self._build(index)
        return self.cache[index]

    def _build(self, index: int) -> Graph:
        # The potential's species come from a sample of a large set, which may have missed a rare element.
        frame = self.frames[index]
        check_frame(self.potential, frame)
        return frame_graph(frame, self.potential.cutoff)


@dataclass(frozen=True)
class _BatchShard:
    """The structures of a batch that one process computes.

    Attributes:
        indices: Their indices in the training set.
        positions: Their positions in the whole batch.
        batch_size: Structures in the whole batch.
        fractions: Fractions of the whole batch's structures and atoms.
    """

    indices: list[int]
    positions: list[int]
    batch_size: int
    fractions: tuple[float, float] = (1.0, 1.0)


class _BatchSampler:
    """Draws the batches of all steps. A batch is a function of seed and step alone, so a resumed run repeats none.

    Args:
        frames: The training set.
        batch_size: Structures in a batch; smaller if there are fewer frames.
        seed: Seed of the order of the frames.
        start: First step of the iteration, which gives the indices of this process's shard of each batch.
        processes: The processes that each batch is distributed over.

    Raises:
        ValueError: For fewer structures in a batch than processes.
    """

    def __init__(self, frames: Sequence[Frame], batch_size: int, seed: int, start: int, processes: Processes) -> None:
        self.batch_size, self.seed, self.start = min(batch_size, len(frames)), seed, start
        self.processes = processes
        if self.batch_size < processes.world_size:
            raise ValueError(
                f"a batch of {self.batch_size} frames cannot be distributed over {processes.world_size} processes: "
                "raise optimiser.batch_size, or start fewer processes"
            )
        self.num_frames = len(frames)
        self.num_atoms = frame_sizes(frames) if processes.world_size > 1 else None
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def shard(self, step: int) -> _BatchShard:
        """This process's shard of the batch of a step."""
        epoch, batch = divmod(step, self.num_frames // self.batch_size)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_frames)
        indices = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        if self.num_atoms is None:
            return _BatchShard(indices.tolist(), list(range(len(indices))), len(indices))
        atoms = self.num_atoms[indices]
        positions = balance(atoms.tolist(), self.processes.world_size)[self.processes.rank]
        fractions = (len(positions) / len(indices), float(atoms[positions].sum() / atoms.sum()))
        return _BatchShard(indices[positions].tolist(), positions, len(indices), fractions)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.shard(step).indices for step in itertools.count(self.start))


class _FiniteWatch:
    """Raises an error once a loss is not finite; on a GPU up to 100 steps later, because to look at once means to wait.

    Nothing is lost by that: no checkpoint is written, and nothing validated, before :meth:`check`.

    Args:
        device: Where losses are.
        out: Folder of the run, for messages.
        interval: Steps from one look to the next; 1: at once.
    """

    def __init__(self, device: torch.device, out: Path, interval: int) -> None:
        self._out, self._interval, self._since = out, interval, 0
        #: Step and value of the first loss that is not finite; step −1 while there is none.
        self._first = torch.tensor([-1.0, 0.0], dtype=torch.float64, device=device)
        on_gpu = device.type == "cuda"
        self._copy = self._first.cpu().pin_memory() if on_gpu else self._first
        self._done = torch.cuda.Event() if on_gpu else None

    def see(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a step, at once or later.

        Raises:
            FloatingPointError: Naming the first step whose loss was not finite.
        """
        if self._interval == 1:
            if not bool(torch.isfinite(loss)):
                raise self._error(float(loss), step)
            return
        found = torch.stack([torch.full_like(loss, step, dtype=torch.float64), loss.double()])
        self._first = torch.where(~torch.isfinite(loss) & (self._first[0] < 0), found, self._first)
        self._since += 1
        if self._since == self._interval:
            self._since = 0
            self._look_back()

    def _look_back(self) -> None:
        """Look at what was copied at the last look, which is long since here, and copy what there is now."""
        if self._done is None:
            self._refuse(self._copy)
            self._copy = self._first
            return
        self._done.synchronize()
        self._refuse(self._copy)
        self._copy.copy_(self._first, non_blocking=True)
        self._done.record()

    def check(self) -> None:
        """Look at all losses so far.

        Raises:
            FloatingPointError: As :meth:`see`.
        """
        self._refuse(self._first)

    def _refuse(self, first: Tensor) -> None:
        step, value = first.tolist()
        if step >= 0:
            raise self._error(value, int(step))

    def _error(self, value: float, step: int) -> FloatingPointError:
        return FloatingPointError(
            f"the loss became {value} at step {step}: lower optimiser.learning_rate, or look for a wrong label in the "
            f"data; the last checkpoint in {self._out} is intact"
        )


@dataclass
class TrainerState:
    """Progress of a run.

    Attributes:
        step: Number of finished steps.
        elapsed: Seconds of training in earlier sessions.
        best_score: Lowest validation score.
        best_step: Its step.
        history: Rows of ``metrics.csv``.
    """

    step: int = 0
    elapsed: float = 0.0
    best_score: float = math.inf
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a potential and keeps the exponential moving average of its weights.

    Args:
        potential: The potential, trained in place.
        config: All settings.
        train: Frames to train on.
        validation: Frames to validate on.
        out: Folder for checkpoint, logs and results; created if missing.
        progress: Whether to show a progress bar.
        processes: Processes that train together, each on its shard of every batch. The main one validates and writes.
        check_folder: Called before the folder is written; raises if it is no longer this run's.

    Attributes:
        ema_potential: Potential with the exponential moving average of the weights; it is validated and written out.
        optimiser: Updates the weights.
        state: Progress of the run.
        training_step: Computes loss and gradient.
    """

    def __init__(
        self,
        potential: Potential,
        config: TrainConfig,
        train: Sequence[Frame],
        validation: Sequence[Frame],
        out: Path,
        progress: bool = True,
        processes: Processes | None = None,
        check_folder: Callable[[], object] = lambda: None,
    ) -> None:
        self.processes = processes or Processes()
        self._check_folder = check_folder
        self.potential, self.config, self.out = potential, config, out
        self.progress = progress and self.processes.is_main
        self.validation = validation
        self.dataset = _GraphDataset(train, potential)
        settings = config.optimiser
        self.ema_potential = copy.deepcopy(potential)
        self.optimiser = Optimiser(
            potential,
            settings.kind,
            settings.weight_decay,
            learning_rate_multipliers(potential, config),
            settings.rank if settings.trainable == "low-rank" else None,
            settings.muon_lr_multiplier,
        )
        self.ema_weights = FlatWeights(self.ema_potential, self.optimiser.matrices)
        self.state = TrainerState()
        self.training_step = TrainingStep(potential, config.loss, config.backend)
        self._session_start = self._last_checkpoint = 0.0
        self._finished = False
        self._watch = _FiniteWatch(potential.device, out, 1 if potential.device.type == "cpu" else _FINITE_INTERVAL)
        #: On a GPU: the frames there.
        self._resident: ResidentFrames | None = None
        if potential.device.type == "cuda" and ResidentFrames.fits(train, potential):
            self._resident = ResidentFrames(train, potential)
        self._best_weights: dict[str, Tensor] | None = None

    # ------------------------------------------------------------------ schedule

    def _fraction_done(self) -> float:
        """Fraction of the run that is done: of its steps or of its time, whichever is larger."""
        settings = self.config.optimiser
        fractions = [0.0]
        if settings.steps is not None:
            fractions.append(self.state.step / settings.steps)
        if settings.seconds is not None:
            fractions.append(self.elapsed_seconds / settings.seconds)
        return max(fractions)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training in this and all earlier sessions."""
        return self.state.elapsed + time.monotonic() - self._session_start

    def learning_rate(self, fraction: float) -> float:
        """Linear warm-up in steps, times a cosine that reaches zero at the end of the run.

        Args:
            fraction: Fraction of the run that is done.
        """
        settings = self.config.optimiser
        warmup = min(1.0, (self.state.step + 1) / max(settings.warmup_steps, 1))
        return settings.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))

    def _ema_decay(self) -> float:
        """Decay of the average in this step.

        The average never spans more than about a tenth of the steps so far, so that it forgets the initial weights.
        """
        return min(self.config.optimiser.ema_decay, self.state.step / (self.state.step + 10.0))

    # ------------------------------------------------------------------ loop

    def run(self) -> Potential:
        """Train to the end.

        A stop signal ends it after the present step with a checkpoint, from which it goes on as if never stopped.

        Returns:
            The averaged potential; after early stopping, the best one.

        Raises:
            FloatingPointError: If the loss is no longer finite; the last checkpoint is intact.
            OSError: If the folder cannot be written.
            KeyboardInterrupt: After a stop signal, with a checkpoint of the last step.
        """
        settings = self.config.optimiser
        self.out.mkdir(parents=True, exist_ok=True)
        self._session_start = self._last_checkpoint = time.monotonic()
        sampler = _BatchSampler(
            self.dataset.frames, settings.batch_size, self.config.seed, self.state.step, self.processes
        )
        loader = iter(()) if self._resident is not None else self._loader(sampler)
        bar = progress_bar(self.progress, total=1000, bar_format="{percentage:5.1f}% |{bar}| {desc}")
        metrics = _MetricsLog(self.out, self.state.step) if self.processes.is_main else nullcontext()
        ended = self._finished and self._patience_exhausted()
        terms: LossTerms | None = None
        with bar, metrics as log, stop_between_steps() as stop:
            while (fraction := self._common_fraction(ended, stop)) < 1.0:
                learning_rate = self.learning_rate(fraction)
                shard = sampler.shard(self.state.step)
                if self._resident is None:
                    batch = self._next_batch(loader, stop)
                else:
                    batch = self._resident_batch(self._resident, shard)
                terms = self._train_step(batch, shard, learning_rate)
                self.state.step += 1
                if log is None:
                    continue
                done = self._fraction_done() >= 1.0
                if self.state.step % settings.validate_every == 0 or done:
                    ended = self._validate(log, terms, learning_rate)
                if self._checkpoint_is_due():
                    self.save_checkpoint()
                if self.state.step % _PROGRESS_INTERVAL == 0 or done:
                    self._update_progress(bar, fraction, terms)
            self._finished = fraction < _STOPPED
            if log is not None and terms is not None and self._finished and not self._is_validated():
                # The time was over only after the last step had been looked at.
                self._validate(log, terms, learning_rate)
            if self.processes.is_main:
                self.save_checkpoint()
            if not self._finished:
                raise stop.error()
        if ended and self._best_weights is not None:
            self.ema_potential.load_state_dict(self._best_weights)
        return self.ema_potential

    def _is_validated(self) -> bool:
        """Whether the weights of the present step are."""
        history = self.state.history
        return bool(history) and history[-1]["step"] == self.state.step

    def _checkpoint_is_due(self) -> bool:
        by_steps = self.state.step % self.config.optimiser.checkpoint_every == 0
        return by_steps or time.monotonic() - self._last_checkpoint >= _CHECKPOINT_INTERVAL

    def _next_batch(self, loader: Iterator[Graph], stop: StopRequest) -> Graph:
        try:
            return next(loader)
        except RuntimeError:
            # The signal was sent to the whole group, and a process that prepares batches has ended by it.
            if stop.number is not None and self.config.workers:
                raise stop.error() from None
            raise

    def _loader(self, sampler: _BatchSampler) -> Iterator[Graph]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=batch_graphs,
            num_workers=self.config.workers,
            generator=torch.Generator(),  # else the loader would draw from torch's global generator
        )
        return iter(loader)

    def _common_fraction(self, ended: bool, stop: StopRequest) -> float:
        """Fraction of the run that is done, 1 after early stopping, :data:`_STOPPED` after a stop signal.

        It is that of the main process, so that all processes end at the same step.
        """
        fraction = 1.0 if ended else self._fraction_done()
        if fraction < 1.0 and stop.number is not None:
            fraction = _STOPPED
        if self.processes.world_size == 1:
            return fraction
        common = torch.tensor(fraction, dtype=torch.float64, device=self.potential.device)
        self.processes.broadcast_(common)
        return float(common)

    def _resident_batch(self, resident: ResidentFrames, shard: _BatchShard) -> Graph:
        rotations = self._rotations(shard)[shard.positions] if self.config.rotate else None
        return resident.batch(shard.indices, rotations)

    def _rotations(self, shard: _BatchShard) -> NDArray[np.float64]:
        return random_rotations(shard.batch_size, (self.config.seed, self.state.step, 1))

    def _train_step(self, graph: Graph, shard: _BatchShard, learning_rate: float) -> LossTerms:
        if self.config.rotate and self._resident is None:
            rotations = self._rotations(shard)
            rotate_structures(graph, torch.from_numpy(rotations[shard.positions]))
        terms = self._all_reduce(self.training_step(graph.to(self.potential.device), shard.fractions))
        self._watch.see(terms.loss, self.state.step)
        self.optimiser.step(learning_rate, self.config.optimiser.clip_norm)
        self.ema_weights.values.lerp_(self.optimiser.weights.values, 1.0 - self._ema_decay())
        return terms

    def _all_reduce(self, terms: LossTerms) -> LossTerms:
        """Add up loss terms and gradients over all processes; the gradients in place."""
        if self.processes.world_size == 1:
            return terms
        values = torch.stack([value.double() for value in (terms.loss, terms.energy_mae, terms.forces_mae)])
        self.processes.all_reduce_(values)
        self.processes.all_reduce_(self.optimiser.weights.gradients)
        return LossTerms(*values.unbind())

    def _validate(self, log: _MetricsLog, terms: LossTerms, learning_rate: float) -> bool:
        """Validate the averaged potential and log the result.

        Returns:
            Whether to stop early.
        """
        self._watch.check()
        self._check_folder()
        errors = evaluate(self.ema_potential, self.validation).errors
        score = validation_score(errors, self.config.loss)
        if score < self.state.best_score:
            self.state.best_score, self.state.best_step = score, self.state.step
            if self.config.optimiser.patience is not None:
                self._best_weights = {name: tensor.clone() for name, tensor in self.ema_potential.state_dict().items()}
        row = {
            "step": float(self.state.step),
            "seconds": self.elapsed_seconds,
            "learning_rate": learning_rate,
            "train_loss": float(terms.loss),
            "validation_score": score,
            "validation_energy_mae": errors.energy_mae,
            "validation_forces_mae": errors.forces_mae,
        }
        self.state.history.append(row)
        log.write(row)
        if not self._patience_exhausted():
            return False
        logger.info("no better validation in a while (optimiser.patience): stopping early at step %d", self.state.step)
        return True

    def _patience_exhausted(self) -> bool:
        settings = self.config.optimiser
        without_improvement = (self.state.step - self.state.best_step) // settings.validate_every
        return settings.patience is not None and without_improvement >= settings.patience

    def _update_progress(self, bar: tqdm[Any], fraction: float, terms: LossTerms) -> None:
        bar.n = round(1000 * min(fraction, 1.0))
        left = self.elapsed_seconds * (1.0 - fraction) / max(fraction, 1e-9)
        text = f"step {self.state.step}, {_duration(left)} left, batch F {1e3 * float(terms.forces_mae):.1f} meV/Å"
        if self.state.history:
            last = self.state.history[-1]
            text += (
                f", validation F {1e3 * last['validation_forces_mae']:.2f} meV/Å"
                f" E {1e3 * last['validation_energy_mae']:.2f} meV"
            )
        bar.set_description_str(text)

    # ------------------------------------------------------------------ state

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint file of the run."""
        return self.out / CHECKPOINT_FILE

    def _check_finite(self) -> None:
        """Refuse weights that the last update has made infinite or NaN: no later loss would show it.

        Raises:
            FloatingPointError: Naming the step.
        """
        if not bool(
            torch.isfinite(self.optimiser.weights.values).all() & torch.isfinite(self.ema_weights.values).all()
        ):
            raise FloatingPointError(
                f"a weight is not finite after step {self.state.step}: lower optimiser.learning_rate; the last "
                f"checkpoint in {self.out} is intact"
            )

    def save_checkpoint(self) -> None:
        """Write all that the rest of the run depends on; the old file is replaced only by a complete new one.

        Batches and rotations are functions of seed and step, so no state of a random generator is needed.

        Raises:
            FloatingPointError: If a weight is not finite; the old checkpoint is intact.
            OSError: With the reason (full disk, no permission, deleted folder); the old checkpoint is intact.
        """
        self._watch.check()
        self._check_finite()
        self._check_folder()
        state = self.state
        content: Checkpoint = {
            "config": self.config.model_dump_json(),
            "potential": self.potential.state_dict(),
            "ema_potential": self.ema_potential.state_dict(),
            "best_weights": self._best_weights,
            "optimiser": self.optimiser.state_dict(),
            "state": {
                "step": state.step,
                "elapsed": self.elapsed_seconds,
                "best_score": state.best_score,
                "best_step": state.best_step,
                "history": state.history,
            },
            "finished": self._finished,
        }
        write_checkpoint(self.checkpoint_path, content)
        self._last_checkpoint = time.monotonic()

    def load_checkpoint(self) -> None:
        """Continue from the checkpoint in the folder.

        Raises:
            CheckpointError: If the file is damaged or belongs to another version.
            ValueError: If it is missing or belongs to other settings.
        """
        path = self.checkpoint_path
        try:
            content = read_checkpoint(path, self.potential.device)
        except FileNotFoundError:
            raise ValueError(f"nothing to resume: there is no {path}") from None
        before = saved_config(content, path)
        if not self.config.can_resume(before):
            raise ValueError(f"{path} was made with other settings; resume with the config.yaml beside it")
        try:
            self.potential.load_state_dict(content["potential"])
            self.ema_potential.load_state_dict(content["ema_potential"])
            self.optimiser.load_state_dict(content["optimiser"])
        except Exception as error:  # torch's optimisers raise anything for what they did not write
            raise CheckpointError(f"{path} does not fit its own settings: {error}") from None
        self._best_weights = content["best_weights"]
        self.state = TrainerState(**content["state"])
        # A run that has stopped early goes on only if it is asked for more.
        self._finished = content["finished"] and before.optimiser == self.config.optimiser


def saved_config(content: Checkpoint, path: Path) -> TrainConfig:
    """The settings that a checkpoint was made with.

    Args:
        content: The checkpoint.
        path: Its file, for messages.

    Raises:
        CheckpointError: If they are no settings.
    """
    try:
        return TrainConfig.from_mapping(json.loads(content["config"]), str(path)).with_absolute_paths()
    except ValueError as error:
        raise CheckpointError(f"{path} is not a training checkpoint: {error}") from None


def validation_score(errors: Errors, loss: LossConfig) -> float:
    """Validation errors with the weights of the loss, which early stopping watches.

    Args:
        errors: Validation errors.
        loss: Settings of the loss; its stress is not part of the score.
    """
    return loss.energy * errors.energy_mae_per_atom + loss.forces * errors.forces_mae


def _duration(seconds: float) -> str:
    """Seconds as [h:]mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def read_metrics(out: Path) -> list[dict[str, float]]:
    """Rows of ``metrics.csv`` in the folder of a run; none if there is no such file.

    Raises:
        ValueError: Naming the file and line, if it is not such a table.
    """
    path = out / _METRICS_FILE
    if not path.exists():
        return []
    rows: list[dict[str, float]] = []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file):
                rows.append({name: float(value) for name, value in row.items()})
                rows[-1]["step"]
        except (KeyError, TypeError, ValueError, csv.Error):
            raise ValueError(
                f"{path}, line {len(rows) + 2}: not a row of numbers; delete that line, or move the file away"
            ) from None
    return rows


class _MetricsLog:
    """Writes ``metrics.csv`` and TensorBoard events.

    Args:
        out: Folder of the run.
        step: Step that the run resumes from, 0 for a new run; later rows of the file are dropped.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / _METRICS_FILE
        self.rows = [row for row in read_metrics(out) if row["step"] <= step] if step > 0 else []
        self.step = step

    def __enter__(self) -> _MetricsLog:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError) if kind else nullcontext():  # of a full disk, for the second time
            self.writer.close()

    def write(self, row: dict[str, float]) -> None:
        """Add a row to both logs."""
        self.rows.append(row)

        def dump(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, dump, make_folder=False)
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))
        self.writer.flush()
