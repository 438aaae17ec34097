"""Frames of what a start knows, trained on beside new ones, so that it is not forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ponita_ff.data import Frame, InMemoryFrames, JoinedFrames
from ponita_ff.potential.potential import Potential

__all__ = ["at_level", "mixed", "split_replay"]

#: One frame in so many measures what the start knew, and never trains.
_HELD_OUT = 3


def split_replay(frames: Sequence[Frame]) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """Frames to train on, and frames that only measure: every third."""
    held_out = range(_HELD_OUT - 1, len(frames), _HELD_OUT)
    trained = [index for index in range(len(frames)) if index not in held_out]
    return InMemoryFrames(frames[index] for index in trained), InMemoryFrames(frames[index] for index in held_out)


def at_level(frames: Sequence[Frame], base: Potential, potential: Potential) -> Sequence[Frame]:
    """The frames with the energies that they would have with ``potential``'s reference energies instead of ``base``'s.

    A start's frames may be of another level of theory than the new ones, whose reference energies differ by far more
    than anything that matters between atoms.

    Raises:
        ValueError: Naming a frame with elements that one of the two does not know.
    """
    old, new = (dict(zip(p.species, p.reference_energies.tolist(), strict=True)) for p in (base, potential))
    shifts = {z: new[z] - old[z] for z in old if z in new}
    moved = []
    for frame in frames:
        unknown = {int(z) for z in frame.numbers} - set(shifts)
        if unknown:
            raise ValueError(
                f"{frame.source}: a frame for replay has elements {sorted(unknown)} (atomic numbers) that the start "
                "does not know: replay only what it was trained on"
            )
        moved.append(dataclasses.replace(frame, energy=frame.energy + sum(shifts[int(z)] for z in frame.numbers)))
    return InMemoryFrames(moved)


def mixed(new: Sequence[Frame], replay: Sequence[Frame], share: float) -> Sequence[Frame]:
    """New frames and replayed ones, whole sets repeated so that about ``share`` of an epoch are replayed ones."""
    if not len(replay):
        return new
    ratio = len(replay) * (1 - share) / (len(new) * share)
    return JoinedFrames([new] * max(1, round(ratio)) + [replay] * max(1, round(1 / ratio)))
