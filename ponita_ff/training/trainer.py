"""The training loop: resumable bit for bit, with all of its state in one checkpoint written atomically."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
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
from ponita_ff.structure.graph import Graph, batch_graphs
from ponita_ff.training.config import CHECKPOINT_FILE, LossConfig, TrainConfig
from ponita_ff.training.evaluate import Errors, check_frame, evaluate, frame_graph
from ponita_ff.training.optimisers import FlatWeights, Optimiser
from ponita_ff.training.parallel import Processes, deal
from ponita_ff.training.speeds import speeds
from ponita_ff.training.step import LossTerms, TrainingStep

__all__ = ["Trainer", "read_metrics"]

logger = logging.getLogger(__name__)

#: Graphs of at most this many frames are kept in memory after their first use.
_CACHED_FRAMES = 20_000

_CHECKPOINT_VERSION = 3
_METRICS_FILE = "metrics.csv"


class _GraphDataset(Dataset[Graph]):
    """Frames as graphs, kept after first use when there are few enough of them."""

    def __init__(self, frames: Sequence[Frame], potential: Potential) -> None:
        self.frames, self.potential = frames, potential
        self.cache: dict[int, Graph] | None = {} if len(frames) <= _CACHED_FRAMES else None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Graph:
        if self.cache is None:
            return self._graph(index)
        if index not in self.cache:
            self.cache[index] = self._graph(index)
        return self.cache[index]

    def _graph(self, index: int) -> Graph:
        # Species come from a sample of a large set: a rare element may have been missed.
        frame = self.frames[index]
        check_frame(self.potential, frame)
        return frame_graph(frame, self.potential.cutoff)


@dataclass(frozen=True)
class _Part:
    """What one process does of a batch.

    Attributes:
        indices: Its frames.
        positions: Their places in the whole batch.
        structures: How many the whole batch has.
        shares: Of the batch's structures and atoms.
    """

    indices: list[int]
    positions: list[int]
    structures: int
    shares: tuple[float, float] = (1.0, 1.0)


class _Batches:
    """A process's part of each batch, a pure function of seed and step: a resumed run sees what it would have seen.

    Iterating gives the frames from step ``start`` on.
    """

    def __init__(self, frames: Sequence[Frame], batch_size: int, seed: int, start: int, processes: Processes) -> None:
        self.size, self.seed, self.start, self.processes = min(batch_size, len(frames)), seed, start, processes
        if self.size < processes.size:
            raise ValueError(
                f"a batch of {self.size} frames cannot be dealt out to {processes.size} processes: raise "
                "optimiser.batch_size, or start fewer"
            )
        self.frames = len(frames)
        self.atoms = frame_sizes(frames) if processes.size > 1 else None
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def part(self, step: int) -> _Part:
        """Of the batch of a step."""
        epoch, batch = divmod(step, self.frames // self.size)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.frames)
        indices = self._order[1][batch * self.size : (batch + 1) * self.size]
        if self.atoms is None:
            return _Part(indices.tolist(), list(range(len(indices))), len(indices))
        atoms = self.atoms[indices]
        own = deal(atoms.tolist(), self.processes.size)[self.processes.rank]
        shares = (len(own) / len(indices), float(atoms[own].sum() / atoms.sum()))
        return _Part(indices[own].tolist(), own, len(indices), shares)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.part(step).indices for step in itertools.count(self.start))


def _rotate(graph: Graph, rotations: Tensor) -> None:
    """Turn every structure of a batch, labels and all, by its own rotation."""
    per_atom = rotations[graph.batch]
    for name in ("positions", "forces"):
        graph[name] = (per_atom @ graph[name].unsqueeze(-1)).squeeze(-1)
    graph.offsets = graph.offsets @ per_atom.transpose(-1, -2)
    graph.cell = graph.cell @ rotations.transpose(-1, -2)
    if "stress" in graph:
        graph.stress = rotations @ graph.stress @ rotations.transpose(-1, -2)


@dataclass
class _State:
    """Where a run stands, all of it numbers."""

    step: int = 0
    elapsed: float = 0.0
    best: float = math.inf
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a potential and keeps its average.

    Args:
        potential: Trained in place.
        config: All settings.
        train, validation: Labelled frames.
        out: Folder for checkpoint, logs and results; made when missing.
        progress: Whether to show a progress bar.
        processes: Those that train together, each with its part of every batch; the leading one validates and writes.

    Attributes:
        average: The exponential moving average of the potential: what is validated and written out.
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
    ) -> None:
        self.processes = processes or Processes()
        self.potential, self.config, self.out = potential, config, out
        self.progress = progress and self.processes.leads
        self.validation = validation
        self.dataset = _GraphDataset(train, potential)
        settings = config.optimiser
        self.average = copy.deepcopy(potential)
        rank = settings.rank if settings.trains == "low-rank" else None
        self.optimiser = Optimiser(
            potential, settings.kind, settings.weight_decay, speeds(potential, config), rank, settings.muon_rate
        )
        self._averaged = FlatWeights(self.average, self.optimiser.matrices)
        self.state = _State()
        self.step_function = TrainingStep(potential, config.loss, config.backend)
        self._clock = 0.0
        self._best: dict[str, Tensor] | None = None

    # ------------------------------------------------------------------ schedule

    def _fraction_done(self) -> float:
        """Share of the run behind us, by steps or by the wall clock, whichever ends it first."""
        settings = self.config.optimiser
        shares = [0.0]
        if settings.steps is not None:
            shares.append(self.state.step / settings.steps)
        if settings.seconds is not None:
            shares.append(self._elapsed() / settings.seconds)
        return max(shares)

    def _elapsed(self) -> float:
        """Seconds of training in this and all resumed sessions."""
        return self.state.elapsed + time.monotonic() - self._clock

    def learning_rate(self, fraction: float) -> float:
        """Linear warm-up in steps times a cosine that reaches zero at the end of the run."""
        settings = self.config.optimiser
        warmup = min(1.0, (self.state.step + 1) / max(settings.warmup_steps, 1))
        return settings.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))

    # ------------------------------------------------------------------ loop

    def run(self) -> Potential:
        """Train to the end and return the averaged potential; after early stopping, the best one seen.

        Raises:
            FloatingPointError: When the loss stops being finite; the last checkpoint is intact.
            OSError: When the folder cannot be written.
        """
        settings = self.config.optimiser
        self._clock = time.monotonic()
        batches = _Batches(self.dataset.frames, settings.batch_size, self.config.seed, self.state.step, self.processes)
        loader = iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches,
                collate_fn=batch_graphs,
                num_workers=self.config.workers,
                generator=torch.Generator(),  # a loader would else draw from torch's global one
            )
        )
        bar = tqdm(total=1000, disable=not self.progress, bar_format="{percentage:5.1f}% |{bar}| {desc}")
        stop = False
        with bar, _Log(self.out, self.state.step) if self.processes.leads else nullcontext() as log:
            while (fraction := self._agreed_fraction(stop)) < 1.0:
                rate = self.learning_rate(fraction)
                terms = self._train_step(next(loader), batches.part(self.state.step), rate)
                self.state.step += 1
                if log is None:
                    continue
                done = self._fraction_done() >= 1.0
                if self.state.step % settings.validate_every == 0 or done:
                    stop = self._validate(log, terms, rate)
                if self.state.step % settings.checkpoint_every == 0:
                    self.save_checkpoint()
                if self.state.step % 20 == 0 or done:
                    self._show(bar, fraction, terms)
            if self.processes.leads:
                self.save_checkpoint()
        if stop and self._best is not None:
            self.average.load_state_dict(self._best)
        return self.average

    def _agreed_fraction(self, stop: bool) -> float:
        """Share of the run behind us as the leading process sees it, 1 when it stops early: all end together."""
        fraction = 1.0 if stop else self._fraction_done()
        if self.processes.size == 1:
            return fraction
        agreed = torch.tensor(fraction, dtype=torch.float64, device=self.potential.device)
        self.processes.from_leader_(agreed)
        return float(agreed)

    def _train_step(self, graph: Graph, part: _Part, rate: float) -> LossTerms:
        if self.config.rotate:
            rotations = random_rotations(part.structures, (self.config.seed, self.state.step, 1))
            _rotate(graph, torch.from_numpy(rotations[part.positions]))
        terms = self._summed(self.step_function(graph.to(self.potential.device), part.shares))
        if not bool(torch.isfinite(terms.loss)):
            raise FloatingPointError(
                f"the loss became {float(terms.loss)} at step {self.state.step}: lower optimiser.learning_rate, or "
                f"look for a wrong label in the data; the last checkpoint in {self.out} is intact"
            )
        self.optimiser.step(rate, self.config.optimiser.clip_norm)
        # Never longer than a tenth of what lies behind: random first weights are soon forgotten.
        decay = min(self.config.optimiser.ema_decay, self.state.step / (self.state.step + 10.0))
        self._averaged.values.lerp_(self.optimiser.weights.values, 1.0 - decay)
        return terms

    def _summed(self, terms: LossTerms) -> LossTerms:
        """Terms of the whole batch; gradients, which lie in one tensor, are added up too."""
        if self.processes.size == 1:
            return terms
        values = torch.stack([value.double() for value in (terms.loss, terms.energy_mae, terms.forces_mae)])
        self.processes.sum_(values)
        self.processes.sum_(self.optimiser.weights.gradients)
        return LossTerms(*values.unbind())

    def _validate(self, log: _Log, terms: LossTerms, rate: float) -> bool:
        """Errors of the averaged potential; True when patience has run out."""
        errors = evaluate(self.average, self.validation).errors
        score = validation_score(errors, self.config.loss)
        if score < self.state.best:
            self.state.best, self.state.best_step = score, self.state.step
            if self.config.optimiser.patience is not None:
                self._best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        row = {
            "step": float(self.state.step),
            "seconds": self._elapsed(),
            "learning_rate": rate,
            "train_loss": float(terms.loss),
            "validation_score": score,
            "validation_energy_mae": errors.energy_mae,
            "validation_forces_mae": errors.forces_mae,
        }
        self.state.history.append(row)
        log.write(row)
        patience = self.config.optimiser.patience
        stale = (self.state.step - self.state.best_step) // self.config.optimiser.validate_every
        if patience is not None and stale >= patience:
            logger.info("no better validation in %d validations: stopping early at step %d", stale, self.state.step)
            return True
        return False

    def _show(self, bar: tqdm[Any], fraction: float, terms: LossTerms) -> None:
        bar.n = round(1000 * min(fraction, 1.0))
        left = self._elapsed() * (1.0 - fraction) / max(fraction, 1e-9)
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
    def state_seconds(self) -> float:
        """Training seconds so far, over all sessions."""
        return self._elapsed()

    @property
    def checkpoint_path(self) -> Path:
        """The one checkpoint file of the run."""
        return self.out / CHECKPOINT_FILE

    def save_checkpoint(self) -> None:
        """Write everything that the rest of the run depends on; the old file stays until the new one is whole.

        Batches and rotations are functions of (seed, step), so the step is their whole random state.

        Raises:
            OSError: With the reason (full disk, no permission); the old checkpoint is intact.
        """
        content = {
            "version": _CHECKPOINT_VERSION,
            "config": self.config.model_dump_json(),
            "potential": self.potential.state_dict(),
            "average": self.average.state_dict(),
            "best": self._best,
            "optimiser": self.optimiser.state_dict(),
            "state": {
                "step": self.state.step,
                "elapsed": self._elapsed(),
                "best": self.state.best,
                "best_step": self.state.best_step,
                "history": self.state.history,
            },
        }
        write_atomically(self.checkpoint_path, lambda path: torch.save(content, path))

    def load_checkpoint(self) -> None:
        """Continue where the folder's checkpoint stands.

        Raises:
            ValueError: When the file is damaged or belongs to other settings.
        """
        path = self.checkpoint_path
        try:
            content = torch.load(path, map_location=self.potential.device, weights_only=True)
            state = content["state"]
        except FileNotFoundError:
            raise ValueError(f"nothing to resume: there is no {path}") from None
        except Exception as error:  # the many ways in which a damaged archive can fail
            raise ValueError(f"{path} is not a whole training checkpoint: {error}") from None
        if content.get("version") != _CHECKPOINT_VERSION:
            raise ValueError(f"{path} was made by another version of ponita_ff: finish it with that, or start anew")
        if not self.config.same_run(TrainConfig.from_mapping(json.loads(content["config"]), str(path))):
            raise ValueError(f"{path} was made with other settings; resume with the config.yaml beside it")
        self.potential.load_state_dict(content["potential"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self._best = content["best"]
        self.state = _State(**state)


def validation_score(errors: Errors, loss: LossConfig) -> float:
    """The loss's own weighing of validation errors, eV: what early stopping watches."""
    return loss.energy * errors.energy_mae_per_atom + loss.forces * errors.forces_mae


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def read_metrics(out: Path) -> list[dict[str, float]]:
    """Rows of the ``metrics.csv`` of a run's folder; none where there is no such file."""
    if not (out / _METRICS_FILE).exists():
        return []
    with (out / _METRICS_FILE).open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class _Log:
    """``metrics.csv`` and TensorBoard events; rows past the resumed step are dropped first."""

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / _METRICS_FILE
        self.rows = [row for row in read_metrics(out) if row["step"] <= step] if step > 0 else []
        self.step = step

    def __enter__(self) -> _Log:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def write(self, row: dict[str, float]) -> None:
        """Add a row to both logs."""
        self.rows.append(row)

        def dump(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, dump)
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, int(row["step"]))
        self.board.flush()
