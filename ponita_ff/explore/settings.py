"""Settings of an exploration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ponita_ff.explore.old_names import current_settings
from ponita_ff.settings import Section, SettingsError, wrong_fields

__all__ = ["ExploreError", "ExploreSettings"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_TRAINING = "training."


class ExploreError(SettingsError):
    """An error of the user's input; the message names the file, option or folder and what is expected."""


class ExploreSettings(Section):
    """Settings of active learning.

    Attributes:
        method: Method of the labels as for ``ponita-ff label``, e.g. ``gfn2-xtb`` or ``pbe/def2-svp``.
        charge: Total charge of every frame in elementary charges, for methods that take it; None is 0.
        multiplicity: Spin multiplicity 2S + 1 of every frame, for methods that take it; None is 1.
        budget: Largest number of labels in total.
        initial_labels: Number of frames that are labelled before the first training: displaced structures, or with a
            teacher some of its frames.
        labels_per_round: Largest number of labels in each round.
        random_share: Share of a round's labels that go to random frames of its dynamics; the others go to frames where
            the committee is uncertain.
        selection_share: Share of the fine-tuning's steps or time for committees that only choose the next frames; the
            last committee gets all.
        members: Number of potentials in the committee. They differ in their validation frames and random seeds.
        temperature: Temperature of the Langevin dynamics, K.
        timestep: Time step of the dynamics, fs.
        simulation_time: Simulated time per round, ps, in total over all trajectories.
        trajectories: Number of trajectories per round. Each starts from a random labelled frame.
        sample_interval: Time between sampled frames of a trajectory, fs.
        threshold: Uncertainty below which a frame is not labelled, eV/Å: the standard deviation over the committee of
            the most uncertain atom's force, calibrated with the labels of the rounds before. The exploration ends when
            95 % of a round's sampled frames are below, but not in the first round, which has no calibration.
        stop_threshold: Calibrated uncertainty at which a trajectory is stopped, eV/Å; its frames would be unphysical
            from there on.
        displacement: Root mean square displacement per atom of the most displaced initial structure, Å.
        processes: Number of processes that label in parallel.
        seed: Seed of all random numbers.
        training: Settings of the fine-tuning by dotted name, e.g. ``{"optimiser.steps": 2000}``.
        teacher: Cheap method whose labels the base learns first, as for ``ponita-ff finetune``; null for none.
        teacher_frames: Number of frames that the teacher labels.
    """

    method: str
    charge: int | None = None
    multiplicity: Count | None = None
    budget: Count
    initial_labels: Count = 10
    labels_per_round: Count = 20
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    selection_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    members: Annotated[int, Field(ge=2)] = 2
    temperature: Positive = 500.0
    timestep: Positive = 0.5
    simulation_time: Positive = 4.0
    trajectories: Count = 4
    sample_interval: Positive = 10.0
    threshold: Positive = 0.1
    stop_threshold: Positive = 1.0
    displacement: Positive = 0.1
    processes: Count = 1
    seed: int = 0
    training: dict[str, Any] = Field(default={})
    teacher: str | None = None
    teacher_frames: Annotated[int, Field(ge=20)] = 2000

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ExploreSettings:
        """Validate a mapping.

        Args:
            values: Settings by name; those of the fine-tuning in ``training`` or as ``training.NAME``, e.g.
                ``training.optimiser.steps``. Names of earlier versions are accepted.

        Raises:
            ExploreError: Naming every wrong field.
        """
        try:
            settings = cls.model_validate(_with_nested_training(current_settings(values)))
        except ValidationError as error:
            raise ExploreError(f"these settings cannot be used:\n{wrong_fields(error)}") from None
        except SettingsError as error:
            raise ExploreError(str(error)) from None
        if settings.initial_labels > settings.budget:
            raise ExploreError(
                f"initial_labels ({settings.initial_labels}) must not be above the budget ({settings.budget})"
            )
        if settings.stop_threshold <= settings.threshold:
            raise ExploreError(
                f"stop_threshold ({settings.stop_threshold:g} eV/Å) must be above threshold "
                f"({settings.threshold:g} eV/Å)"
            )
        return settings

    def same_exploration(self, other: ExploreSettings) -> bool:
        """Whether an exploration with these settings may be continued with others.

        Budget, number of processes and threshold may change.
        """
        free = {"budget", "processes", "threshold"}
        return self.model_dump(exclude=free) == other.model_dump(exclude=free)


def _with_nested_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings ``training.NAME``, as of a command line, into the mapping ``training``."""
    result = {name: value for name, value in values.items() if not name.startswith(_TRAINING)}
    changes = {name.removeprefix(_TRAINING): v for name, v in values.items() if name.startswith(_TRAINING)}
    if changes:
        result["training"] = {**result.get("training", {}), **changes}
    return result
