"""Recordings, as far as there is no GPU to record on."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from ponita_ff.backends.recording import Recording, Recordings, padded_size


def test_padded_sizes() -> None:
    sizes = [padded_size(size) for size in range(1, 5000)]
    assert all(size <= padded <= max(size + 3, size * 9 / 8 + 1) for size, padded in enumerate(sizes, 1))
    assert len(set(sizes)) < 70


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
        recording = Recording(lambda tensors: (2.0 * tensors[0],), [value], record=True)
    assert "cannot be recorded, so that every step is slower: operation not permitted when stream" in caplog.text
    assert "line 7" not in caplog.text
    value += 1.0
    assert recording()[0].tolist() == [4.0, 4.0]


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
