"""Active learning: rounds of training, dynamics, selection and labelling.

Every step writes a file. A step whose file exists is not repeated, so that a stopped exploration can be continued.
"""

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
from pydantic import BaseModel, ConfigDict, ValidationError

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.data import Frame, read_frames
from ponita_ff.explore.dynamics import DynamicsResult, displaced_structures, run_dynamics
from ponita_ff.explore.old_names import rename_files
from ponita_ff.explore.progress import Plan
from ponita_ff.explore.report import REPORT_FILES, Round, write_report
from ponita_ff.explore.select import select_farthest
from ponita_ff.explore.settings import ExploreError, ExploreSettings
from ponita_ff.files import write_atomically, write_json
from ponita_ff.labels import label_frames
from ponita_ff.outputs import claim_folder
from ponita_ff.potential.file import load_potential
from ponita_ff.settings import wrong_fields
from ponita_ff.teaching import LABELS_FILE, TEACHER_FOLDER, TeacherSettings, taught
from ponita_ff.training import run as training_run
from ponita_ff.training.config import POTENTIAL_FILE
from ponita_ff.training.finetune import finetune, finetune_config
from ponita_ff.uncertainty import committee_spread, spread_factor

__all__ = ["ExplorationResult", "exploration_files", "explore", "is_started"]

logger = logging.getLogger(__name__)

#: Share of a round's frames below the threshold at which the exploration ends.
_CERTAIN_SHARE = 0.95

_CANDIDATES, _LABELLED, _SETTINGS = "candidates.xyz", "labelled.xyz", "settings.json"
_DYNAMICS_FRAMES, _DYNAMICS = "dynamics.xyz", "dynamics.json"


@dataclass(frozen=True)
class ExplorationResult:
    """The result of an exploration.

    Attributes:
        members: Files of the last committee.
        labels: Number of labelled frames.
        rounds: Summaries of all rounds.
        outcome: Why the exploration ended, in one sentence.
    """

    members: list[Path]
    labels: int
    rounds: list[Round]
    outcome: str


def explore(
    structures: Sequence[Atoms], base: str | Path, settings: ExploreSettings, out: Path, progress: bool = True
) -> ExplorationResult:
    """Fine-tune a committee by active learning.

    Displaced structures are labelled first. Each round then fine-tunes a committee on all labels so far, runs dynamics
    with it, and labels frames that differ from each other and in which the members disagree, until the members agree
    or the budget is spent. Committees that only choose frames train for a share of the steps (``selection_share``); the
    last one trains for all of them.

    A round's new labels calibrate the standard deviations of later rounds: these are multiplied by the ratio of the
    root mean squares of errors and deviations. The first round has no calibration, so that it never ends the
    exploration.

    A call with the same folder continues a stopped exploration: labels are in a journal, and training has checkpoints.

    Args:
        structures: Molecules or crystals to start from.
        base: The potential to fine-tune: a file or the name of a shipped one.
        settings: See `ExploreSettings`.
        out: Folder of the exploration, new or stopped.
        progress: Whether to show progress bars.

    Returns:
        The committee and the summaries of all rounds.

    Raises:
        ExploreError, LabelError, ConfigError, ValueError, OSError: The message names the file or setting.
        LockedError: If another run is using the folder.
    """
    if not structures:
        raise ExploreError("there is no structure to explore")
    with claim_folder(out, exploration_files(settings)):
        return _explore(structures, base, settings, out, progress)


def is_started(out: Path) -> bool:
    """Whether a folder holds an exploration."""
    return (out / _SETTINGS).is_file()


def exploration_files(settings: ExploreSettings) -> list[str]:
    """Names of the files that an exploration writes into its folder; all others are in folders of the rounds."""
    return [_SETTINGS, *REPORT_FILES, *(_committee_file(index) for index in range(settings.members))]


def _committee_file(index: int) -> str:
    return f"committee-{index}.safetensors"


def _explore(
    structures: Sequence[Atoms], base: str | Path, settings: ExploreSettings, out: Path, progress: bool
) -> ExplorationResult:
    _record_settings(settings, out)
    rename_files(out)
    if settings.teacher is not None:
        base = _taught(structures, base, settings, out / TEACHER_FOLDER, progress)
    _label_initial_structures(structures, settings, out / "round-0", progress)
    plan = Plan(settings)
    rounds: list[Round] = []
    outcome = ""
    while not outcome:
        summary, members, outcome = _run_round(len(rounds) + 1, rounds, base, settings, out, progress, plan)
        rounds.append(summary)
        logger.info(_summary_line(summary))
        write_report(rounds, settings.threshold, outcome or "in progress", out)
    if _remaining(settings, out, len(rounds)) > 0:  # the members agreed before the budget was spent
        folder = out / f"final-{len(rounds)}"
        plan.begin("final committee", rounds[-1].labels, share=1.0, last=True)
        members, _ = _train_committee(base, settings, out, len(rounds), folder, plan, progress)
    return ExplorationResult(_copy_committee(members, out), rounds[-1].labels, rounds, outcome)


def _remaining(settings: ExploreSettings, out: Path, number: int) -> int:
    """Labels that are left of the budget when a round begins."""
    return settings.budget - _count_candidates(out, number)


def _run_round(
    number: int,
    earlier: Sequence[Round],
    base: str | Path,
    settings: ExploreSettings,
    out: Path,
    progress: bool,
    plan: Plan,
) -> tuple[Round, list[Path], str]:
    """One round: its summary, the files of its committee, and why the exploration ends with it, if it does."""
    folder = out / f"round-{number}"
    frames = [frame for path in _labelled_files(out, number) for frame in read_frames(path)]
    remaining = _remaining(settings, out, number)
    plan.begin(f"round {number}", len(frames), settings.selection_share if remaining > 0 else 1.0, last=remaining <= 0)
    members, validation_error = _train_committee(base, settings, out, number, folder, plan, progress)
    logger.info("round %d: dynamics, %g ps", number, settings.simulation_time)
    factor = next((one.calibration for one in reversed(earlier) if one.calibration is not None), None)
    dynamics = _sample_dynamics(members, frames, settings, folder, number, factor or 1.0)
    # The members are fine-tuned from one base and differ by much less than their errors. So a small deviation counts as
    # certain only after it has been calibrated with new labels.
    uncertain = [k for k, value in enumerate(dynamics.uncertainties) if factor is None or value >= settings.threshold]
    certain = len(uncertain) <= (1 - _CERTAIN_SHARE) * len(dynamics.uncertainties)
    candidates = folder / _CANDIDATES
    if not certain and remaining > 0 and not candidates.is_file():
        generator = np.random.default_rng((settings.seed, number, 1))
        _write_frames(_selected(dynamics.frames, uncertain, frames, remaining, settings, generator), candidates)
    outcome = ""
    if not candidates.is_file():
        outcome = f"the budget of {settings.budget} labels is spent"
        if certain:
            outcome = (
                f"in {_CERTAIN_SHARE:.0%} of the frames the committee differs by less than {settings.threshold:g} eV/Å"
            )
    if not outcome:
        logger.info("round %d: labelling %d frames", number, remaining - _remaining(settings, out, number + 1))
    new = [] if outcome else _label_candidates(settings, folder, progress)
    summary = _summarise(number, len(frames), validation_error, dynamics, new, members, calibrated=factor is not None)
    return summary, members, outcome


def _selected(
    sampled: Sequence[Atoms],
    uncertain: Sequence[int],
    labelled: Sequence[Frame],
    remaining: int,
    settings: ExploreSettings,
    generator: np.random.Generator,
) -> list[Atoms]:
    """The frames of a round to label: some as the dynamics has them, the others where the committee is uncertain.

    Those others are far from each other, from the first ones and from labelled frames: alone they would be the rarest
    geometries of the dynamics.
    """
    number = min(settings.labels_per_round, remaining)
    common = generator.choice(len(sampled), min(round(settings.random_share * number), len(sampled)), replace=False)
    found = [sampled[index] for index in sorted(common.tolist())]
    pool = [sampled[index] for index in uncertain if index not in common]
    known = [*(frame.to_atoms() for frame in labelled), *found]
    return found + [pool[index] for index in select_farthest(pool, known, number - len(found))]


def _record_settings(settings: ExploreSettings, out: Path) -> None:
    """Write the settings to the folder.

    Raises:
        ExploreError: The folder has other settings, with which the exploration was begun.
    """
    path = out / _SETTINGS
    if path.exists():
        try:
            before = ExploreSettings.from_mapping(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ExploreError(f"{path} holds no settings of an exploration ({error}); give another folder") from None
        if not before.same_exploration(settings):
            old, new = before.model_dump(), settings.model_dump()
            changed = ", ".join(f"{name}: {old[name]!r}" for name in old if old[name] != new[name])
            raise ExploreError(f"{out} was begun with other settings; continue with {changed}, or give another folder")
    write_json(path, settings.model_dump(mode="json"))


def _taught(
    structures: Sequence[Atoms], base: str | Path, settings: ExploreSettings, folder: Path, progress: bool
) -> Path:
    """The base after a teacher's labels of the structures."""
    teacher = TeacherSettings.make(
        method=settings.teacher,
        frames=settings.teacher_frames,
        charge=settings.charge,
        multiplicity=settings.multiplicity,
        processes=settings.processes,
        seed=abs(settings.seed),
    )
    return taught(base, structures, teacher, folder, progress=progress)


def _label_initial_structures(
    structures: Sequence[Atoms], settings: ExploreSettings, folder: Path, progress: bool
) -> None:
    if not (folder / _CANDIDATES).is_file():
        generator = np.random.default_rng((settings.seed, 0))
        if settings.teacher is not None:
            known = [frame.to_atoms() for frame in read_frames(folder.parent / TEACHER_FOLDER / LABELS_FILE)]
            chosen = generator.choice(len(known), min(settings.initial_labels, len(known)), replace=False)
            frames = [known[index] for index in chosen]
        else:
            frames = displaced_structures(structures, settings.initial_labels, settings.displacement, generator)
        _write_frames([_bare(atoms) for atoms in frames], folder / _CANDIDATES)
    _label_candidates(settings, folder, progress)


def _bare(atoms: Atoms) -> Atoms:
    """Without labels."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _labelled_files(out: Path, number: int) -> list[Path]:
    """Files of labelled frames of all rounds before this one."""
    return [path for k in range(number) if (path := out / f"round-{k}" / _LABELLED).is_file()]


def _count_candidates(out: Path, number: int) -> int:
    """Number of frames selected in the rounds before this one, including those whose labelling failed."""
    files = [out / f"round-{k}" / _CANDIDATES for k in range(number)]
    return sum(len(list(ase.io.iread(path))) for path in files if path.is_file())


def _label_candidates(settings: ExploreSettings, folder: Path, progress: bool) -> list[Frame]:
    """Label a round's selected frames, except those that are in its journal already."""
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
        logger.warning("%d of %d frames have no label; see %s", len(result.failures), result.frames, result.journal)
    if result.path is None:
        reason = next(iter(result.failures.values()))
        raise ExploreError(f"none of {result.frames} frames could be labelled by {settings.method}: {reason}")
    return list(read_frames(result.path))


def _write_frames(frames: Sequence[Atoms], path: Path) -> None:
    write_atomically(path, lambda temporary: ase.io.write(temporary, list(frames), format="extxyz"))


def _train_committee(
    base: str | Path, settings: ExploreSettings, out: Path, number: int, folder: Path, plan: Plan, progress: bool
) -> tuple[list[Path], float]:
    """Fine-tune a committee on all labels before a round: its files, and the mean validation force MAE in eV/Å."""
    files, errors = [], []
    for member in range(settings.members):
        path = folder / f"member-{member}" / POTENTIAL_FILE
        if not path.is_file() or "finetuning" not in load_potential(path).metadata:
            data = _labelled_files(out, number)
            overrides = {**settings.training, "data.seed": member, "seed": settings.seed + member}
            config = finetune_config(base, data, overrides=overrides)
            schedule = config.optimiser if plan.share == 1.0 else config.optimiser.for_fraction(plan.share)
            config = config.model_copy(update={"optimiser": schedule})
            started = training_run.is_started(path.parent) and (path.parent / "config.yaml").is_file()
            with plan.member(member):
                finetune(config, path.parent, resume=started, progress=progress)
        errors.append(load_potential(path).metadata["errors"]["validation"]["forces_mae"])
        files.append(path)
    return files, float(np.mean(errors))


def _sample_dynamics(
    members: Sequence[Path],
    labelled: Sequence[Frame],
    settings: ExploreSettings,
    folder: Path,
    number: int,
    factor: float,
) -> DynamicsResult:
    """The round's dynamics, from random labelled frames, or its result from the files of an earlier call.

    Uncertainties in the file are not calibrated; those of the result are, by the factor.
    """
    frames_path, result_path = folder / _DYNAMICS_FRAMES, folder / _DYNAMICS
    if not result_path.is_file():
        generator = np.random.default_rng((settings.seed, number))
        starts = [labelled[k].to_atoms() for k in generator.integers(len(labelled), size=settings.trajectories)]
        result = run_dynamics(
            PonitaCalculator(list(members)), starts, settings, settings.stop_threshold / factor, generator
        )
        _write_frames(result.frames, frames_path)
        content = {"uncertainties": result.uncertainties, "times": result.times, "stopped": result.stopped}
        write_json(result_path, content)
    # Read after the first run, too, so that the rounding of the file makes no difference to a continued exploration.
    recorded = _read_dynamics(result_path)
    uncertainties = [factor * value for value in recorded.uncertainties]
    return DynamicsResult(list(ase.io.iread(frames_path)), uncertainties, recorded.times, recorded.stopped)


class _DynamicsRecord(BaseModel):
    """What is kept of a round's dynamics beside its frames."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    uncertainties: list[float]
    times: list[float]
    stopped: int


def _read_dynamics(path: Path) -> _DynamicsRecord:
    """Read the file of an earlier call.

    Raises:
        ExploreError: If it was altered or damaged.
    """
    try:
        return _DynamicsRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ExploreError(f"{path} is damaged; delete it to run the dynamics again:\n{wrong_fields(error)}") from None


def _summarise(
    number: int,
    labels: int,
    validation_error: float,
    dynamics: DynamicsResult,
    new: Sequence[Frame],
    members: Sequence[Path],
    calibrated: bool,
) -> Round:
    """Summary of a round. Its new labels, which the committee was not trained on, give its errors and calibration.

    If no earlier round has calibrated the uncertainties, they are multiplied by the calibration of this one.
    """
    error = factor = None
    if new:
        potentials = [load_potential(path) for path in members]
        _, forces, _, deviations = committee_spread(potentials, [frame.to_atoms() for frame in new])
        errors = np.concatenate([mean - frame.forces for mean, frame in zip(forces, new, strict=True)])
        spread = np.concatenate(deviations)
        error = float(np.abs(errors).mean())
        factor = spread_factor(errors, spread) if spread.any() else None
    scale = 1.0 if calibrated or factor is None else factor
    return Round(
        number=number,
        labels=labels,
        validation_force_mae=validation_error,
        uncertainty_median=scale * float(np.median(dynamics.uncertainties)),
        uncertainty_95=scale * float(np.quantile(dynamics.uncertainties, 0.95)),
        stopped=dynamics.stopped,
        trajectories=len(dynamics.times),
        selected=len(new),
        selected_force_mae=error,
        calibration=factor,
    )


def _copy_committee(members: Sequence[Path], out: Path) -> list[Path]:
    """Copy the last committee to the folder of the exploration."""
    paths = [out / _committee_file(index) for index in range(len(members))]
    for member, path in zip(members, paths, strict=True):
        write_atomically(path, partial(shutil.copyfile, member))
    return paths


def _summary_line(summary: Round) -> str:
    line = (
        f"round {summary.number}: {summary.labels} labels, validation force MAE "
        f"{1e3 * summary.validation_force_mae:.0f} meV/Å; uncertainty below {summary.uncertainty_95:.2f} eV/Å in 95 % "
        f"of the sampled frames, {summary.stopped} of {summary.trajectories} trajectories stopped"
    )
    if summary.selected_force_mae is not None:
        line += f"; {summary.selected} frames selected, force MAE {1e3 * summary.selected_force_mae:.0f} meV/Å"
    return line
