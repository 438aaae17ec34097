"""Devices and number formats as a user names them."""

from __future__ import annotations

import torch

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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from None
    return device
