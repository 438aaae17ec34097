"""Files with weights of the authors' code: what is read, and what is refused without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_cases import FORMS, Hyper, make_grid, make_hyper, make_potential, make_state
from safetensors.torch import save_file

from ponita_ff.potential.file import save_potential
from ponita_ff.potential.import_published import import_checkpoint
from ponita_ff.published.checkpoint import inferred_hyper, read_grid, read_state


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


@pytest.mark.parametrize("prefix", ["", "model.", "a.b."])
def test_state_and_grid_without_their_common_prefix(prefix: str, tmp_path: Path) -> None:
    state, grid = make_state(make_hyper(7)), make_grid(7)
    content = {**{prefix + name: value for name, value in state.items()}, f"{prefix}transform.ori_grid": grid}
    torch.save(
        {"state_dict": content, "hyper_parameters": {"layers": 2, "lr": 1e-3, "radius": 5.0}}, tmp_path / "a.ckpt"
    )
    found, found_grid, stated = read_state(tmp_path / "a.ckpt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert torch.equal(found_grid, grid)
    assert stated == {"num_layers": 2, "radius": 5.0}  # the network's own, in the names of its constructor


def test_what_belongs_to_no_network_is_left_out(tmp_path: Path) -> None:
    state = make_state(make_hyper(0))
    torch.save(
        {**{f"model.{name}": value for name, value in state.items()}, "metric": torch.ones(1)}, tmp_path / "a.pt"
    )
    found, grid, stated = read_state(tmp_path / "a.pt")
    assert found.keys() == state.keys()
    assert grid is None
    assert stated == {}


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
@pytest.mark.parametrize("changes", [{}, {"multiple_readouts": False}, {"degree": 2, "num_layers": 1}])
def test_hyper_parameters_are_inferred_from_names_and_shapes(
    num_ori: int, radius: float | None, changes: Hyper
) -> None:
    hyper = make_hyper(num_ori, radius, **changes)
    if hyper["num_layers"] == 1:
        hyper["multiple_readouts"] = True  # one read-out after the only layer is both
    found = inferred_hyper(make_state(hyper), make_grid(num_ori))
    assert found == hyper


def test_without_the_grid_some_number_of_orientations_is_inferred() -> None:
    assert inferred_hyper(make_state(make_hyper(7)), None)["num_ori"] > 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("basis_fn.3.weight", None, "the state lacks basis_fn.3.weight: this is no whole checkpoint"),
        ("x_embedder.weight", torch.zeros(3), r"x_embedder.weight must be a matrix, found shape \(3,\)"),
        ("basis_fn.1.weight", torch.zeros(8, 39), "takes 39 features: this is the position-orientation point cloud"),
    ],
)
def test_shapes_that_tell_nothing_are_named(name: str, value: torch.Tensor | None, message: str) -> None:
    state = make_state(make_hyper(0))
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(ValueError, match=message):
        inferred_hyper(state, None)


def test_grid_files(tmp_path: Path) -> None:
    grid = make_grid(7).numpy()
    np.save(tmp_path / "a.npy", grid)
    np.savez(tmp_path / "one.npz", points=grid)
    np.savez(tmp_path / "named.npz", other=np.zeros(2), ori_grid=grid)
    for name in ("a.npy", "one.npz", "named.npz"):
        assert np.array_equal(read_grid(tmp_path / name).numpy(), grid), name
    np.savez(tmp_path / "two.npz", a=grid, b=grid)
    with pytest.raises(ValueError, match=r"two\.npz has a, b: name the orientation grid ori_grid"):
        read_grid(tmp_path / "two.npz")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_grid(tmp_path / "none.npy")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    with pytest.raises(ValueError, match=r"ori_grid in .*words\.npy holds <U1, not numbers"):
        read_grid(tmp_path / "words.npy")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "must be a JSON object, found list")])
def test_hyper_parameters_that_are_no_json_object(text: str, message: str, tmp_path: Path) -> None:
    save_file(make_state(make_hyper(0)), tmp_path / "a.safetensors", {"hyper": text})
    with pytest.raises(ValueError, match=rf"hyper in .*a\.safetensors {message}"):
        read_state(tmp_path / "a.safetensors")
