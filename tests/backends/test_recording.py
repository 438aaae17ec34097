"""Recordings of launches, as far as they can be tried without a GPU."""

from __future__ import annotations

import pytest
import torch

from ponita_ff.backends import recording
from ponita_ff.backends.recording import Recording, Recordings, padded_size


def test_few_sizes() -> None:
    sizes = [padded_size(size) for size in range(1, 5000)]
    assert all(size <= padded <= max(size + 3, 1.13 * size) for size, padded in enumerate(sizes, 1))
    assert all(padded_size(size) == size for size in sizes)
    assert len(set(sizes)) < 75


def test_without_a_gpu_each_call_is_a_call() -> None:
    value = torch.ones(2)
    doubled = Recording(lambda tensors: (2 * tensors[0],), [value], record=False)
    assert doubled()[0].tolist() == [2.0, 2.0]
    value += 1
    assert doubled()[0].tolist() == [4.0, 4.0]


def test_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_MAX_RECORDINGS", 2)
    recordings = Recordings(record=False)
    for key in range(3):
        assert recordings.add(key, tuple, [torch.tensor(key)])()[0] == key
    assert [key in recordings for key in range(3)] == [False, True, True]
    assert len(recordings) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_replayed_on_a_gpu() -> None:
    value = torch.ones(2, device="cuda")
    calls: list[int] = []

    def doubled(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return (2 * tensors[0],)

    recordings = Recordings(record=True)
    made = recordings.add("a", doubled, [value])
    number = len(calls)
    for _ in range(3):
        value += 1
        assert torch.equal(made()[0], 2 * value)
    assert len(calls) == number
