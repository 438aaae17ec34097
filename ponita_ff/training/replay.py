"""Replay: frames that a start was trained on are trained on beside new ones, so that they are not forgotten."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ponita_ff.data import Frame, InMemoryFrames, JoinedFrames
from ponita_ff.potential.potential import Potential

__all__ = ["mix_frames", "split_replay", "with_reference_energies_of"]

#: Every third replayed frame is held out, and no more than so many: more tell nothing new and take minutes to evaluate.
_HOLDOUT_INTERVAL, _MAX_HOLDOUT = 3, 1000


def split_replay(frames: Sequence[Frame]) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """Split replayed frames into those to train on and the holdout, every n-th frame, which only measures."""
    interval = max(_HOLDOUT_INTERVAL, math.ceil(len(frames) / _MAX_HOLDOUT))
    holdout = range(interval - 1, len(frames), interval)
    train = [index for index in range(len(frames)) if index not in holdout]
    return InMemoryFrames(frames[index] for index in train), InMemoryFrames(frames[index] for index in holdout)


def with_reference_energies_of(potential: Potential, frames: Sequence[Frame], base: Potential) -> Sequence[Frame]:
    """Frames labelled at the level of theory of ``base``, with energies relative to ``potential``'s reference energies.

    Replayed frames may be of another level of theory than the new ones. Its reference energies differ by far more than
    interaction energies do, so the energies of replayed frames are shifted by the difference.

    Args:
        potential: Its reference energies replace those of ``base``.
        frames: Frames whose energies (eV) belong to ``base``.
        base: The potential that ``potential`` started from.

    Raises:
        ValueError: Naming a frame with elements that one of the two does not know.
    """
    old, new = (dict(zip(p.species, p.reference_energies.tolist(), strict=True)) for p in (base, potential))
    shifts = {z: new[z] - old[z] for z in old if z in new}
    shifted = []
    for frame in frames:
        unknown = {int(z) for z in frame.numbers} - set(shifts)
        if unknown:
            raise ValueError(
                f"{frame.source}: a frame for replay has elements {sorted(unknown)} (atomic numbers) that the start "
                "does not know: replay only what it was trained on"
            )
        shifted.append(dataclasses.replace(frame, energy=frame.energy + sum(shifts[int(z)] for z in frame.numbers)))
    return InMemoryFrames(shifted)


def mix_frames(new: Sequence[Frame], replay: Sequence[Frame], share: float) -> Sequence[Frame]:
    """New and replayed frames, each set repeated as a whole, so that about ``share`` of an epoch is replayed frames."""
    if not len(replay):
        return new
    ratio = len(replay) * (1 - share) / (len(new) * share)
    return JoinedFrames([new] * max(1, round(ratio)) + [replay] * max(1, round(1 / ratio)))
