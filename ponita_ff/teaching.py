"""Fine-tuning with a teacher: many cheap labels of the very molecules, before the few expensive ones.

A teacher is any method that is cheap enough for thousands of labels: a semi-empirical one, a published potential, or
another potential of this package. Frames are sampled around those of the user by the teacher's forces, labelled by it,
and trained on. What a potential learns there of a molecule, bonds, angles, torsions and their couplings, differs little
between levels of theory, and need not be learned again from expensive labels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ase import Atoms
from pydantic import Field, ValidationError

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.files import write_json
from ponita_ff.labels import label_frames
from ponita_ff.potential.header import find_potential
from ponita_ff.sample import SampleSettings, sample
from ponita_ff.sample.diversity import descriptors, farthest_first, shared_out
from ponita_ff.sample.methods import method_for, method_of
from ponita_ff.sample.settings import SelectionSettings
from ponita_ff.settings import Section, SettingsError, wrong_fields
from ponita_ff.training.config import POTENTIAL_FILE
from ponita_ff.training.finetune import finetune, finetune_config
from ponita_ff.training.run import is_started

__all__ = ["LABELS_FILE", "TEACHER_FOLDER", "TeacherError", "TeacherSettings", "starting_frames", "taught"]

logger = logging.getLogger(__name__)

#: In the folder of a fine-tuning run.
TEACHER_FOLDER = "teacher"

#: In that folder: the teacher's labels, and what leads to them and follows.
LABELS_FILE = "labels.xyz"
_FRAMES, _TRAINING, _SETTINGS = "frames", "training", "settings.json"

#: Frames of the user that sampling starts from, at most.
_STARTS = 20

#: So many times the frames that are wanted are sampled: some break, and rigid molecules have no torsions.
_SPARE = 1.2

#: Steps of the training on the teacher's labels, at most. Half as many cost 10 % in the errors after the labels
#: (azobenzene in ``benchmarks/results/general.md``).
_MOST_STEPS = 12_000

#: eV/Å: frames with an atom about whose force the members of an ensemble disagree more are left out.
_MAX_SPREAD = 1.0


class TeacherError(SettingsError):
    """An error of the user's input; the message names the option or folder and what is expected."""


class TeacherSettings(Section):
    """Settings of teaching.

    Attributes:
        method: Method of the teacher, as for ``ponita-ff label`` or ``ponita-ff sample``, e.g. ``gfn2-xtb``.
        frames: Number of frames that the teacher labels.
        sampler: Method or potential whose forces move the atoms while frames are sampled. None: the base, far faster
            than a teacher, where its training data cover all frames to start from; else the teacher.
        temperatures: Of the dynamics that samples them, K.
        charge: Of every frame in elementary charges, for methods that take it; None is 0.
        multiplicity: 2S + 1 of every frame, for methods that take it; None is 1.
        processes: Processes that sample and label.
        seed: Of all random numbers.
    """

    method: str
    frames: Annotated[int, Field(ge=20)] = 2000
    sampler: str | None = None
    temperatures: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        default=[300.0, 500.0, 800.0]
    )
    charge: int | None = None
    multiplicity: Annotated[int, Field(ge=1)] | None = None
    processes: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 1

    @classmethod
    def make(cls, **values: Any) -> TeacherSettings:
        """Validate settings.

        Raises:
            TeacherError: Naming every wrong one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise TeacherError(f"the teacher cannot be used so:\n{wrong_fields(error)}") from None


def starting_frames(frames: Iterable[Atoms], number: int) -> list[Atoms]:
    """Choose frames that differ most, about equally many of each composition.

    Args:
        frames: Of any molecules or crystals.
        number: How many at most; one of each composition in any case.

    Returns:
        Copies without labels.
    """
    groups: dict[tuple[int, ...], list[Atoms]] = {}
    for atoms in frames:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        groups.setdefault(tuple(sorted(atoms.numbers.tolist())), []).append(bare)
    shares = shared_out([len(group) for group in groups.values()], max(number, len(groups)))
    found = []
    for group, share in zip(groups.values(), shares, strict=True):
        order, _ = farthest_first(descriptors(group, SelectionSettings()), 0.0)
        found += [group[index] for index in order[:share]]
    return found


def taught(
    base: str | Path,
    frames: Iterable[Atoms],
    settings: TeacherSettings,
    out: Path,
    training: Mapping[str, Any] | None = None,
    *,
    replay: Sequence[Path] | None = None,
    progress: bool = True,
) -> Path:
    """Train a base on a teacher's labels of frames around some others.

    Every step leaves its result in the folder; the same call again goes on after what is there.

    Args:
        base: A potential file or the name of a shipped potential.
        frames: Frames of the molecules, relaxed or not; labels are not used.
        settings: Of the teacher.
        out: Folder of frames, labels and training.
        training: Settings of the training by dotted name, as for :func:`ponita_ff.training.finetune.finetune_config`;
            at most 6,000 steps unless they say otherwise.
        replay: Files of frames that the base was trained on, as for ``finetune_config``.
        progress: Whether to show progress bars.

    Returns:
        The file of the potential.

    Raises:
        TeacherError: The folder holds a run with another teacher; no frame could be labelled.
        SettingsError, DataError, LabelError: Settings, data or a method that cannot be used.
        OSError: A file cannot be read or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(settings, out / _SETTINGS)
    labels = _labelled(base, frames, settings, out, progress)
    folder = out / _TRAINING
    config = finetune_config(base, [labels], replay=replay, overrides=training, most_steps=_MOST_STEPS)
    finetune(config, folder, resume=is_started(folder), progress=progress)
    return folder / POTENTIAL_FILE


def _check_settings(settings: TeacherSettings, path: Path) -> None:
    """Refuse to go on with another teacher; the number of processes may change."""
    if path.is_file():
        try:
            found = TeacherSettings.model_validate_json(path.read_bytes()).model_dump(exclude={"processes"})
        except ValidationError as error:
            raise TeacherError(
                f"{path} is damaged; delete {path.parent} to begin again:\n{wrong_fields(error)}"
            ) from None
        wanted = settings.model_dump(exclude={"processes"})
        changed = ", ".join(f"{name}: {found[name]}" for name, value in wanted.items() if found[name] != value)
        if changed:
            raise TeacherError(
                f"{path.parent} was begun with another teacher; go on with {changed}, or give another --out"
            )


def _labelled(base: str | Path, frames: Iterable[Atoms], settings: TeacherSettings, out: Path, progress: bool) -> Path:
    """Sample frames and label them, or what an earlier call has not done of it."""
    method = method_of(method_for(settings.method), settings.charge or 0, settings.multiplicity or 1)
    starts = starting_frames(frames, _STARTS)
    for atoms in starts:
        atoms.info |= {"charge": settings.charge or 0, "multiplicity": settings.multiplicity or 1}
    sampled = sample(
        starts,
        _sampling(_sampler(base, starts, settings), settings, len(starts)),
        out / _FRAMES,
        processes=settings.processes,
        progress=progress,
    )
    # Not before: a teacher that cannot be used leaves nothing, and a stopped run is told from others by its journal.
    write_json(out / _SETTINGS, settings.model_dump(mode="json"))
    result = label_frames(
        sampled.path,
        method,
        out / LABELS_FILE,
        processes=settings.processes,
        max_spread=_MAX_SPREAD if method.ensemble else None,
        progress=progress,
    )
    if result.path is None:
        reason = next(iter(result.failures.values()), "its members disagree about all of them")
        raise TeacherError(f"the teacher {settings.method} labelled no frame: {reason}")
    if result.failures:
        logger.warning("%d of %d frames have no label; see %s", len(result.failures), result.frames, result.journal)
    return result.path


def _sampler(base: str | Path, starts: Sequence[Atoms], settings: TeacherSettings) -> str:
    """Method or file of the potential that moves the atoms."""
    if settings.sampler is not None:
        return settings.sampler
    try:
        calculator = PonitaCalculator(base, strict=True)
        for atoms in starts:
            calculator.get_potential_energy(atoms)
    except ValueError as error:
        logger.info("the teacher samples, as the base does not know all frames: %s", error)
        return settings.method
    return str(find_potential(base))


def _sampling(sampler: str, settings: TeacherSettings, starts: int) -> SampleSettings:
    """Two of three frames from dynamics, the rest displaced along normal modes, or turned about bonds."""
    each = math.ceil(_SPARE * settings.frames / starts)
    return SampleSettings.make(
        {
            "method": sampler,
            "seed": settings.seed,
            "kinds": ["md", "modes", "torsions"],
            "molecules": {"charged": True, "open_shell": True},
            # Twice the default step: these frames need no exact dynamics.
            "md": {
                "frames": math.ceil(each * 2 / 3),
                "temperatures": settings.temperatures,
                "timestep": 1.0,
            },
            "modes": {"frames": math.ceil(each / 4)},
            "torsions": {"frames": math.ceil(each / 12)},
            "selection": {"distance": 0.0, "frames": settings.frames},
        }
    )
