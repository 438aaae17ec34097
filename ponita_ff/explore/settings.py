"""Settings of an exploration, every field with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ponita_ff.settings import Section, SettingsError, wrong_fields

__all__ = ["ExploreError", "ExploreSettings"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ExploreError(SettingsError):
    """A user's mistake; the message names the file, option or folder and says what was expected."""


class ExploreSettings(Section):
    """How to explore.

    Attributes:
        method: What labels, as ``ponita-ff label`` takes it, e.g. ``gfn2-xtb`` or ``pbe/def2-svp``.
        charge, multiplicity: Of every frame, for methods that take them.
        budget: Labels in all.
        first: Of these, for displaced structures before there is a committee.
        per_round: For each round after that.
        members: Potentials of the committee; they differ in the frames that validate and in the order of the others.
        temperature: K of the dynamics (Langevin).
        timestep: fs.
        picoseconds: Of each round's dynamics, shared out over ``walkers``.
        walkers: Runs a round, each from another labelled frame.
        every: fs between frames that are looked at.
        threshold: eV/Å. Frames in which the committee differs by less (standard deviation of the most uncertain atom's
            force, calibrated by the labels of the round before) are not worth a label; exploring ends when 95 % of a
            round's frames are below, but not in the first round, which nothing calibrates.
        stop: eV/Å, calibrated as well, from which on a run ends: what comes after is nonsense.
        displacement: Å, root mean square, of the most displaced first structures.
        processes: That label beside each other.
        seed: Of everything random.
        training: Settings of the fine-tuning by dotted name, e.g. ``{"optimiser.steps": 2000}``.
    """

    method: str
    charge: int | None = None
    multiplicity: Count | None = None
    budget: Count
    first: Count = 10
    per_round: Count = 10
    members: Annotated[int, Field(ge=2)] = 3
    temperature: Positive = 500.0
    timestep: Positive = 0.5
    picoseconds: Positive = 4.0
    walkers: Count = 4
    every: Positive = 10.0
    threshold: Positive = 0.1
    stop: Positive = 1.0
    displacement: Positive = 0.1
    processes: Count = 1
    seed: int = 0
    training: dict[str, Any] = Field(default={})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ExploreSettings:
        """Validate a mapping.

        Raises:
            ExploreError: Naming every wrong field.
        """
        try:
            settings = cls.model_validate(dict(values))
        except ValidationError as error:
            raise ExploreError(f"these settings cannot be used:\n{wrong_fields(error)}") from None
        if settings.first > settings.budget:
            raise ExploreError(f"the first {settings.first} labels are more than the budget of {settings.budget}")
        if settings.stop <= settings.threshold:
            raise ExploreError(f"stop ({settings.stop:g} eV/Å) must be above threshold ({settings.threshold:g} eV/Å)")
        return settings

    def same_exploration(self, other: ExploreSettings) -> bool:
        """Whether a folder of one may be continued with the other: a larger budget and other processes are welcome."""
        free = {"budget", "processes", "threshold"}
        return self.model_dump(exclude=free) == other.model_dump(exclude=free)
