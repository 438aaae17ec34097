"""Where files and numbers come from."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

from ponita_ff import provenance
from ponita_ff.provenance import describe_hardware, package_versions, weights_hash


def test_hash_is_that_of_names_types_shapes_and_bytes() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1, dtype=torch.int64)}
    text = b"a torch.int64 ()\n" + np.int64(1).tobytes()
    text += b"b torch.float32 (2, 3)\n" + np.arange(6, dtype=np.float32).tobytes()
    assert weights_hash(tensors) == hashlib.sha256(text).hexdigest()
    parameter = torch.nn.Parameter(tensors["b"])
    assert weights_hash({"a": tensors["a"], "b": parameter}) == weights_hash(tensors)


def test_versions_of_installed_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "matscipy":
            raise PackageNotFoundError
        return f"{name} 1"

    monkeypatch.setattr(provenance, "version", version)
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == "torch 1"
    assert "matscipy" not in versions


def test_hardware_of_the_cpu_and_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    text = describe_hardware(torch.device("cpu"))
    assert text.endswith(f", {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    assert not text.startswith(",")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe_hardware(torch.device("cuda", 1)) == "GPU 1"
