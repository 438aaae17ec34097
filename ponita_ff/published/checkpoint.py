"""Files with weights that were trained with the authors' code, read without running any code in them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ponita_ff.published.weights import Hyperparameters, some_names

__all__ = ["inferred_hyper", "read_grid", "read_state"]


def read_state(path: Path) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Any]]:
    """The network's tensors under the published names, the orientation grid, and what hyper-parameters the file states.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: For files that hold something else; the message says what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    tensors, stated = _read_tensors(path)
    state, grid = _network_state(tensors, path)
    return state, grid, stated


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by the names in the file, and those hyper-parameters that the file states."""
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    readers |= dict.fromkeys((".ckpt", ".pt", ".pth"), _read_torch)
    if path.suffix not in readers:
        raise ValueError(f"{path} is not a checkpoint that can be imported: its name must end in {', '.join(readers)}")
    return readers[path.suffix](path)


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays = _numpy_arrays(path)
    tensors = {name.removeprefix("state/"): array for name, array in arrays.items() if name.startswith("state/")}
    if "ori_grid" in arrays:
        tensors["ori_grid"] = arrays["ori_grid"]
    return _as_tensors(tensors, path), _parse_hyper(str(arrays["hyper"]) if "hyper" in arrays else None, path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or export it again") from None
    if "ponita_ff" in notes:
        raise ValueError(f"{path} is a potential of this package already: use it as it is")
    return tensors, _parse_hyper(notes.get("hyper"), path)


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is damaged, or holds Python objects besides tensors, which could run code and are never loaded "
            f"({reason}). Where you trust it, open it with the authors' code and write the weights alone: "
            "torch.save(network.state_dict(), 'weights.pt')"
        ) from None
    stated: Any = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        stated, content = content.get("hyper_parameters"), content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} has no state dict: expected tensors by name, or such a dict under 'state_dict'")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, _known_hyper(stated if isinstance(stated, dict) else {})


def _numpy_arrays(path: Path) -> dict[str, Any]:
    """Arrays of a .npz by name, or that of a .npy under the empty name; never pickled objects."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # numpy and zipfile throw a dozen kinds at a damaged file
        raise ValueError(f"{path} is not a whole .npy or .npz file of plain arrays ({error})") from None


def _as_tensors(arrays: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, array in arrays.items():
        try:
            tensors[name] = torch.from_numpy(np.array(array))
        except TypeError:
            raise ValueError(f"{name} in {path} holds {array.dtype}, not numbers") from None
    return tensors


def read_grid(path: Path) -> Tensor:
    """The orientation grid in a file."""
    arrays = _numpy_arrays(path)
    name = next(iter(arrays)) if len(arrays) == 1 else "ori_grid"
    if name not in arrays:
        raise ValueError(f"{path} has {some_names(sorted(arrays))}: name the orientation grid ori_grid")
    return _as_tensors({"ori_grid": arrays[name]}, path)["ori_grid"]


def _parse_hyper(text: str | None, path: Path) -> dict[str, Any]:
    """Hyper-parameters that a file states as JSON."""
    try:
        stated = json.loads(text) if text is not None else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"hyper in {path} is not JSON ({error})") from None
    if not isinstance(stated, dict):
        raise ValueError(f"hyper in {path} must be a JSON object, found {type(stated).__name__}")
    return stated


def _known_hyper(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The network's hyper-parameters among all settings of a training run."""
    renamed = {{"layers": "num_layers"}.get(name, name): value for name, value in stated.items()}
    return {name: value for name, value in renamed.items() if name in Hyperparameters.model_fields}


def _network_state(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The network's tensors without their common prefix, and the orientation grid where there is one."""
    anchor = "x_embedder.weight"
    prefixes = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")]
    if not prefixes:
        raise ValueError(f"{path} is no checkpoint of the published PONITA code: it has no tensor {anchor}")
    if len(prefixes) > 1:
        found = ", ".join(repr(prefix) for prefix in prefixes)
        raise ValueError(f"{path} holds several networks (prefixes {found}): save the state dict of one of them")
    grids = [tensor for name, tensor in tensors.items() if name.split(".")[-1] == "ori_grid"]
    state = {
        name.removeprefix(prefixes[0]): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefixes[0]) and name.split(".")[-1] != "ori_grid"
    }
    return state, grids[0] if grids else None


def inferred_hyper(state: Mapping[str, Tensor], grid: Tensor | None) -> dict[str, Any]:
    """Hyper-parameters from names and shapes.

    Raises:
        ValueError: Naming a tensor that is missing, or a number that only the grid could tell.
    """
    embedder, spatial, wide = (
        _matrix(state, name)
        for name in ("x_embedder.weight", "basis_fn.1.weight", "interaction_layers.0.linear_1.weight")
    )
    blocks = {name.split(".")[1] for name in state if name.startswith("interaction_layers.")}
    readouts = {name.split(".")[1] for name in state if name.startswith("read_out_layers.")}
    has_fibre = "fiber_basis_fn.1.weight" in state
    # One attribute has as many features as degrees; with three (the point cloud of num_ori = -1) there would be 39.
    degree = _matrix(state, "fiber_basis_fn.1.weight" if has_fibre else "basis_fn.1.weight")[1]
    if not has_fibre and degree > 10:
        raise ValueError(
            f"basis_fn.1.weight takes {spatial[1]} features: this is the position-orientation point cloud "
            "(num_ori = -1), which is not supported"
        )
    radius = state.get("windowing_fn.r_max")
    hyper: dict[str, Any] = {
        "input_dim": embedder[1],
        "hidden_dim": embedder[0],
        "num_layers": len(blocks),
        "radius": float(radius) if radius is not None and radius.numel() == 1 else None,
        "basis_dim": _matrix(state, "basis_fn.3.weight")[0],
        "degree": degree,
        "widening_factor": wide[0] // embedder[0],
        "multiple_readouts": len(readouts) == len(blocks),
        "num_ori": 0,
    }
    if readouts:
        hyper["output_dim"] = _matrix(state, f"read_out_layers.{max(readouts, key=_place)}.weight")[0]
    if has_fibre:
        # Without a grid any positive number does: what is missing then is the grid, and load_published says so.
        hyper["num_ori"] = len(grid) if grid is not None and grid.ndim else 20
    return hyper


def _matrix(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Shape of a weight matrix."""
    if name not in state:
        raise ValueError(f"the state lacks {name}: this is no whole checkpoint of the published PONITA code")
    if state[name].ndim != 2:
        raise ValueError(f"{name} must be a matrix, found shape {tuple(state[name].shape)}")
    rows, columns = state[name].shape
    return rows, columns


def _place(layer: str) -> int:
    """Sorting key of a layer's place in a name."""
    return int(layer) if layer.isdigit() else -1
