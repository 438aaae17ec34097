"""Potentials from weights of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_cases import FORMS, Hyper, State, make_graph, make_grid, make_hyper, make_potential, make_state, worst
from safetensors.torch import save_file
from torch import Tensor

from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.import_published import import_checkpoint, load_published
from ponita_ff.published.network import PublishedPonita


def test_scale_energy_per_atom_and_species() -> None:
    hyper, grid = make_hyper(7), make_grid(7)
    state = make_state(hyper)
    plain = load_published(state, hyper, grid)
    scaled = load_published(state, hyper, grid, species=[8, 6, 1], scale=0.25, energy_per_atom=-3.0)
    assert scaled.species == (1, 6, 8)
    graph = make_graph(plain, "CH3CH2OH")
    assert float(scaled(graph).energy) == pytest.approx(0.25 * float(plain(graph).energy) - 27.0, rel=1e-12)
    assert worst(scaled(graph).forces, 0.25 * plain(graph).forces) <= 1e-12
    with pytest.raises(ValueError, match="is N"):
        scaled.check_species(np.array([7]))
    with pytest.raises(ValueError, match="species must be atomic numbers from 1 to 8"):
        load_published(state, hyper, grid, species=[9])


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
def test_survives_its_file(num_ori: int, radius: float | None, tmp_path: Path) -> None:
    potential = make_potential(num_ori, radius)
    save_potential(potential, tmp_path / "p.safetensors")
    again = load_potential(tmp_path / "p.safetensors")
    assert isinstance(again.network, PublishedPonita)
    assert again.network.config == potential.network.config
    assert again.species == potential.species == tuple(range(1, 9))
    assert again.cutoff == radius
    graph = make_graph(potential, "CH3CH2OH")
    for field in ("energy", "forces"):
        assert torch.equal(getattr(again(graph), field), getattr(potential(graph), field))


def write_npz(path: Path, state: State, hyper: Hyper | None, grid: Tensor | None) -> None:
    arrays: dict[str, Any] = {f"state/{name}": value.numpy() for name, value in state.items()}
    if hyper is not None:
        arrays["hyper"] = json.dumps(hyper)
    if grid is not None:
        arrays["ori_grid"] = grid.numpy()
    np.savez(path, **arrays)


def write_lightning(path: Path, state: State, grid: Tensor | None, **more: Any) -> None:
    tensors = {f"model.{name}": value for name, value in state.items()}
    if grid is not None:
        tensors["model.transform.ori_grid"] = grid
    tensors["train_metric.total"] = torch.tensor(3)
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer_states": [{"state": {}}], **more}, path)


@pytest.mark.parametrize(("num_ori", "radius"), FORMS)
@pytest.mark.parametrize("kind", ["npz", "bare npz", "pt", "ckpt", "safetensors"])
def test_every_kind_of_file_gives_the_same_potential(
    kind: str, num_ori: int, radius: float | None, tmp_path: Path
) -> None:
    hyper, grid = make_hyper(num_ori, radius), make_grid(num_ori)
    state = make_state(hyper)
    path = tmp_path / f"weights.{kind.split()[-1]}"
    buffer = {} if grid is None else {"ori_grid": grid}
    if kind == "npz":
        write_npz(path, state, hyper, grid)
    elif kind == "bare npz":
        write_npz(path, state, None, grid)
    elif kind == "pt":
        torch.save({**state, **buffer}, path)
    elif kind == "ckpt":
        write_lightning(path, state, grid, hyper_parameters={"layers": 2, "lr": 5e-4, "degree": 3})
    else:
        save_file({**state, **buffer}, path)
    found, wanted = import_checkpoint(path), load_published(state, hyper, grid)
    assert found.metadata["imported_from"] == path.name
    assert found.network.config == wanted.network.config
    tensors = wanted.state_dict()
    assert found.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("suffix", ["npy", "npz", "tensor"])
def test_grid_from_a_file_of_its_own(suffix: str, tmp_path: Path) -> None:
    hyper, grid = make_hyper(), make_grid(20)
    assert grid is not None
    write_lightning(tmp_path / "last.ckpt", make_state(hyper), None)
    with pytest.raises(ValueError, match="ori_grid is missing"):
        import_checkpoint(tmp_path / "last.ckpt")
    given: Path | Tensor = tmp_path / f"grid.{suffix}"
    if suffix == "npy":
        np.save(tmp_path / "grid.npy", grid.numpy())
    elif suffix == "npz":
        np.savez(tmp_path / "grid.npz", ori_grid=grid.numpy(), other=np.zeros(2))
    else:
        given = grid
    potential = import_checkpoint(tmp_path / "last.ckpt", ori_grid=given, scale=0.5, species=[1, 6, 8])
    assert torch.equal(potential.network.orientations, grid)
    assert potential.scale == 0.5


def test_last_readout_only_is_inferred(tmp_path: Path) -> None:
    hyper = make_hyper(0, None, multiple_readouts=False)
    torch.save(make_state(hyper), tmp_path / "weights.pt")
    assert import_checkpoint(tmp_path / "weights.pt").network.config.multiple_readouts is False


def test_given_hyper_parameters_are_checked_against_the_file(tmp_path: Path) -> None:
    torch.save(make_state(make_hyper(0)), tmp_path / "weights.pt")
    assert import_checkpoint(tmp_path / "weights.pt", {"radius": 5.0}).cutoff == 5.0
    with pytest.raises(ValueError, match="radius is 6 Å"):
        import_checkpoint(tmp_path / "weights.pt", {"radius": 6.0})
    with pytest.raises(ValueError, match="point cloud"):
        import_checkpoint(tmp_path / "weights.pt", {"num_ori": -1})
