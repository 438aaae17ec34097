"""Rounds of dynamics, labels and training, each step of which leaves a file: what is there is never done again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.data import Frame, read_frames
from ponita_ff.explore.dynamics import Walk, displaced, walk
from ponita_ff.explore.report import Round, write_report
from ponita_ff.explore.select import farthest
from ponita_ff.explore.settings import ExploreError, ExploreSettings
from ponita_ff.files import write_atomically, write_json
from ponita_ff.labels import label_frames
from ponita_ff.potential.file import load_potential
from ponita_ff.training.config import POTENTIAL_FILE
from ponita_ff.training.finetune import finetune, finetune_config
from ponita_ff.training.run import is_started
from ponita_ff.uncertainty import committee_spread, spread_factor

__all__ = ["Explored", "explore"]

logger = logging.getLogger(__name__)

#: Share of a round's frames in which the committee must agree for exploring to end.
_AGREED = 0.95

_CANDIDATES, _LABELLED, _SETTINGS = "candidates.xyz", "labelled.xyz", "settings.json"


@dataclass(frozen=True)
class Explored:
    """What came of an exploration.

    Attributes:
        members: Files of the last committee.
        labels: How many frames have labels.
        rounds: One after the other.
        outcome: Why it ended, a sentence.
    """

    members: list[Path]
    labels: int
    rounds: list[Round]
    outcome: str


def explore(
    structures: Sequence[Atoms], base: str | Path, settings: ExploreSettings, out: Path, progress: bool = True
) -> Explored:
    """Find, label and learn what a potential does not know of some structures.

    Displaced structures are labelled first and a committee is fine-tuned on them; then each round runs dynamics with
    it, labels frames that differ from one another and in which its members disagree, and trains a new committee on all
    labels so far, until they agree or the budget is spent. A round's new labels, which its committee has never seen,
    tell what its deviations are worth: the next round's are multiplied by the ratio of root mean squares of errors and
    deviations, and the first round never ends it. Called again with the same folder, it goes on where it stopped:
    labels are journalled one by one, training has its checkpoints.

    Args:
        structures: Where to begin; molecules or crystals.
        base: The potential that every committee starts from.
        settings: All else.
        out: Folder of the exploration.
        progress: Whether to show progress bars.

    Raises:
        ExploreError, LabelError, ConfigError, ValueError, OSError: Naming what is wrong.
    """
    if not structures:
        raise ExploreError("there is no structure to explore")
    _remember(settings, out)
    generator = np.random.default_rng((settings.seed, 0))
    first = out / "round-0"
    if not (first / _CANDIDATES).is_file():
        _write_frames(displaced(structures, settings.first, settings.displacement, generator), first / _CANDIDATES)
    _label(settings, first, progress)
    rounds: list[Round] = []
    while True:
        number = len(rounds) + 1
        folder = out / f"round-{number}"
        frames = [frame for path in _label_files(out, number) for frame in read_frames(path)]
        members, error = _train(base, settings, out, number, progress)
        factor = next((told.calibration for told in reversed(rounds) if told.calibration is not None), None)
        walked = _walk(members, frames, settings, folder, number, factor or 1.0)
        # Members that come from one base differ by far less than they are wrong: that they agree tells nothing before
        # frames that none has seen have told what their deviations are worth.
        wanted = np.flatnonzero((np.array(walked.spread) >= settings.threshold) | (factor is None))
        agreed = len(wanted) <= (1 - _AGREED) * len(walked.spread)
        left = settings.budget - _given(out, number)
        if not agreed and left > 0 and not (folder / _CANDIDATES).is_file():
            _write_frames(_choose(walked, wanted, frames, min(settings.per_round, left)), folder / _CANDIDATES)
        chosen = (folder / _CANDIDATES).is_file()
        new = _label(settings, folder, progress) if chosen else []
        rounds.append(_told(number, len(frames), error, walked, new, members, calibrated=factor is not None))
        logger.info(_line(rounds[-1]))
        outcome = ""
        if agreed and not chosen:
            outcome = f"in {_AGREED:.0%} of the frames the committee differs by less than {settings.threshold:g} eV/Å"
        elif not chosen:
            outcome = f"the budget of {settings.budget} labels is spent"
        write_report(rounds, settings.threshold, outcome or "under way", out)
        if outcome:
            return Explored(_published(members, out), len(frames), rounds, outcome)


def _remember(settings: ExploreSettings, out: Path) -> None:
    """Keep the settings with the folder, and refuse to go on with others."""
    path = out / _SETTINGS
    if path.exists():
        before = ExploreSettings.from_mapping(json.loads(path.read_text(encoding="utf-8")))
        if not settings.same_exploration(before):
            old, new = before.model_dump(), settings.model_dump()
            wrong = ", ".join(f"{name}: {old[name]!r}" for name in old if old[name] != new[name])
            raise ExploreError(f"{out} was begun with other settings; go on with {wrong}, or give another folder")
    write_json(path, settings.model_dump(mode="json"))


def _label_files(out: Path, number: int) -> list[Path]:
    """Labelled frames of all rounds before this one."""
    return [path for k in range(number) if (path := out / f"round-{k}" / _LABELLED).is_file()]


def _given(out: Path, number: int) -> int:
    """Frames given to be labelled in the rounds before this one, whether or not they could be."""
    files = [out / f"round-{k}" / _CANDIDATES for k in range(number)]
    return sum(len(list(ase.io.iread(path))) for path in files if path.is_file())


def _label(settings: ExploreSettings, folder: Path, progress: bool) -> list[Frame]:
    """Labels of a round's frames; those that are in its journal already are not made again."""
    result = label_frames(
        folder / _CANDIDATES,
        settings.method,
        folder / _LABELLED,
        charge=settings.charge,
        multiplicity=settings.multiplicity,
        processes=settings.processes,
        progress=progress,
    )
    if result.failures:
        logger.warning("%d of %d frames got no label; see %s", len(result.failures), result.frames, result.journal)
    if result.path is None:
        reason = next(iter(result.failures.values()))
        raise ExploreError(f"not one of {result.frames} frames could be labelled by {settings.method}: {reason}")
    return list(read_frames(result.path))


def _write_frames(frames: Sequence[Atoms], path: Path) -> None:
    write_atomically(path, lambda temporary: ase.io.write(temporary, list(frames), format="extxyz"))


def _train(
    base: str | Path, settings: ExploreSettings, out: Path, number: int, progress: bool
) -> tuple[list[Path], float]:
    """A committee on all labels so far: its files, and the mean validation force MAE in eV/Å."""
    files, errors = [], []
    for member in range(settings.members):
        folder = out / f"round-{number}" / f"member-{member}"
        path = folder / POTENTIAL_FILE
        if not path.is_file() or "finetuning" not in load_potential(path).metadata:
            data = _label_files(out, number)
            overrides = {**settings.training, "data.seed": member, "seed": settings.seed + member}
            config = finetune_config(base, data, overrides=overrides)
            started = is_started(folder) and (folder / "config.yaml").is_file()
            finetune(config, folder, resume=started, progress=progress)
        errors.append(load_potential(path).metadata["errors"]["validation"]["forces_mae"])
        files.append(path)
    return files, float(np.mean(errors))


def _walk(
    members: Sequence[Path],
    labelled: Sequence[Frame],
    settings: ExploreSettings,
    folder: Path,
    number: int,
    factor: float,
) -> Walk:
    """The round's dynamics, from labelled frames drawn at random; kept, for a second look and a second start.

    Deviations of what comes back are times the factor, those of the file are not.
    """
    frames_path, told_path = folder / "walked.xyz", folder / "walked.json"
    if not told_path.is_file():
        generator = np.random.default_rng((settings.seed, number))
        starts = [labelled[k].to_atoms() for k in generator.integers(len(labelled), size=settings.walkers)]
        lost = settings.model_copy(update={"stop": settings.stop / factor})
        walked = walk(PonitaCalculator(list(members)), starts, lost, generator)
        _write_frames(walked.frames, frames_path)
        numbers = json.dumps({"spread": walked.spread, "ended": walked.ended, "stopped": walked.stopped}) + "\n"
        write_atomically(told_path, lambda path: path.write_text(numbers, encoding="utf-8"))
    # Read in the first place, too: the file's rounding must make no difference.
    told = json.loads(told_path.read_text(encoding="utf-8"))
    told["spread"] = [factor * value for value in told["spread"]]
    return Walk(list(ase.io.iread(frames_path)), **told)


def _choose(walked: Walk, wanted: NDArray[np.int64], known: Sequence[Frame], number: int) -> list[Atoms]:
    """Frames in which the committee disagrees, far from one another and from what is labelled."""
    candidates = [walked.frames[k] for k in wanted]
    return [candidates[k] for k in farthest(candidates, [frame.to_atoms() for frame in known], number)]


def _told(
    number: int,
    labels: int,
    error: float,
    walked: Walk,
    new: Sequence[Frame],
    members: Sequence[Path],
    calibrated: bool,
) -> Round:
    """What a round has shown; its new labels are the first that its committee has never seen.

    Deviations that no round before has calibrated are told as these labels calibrate them.
    """
    wrong = factor = None
    if new:
        potentials = [load_potential(path) for path in members]
        _, forces, _, deviations = committee_spread(potentials, [frame.to_atoms() for frame in new])
        errors = np.concatenate([found - frame.forces for found, frame in zip(forces, new, strict=True)])
        spread = np.concatenate(deviations)
        wrong = float(np.abs(errors).mean())
        factor = spread_factor(errors, spread) if spread.any() else None
    scale = 1.0 if calibrated or factor is None else factor
    return Round(
        number=number,
        labels=labels,
        validation_force_mae=error,
        spread_median=scale * float(np.median(walked.spread)),
        spread_95=scale * float(np.quantile(walked.spread, _AGREED)),
        stopped=walked.stopped,
        walkers=len(walked.ended),
        chosen=len(new),
        chosen_force_mae=wrong,
        calibration=factor,
    )


def _published(members: Sequence[Path], out: Path) -> list[Path]:
    """Copies of the last committee, where a user looks for them."""
    paths = [out / f"committee-{index}.safetensors" for index in range(len(members))]
    for member, path in zip(members, paths, strict=True):
        write_atomically(path, partial(shutil.copyfile, member))
    return paths


def _line(told: Round) -> str:
    line = (
        f"round {told.number}: {told.labels} labels, validation force MAE {1e3 * told.validation_force_mae:.0f} meV/Å; "
        f"in its dynamics 95 % of frames are uncertain by less than {told.spread_95:.2f} eV/Å, "
        f"{told.stopped} of {told.walkers} walkers stopped"
    )
    if told.chosen_force_mae is not None:
        line += f"; {told.chosen} frames chosen, force MAE on them {1e3 * told.chosen_force_mae:.0f} meV/Å"
    return line
