"""Frames that keep a start from forgetting."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from methanol import make_frames

from ponita_ff.data import InMemoryFrames
from ponita_ff.potential.potential import Potential
from ponita_ff.training.replay import mix_frames, split_replay, with_reference_energies_of


def test_every_third_frame_only_measures(frames: InMemoryFrames) -> None:
    trained, held_out = split_replay(frames)
    assert [f.source for f in held_out] == [f"made, frame {i}" for i in (2, 5, 8, 11, 14, 17)]
    assert sorted([f.source for f in (*trained, *held_out)]) == sorted(f.source for f in frames)


def test_no_more_than_a_thousand_only_measure(frames: InMemoryFrames) -> None:
    trained, held_out = split_replay(InMemoryFrames([frames[0]] * 3400))
    assert (len(trained), len(held_out)) == (2550, 850)


@pytest.mark.parametrize(("new", "share"), [(3, 0.5), (20, 0.5), (60, 0.5), (20, 0.2), (20, 0.8), (2, 0.1)])
def test_replayed_frames_are_about_their_share(new: int, share: float, frames: InMemoryFrames) -> None:
    fresh = make_frames(new, seed=1)
    replay = InMemoryFrames(dataclasses.replace(f, source="replayed") for f in frames)
    both = mix_frames(fresh, replay, share)
    replayed = sum(frame.source == "replayed" for frame in both)
    assert replayed / len(both) == pytest.approx(share, abs=0.09)
    assert {frame.source for frame in both} == {frame.source for frame in (*fresh, *replay)}


def test_without_replay_nothing_changes(frames: InMemoryFrames) -> None:
    assert mix_frames(frames, InMemoryFrames([]), 0.5) is frames


@pytest.fixture
def shifted(tiny_potential: Potential) -> Potential:
    """The same potential with other reference energies: H +1 eV, C +10 eV, O +100 eV."""
    potential = copy.deepcopy(tiny_potential)
    potential.reference_energies += torch.tensor([1.0, 10.0, 100.0])
    return potential


def test_energies_are_shifted_by_the_difference_of_reference_energies(
    frames: InMemoryFrames, tiny_potential: Potential, shifted: Potential
) -> None:
    moved = with_reference_energies_of(shifted, frames, tiny_potential)
    for frame, old in zip(moved, frames, strict=True):
        assert frame.energy - old.energy == pytest.approx(4 * 1.0 + 10.0 + 100.0)  # CH3OH
        assert np.array_equal(frame.forces, old.forces)
    for frame, old in zip(with_reference_energies_of(shifted, frames, shifted), frames, strict=True):
        assert frame.energy == old.energy


def test_a_replayed_frame_with_an_unknown_element_is_named(
    frames: InMemoryFrames, tiny_potential: Potential, shifted: Potential
) -> None:
    numbers = np.where(frames[3].numbers == 8, 16, frames[3].numbers)
    strange = InMemoryFrames([frames[0], dataclasses.replace(frames[3], numbers=numbers)])
    with pytest.raises(ValueError, match=r"made, frame 3: a frame for replay has elements \[16\]"):
        with_reference_energies_of(shifted, strange, tiny_potential)
