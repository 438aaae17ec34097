"""Files with weights of the authors' code: what is read, and what is refused without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_cases import make_hyper, make_potential, make_state

from ponita_ff.potential.file import save_potential
from ponita_ff.potential.import_published import import_checkpoint


class Settings:
    """Something that unpickling would make by running code."""


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    state = make_state(make_hyper(0))

    def refused(name: str, message: str, kind: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            import_checkpoint(tmp_path / name, **options)

    refused("none.pt", "there is no checkpoint", FileNotFoundError)
    (tmp_path / "a.txt").write_text("weights")
    refused("a.txt", "its name must end in")
    torch.save({"state_dict": state, "hyper_parameters": Settings()}, tmp_path / "objects.ckpt")
    refused("objects.ckpt", "Python objects besides tensors.*state_dict")
    for suffix in ("pt", "npz", "safetensors"):
        (tmp_path / f"junk.{suffix}").write_bytes(b"not a checkpoint at all")
        refused(f"junk.{suffix}", r"junk\.")
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    refused("half.pt", "damaged")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("list.pt", "no state dict")
    torch.save({"weight": torch.zeros(8, dtype=torch.float64)}, tmp_path / "other.pt")
    refused("other.pt", "no checkpoint of the published PONITA code")
    torch.save({f"{prefix}.{n}": v for prefix in ("a", "b") for n, v in state.items()}, tmp_path / "two.pt")
    refused("two.pt", "several networks")
    torch.save({n: v for n, v in state.items() if not n.startswith("basis_fn")}, tmp_path / "part.pt")
    refused("part.pt", "lacks basis_fn.1.weight")
    cloud = {**state, "basis_fn.1.weight": torch.zeros(8, 39, dtype=torch.float64)}
    torch.save(cloud, tmp_path / "cloud.pt")
    refused("cloud.pt", "point cloud")
    save_potential(make_potential(0), tmp_path / "ours.safetensors")
    refused("ours.safetensors", "use it as it is")
    np.savez(tmp_path / "bad_hyper.npz", **{"state/x_embedder.weight": np.zeros((8, 9)), "hyper": "{"})
    refused("bad_hyper.npz", "not JSON")
    np.savez(tmp_path / "words.npz", **{"state/x_embedder.weight": np.array(["a"])})
    refused("words.npz", "not numbers")
    objects = np.array([Settings()], dtype=object)
    np.savez(tmp_path / "objects.npz", **{"state/x_embedder.weight": objects})
    refused("objects.npz", "plain arrays")
    refused("whole.pt", "there is no file", FileNotFoundError, ori_grid=tmp_path / "none.npy")
    np.savez(tmp_path / "grids.npz", a=np.zeros(3), b=np.zeros(3))
    refused("whole.pt", "name the orientation grid ori_grid", ori_grid=tmp_path / "grids.npz")
