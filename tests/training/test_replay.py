"""Frames that keep a start from forgetting."""

from __future__ import annotations

import dataclasses

import pytest
from methanol import make_frames

from ponita_ff.data import InMemoryFrames
from ponita_ff.training.replay import mix_frames, split_replay


def test_every_third_frame_only_measures(frames: InMemoryFrames) -> None:
    trained, held_out = split_replay(frames)
    assert [f.source for f in held_out] == [f"made, frame {i}" for i in (2, 5, 8, 11, 14, 17)]
    assert sorted([f.source for f in (*trained, *held_out)]) == sorted(f.source for f in frames)


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
