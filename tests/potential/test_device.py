"""Devices and number formats by their names."""

from __future__ import annotations

import pytest
import torch

from ponita_ff.potential.device import choose_device, choose_dtype


def test_devices_that_can_be_used() -> None:
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["banana", "", "cpu:x", "cuda:-1", "meta", "cuda:999", "x" * 5000, None, 1.5])
def test_devices_that_cannot(name: object) -> None:
    with pytest.raises(ValueError, match=r"cannot be used here.*: use 'auto' or 'cpu'") as caught:
        choose_device(name)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500


def test_dtypes() -> None:
    assert choose_dtype(None) is None
    assert choose_dtype("float64") is choose_dtype(torch.float64) is torch.float64
    with pytest.raises(ValueError, match=r"'float32' or 'float64'.*got 'float15'"):
        choose_dtype("float15")
