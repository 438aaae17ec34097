"""Recordings of launches, as far as they can be tried without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

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


def test_where_recording_fails_the_function_is_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Loudly: results are right, only slower."""

    def fails(self: Recording, pool: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nat line 7")

    class Nowhere:
        def __init__(self, device: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(Recording, "_record", fails)
    monkeypatch.setattr(torch.cuda, "device", Nowhere)
    value = torch.ones(2)
    with caplog.at_level(logging.WARNING):
        made = Recording(lambda tensors: (2.0 * tensors[0],), [value], record=True)
    assert "cannot be recorded, so that every step is slower: operation not permitted when stream" in caplog.text
    assert "line 7" not in caplog.text
    value += 1.0
    assert made()[0].tolist() == [4.0, 4.0]


def test_inputs_are_made_again_for_other_tensors_only() -> None:
    recordings, table = Recordings(record=False), torch.tensor([1.0, 2.0])
    made: list[int] = []

    def function(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return (tensors[0] * tensors[1],)

    def run(held: Tensor, points: Tensor) -> list[float]:
        def make() -> list[Tensor]:
            made.append(1)
            return [torch.cat((points, torch.zeros(1))), torch.cat((held, torch.zeros(1)))]

        return recordings.run("key", function, make, [held], {0: points})[0].tolist()

    assert run(table, torch.tensor([3.0, 4.0])) == [3.0, 8.0, 0.0]
    assert run(table, torch.tensor([5.0, 6.0])) == [5.0, 12.0, 0.0]
    assert len(made) == 1
    assert run(table.clone() + 1.0, torch.tensor([5.0, 6.0])) == [10.0, 18.0, 0.0]
    assert len(made) == 2


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
