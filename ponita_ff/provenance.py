"""Provenance: which weights, package versions and hardware a file or a number comes from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["arrays_hash", "describe_hardware", "package_versions", "weights_hash"]


def weights_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors: of their names, dtypes, shapes and bytes, in the order of the names."""
    return arrays_hash({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def arrays_hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The same of arrays: the hash that tensors of their values have."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} torch.{array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that its numbers depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in ("ponita-ff", "torch", "ase", "numpy", "matscipy", "torch-geometric"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_hardware(device: torch.device) -> str:
    """The name of a GPU, or of the processor with its number of cores and torch's number of threads."""
    import torch  # a second, which commands that only write files need not wait for

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
