"""Devices and number formats as a user names them."""

from __future__ import annotations

import torch

from ponita_ff.settings import shown

__all__ = ["DTYPES", "choose_device", "choose_dtype"]

#: Number formats that potentials compute in, by name.
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """A number format by its name; None stays None, for a file's own.

    Raises:
        ValueError: For any other.
    """
    if name is None:
        return None
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        raise ValueError(f"dtype must be 'float32' or 'float64' (or None for the file's own), got {name!r}")
    return dtype


def choose_device(name: str | torch.device) -> torch.device:
    """A device by its name; ``"auto"`` is a GPU when there is one.

    Raises:
        ValueError: For a device that cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise _unusable(name, "there is no device of that name") from None
    if device.type == "meta":
        raise _unusable(name, "it holds no numbers")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise _unusable(name, str(error).splitlines()[0][:200]) from None
    return device


def _unusable(name: object, reason: str) -> ValueError:
    return ValueError(f"device {shown(name)} cannot be used here ({reason}): use 'auto' or 'cpu'")
