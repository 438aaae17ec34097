"""The published network from tensors under the authors' names and the arguments of their constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita

__all__ = ["Hyperparameters", "build_published", "some_names"]

#: How far from 1 the length of a grid vector may be: the authors make grids in float32.
_UNIT_TOLERANCE = 1e-5


def _checked_grid(grid: Tensor | None, num_ori: int) -> Tensor:
    """The grid if it fits; where there are no orientations, any one direction."""
    if num_ori == 0:
        if grid is not None:
            raise ValueError(f"ori_grid of shape {tuple(grid.shape)} was given, but num_ori = 0 has no orientations")
        return torch.tensor([[0.0, 0.0, 1.0]])
    if grid is None:
        raise ValueError(
            f"ori_grid is missing: num_ori = {num_ori} needs the orientation grid of the training run, shape "
            f"({num_ori}, 3). The authors' code draws it at random and does not save it with the weights; without it "
            "the numbers cannot be the same, and any other even grid gives an approximation"
        )
    if tuple(grid.shape) != (num_ori, 3):
        raise ValueError(f"ori_grid must have shape ({num_ori}, 3), found {tuple(grid.shape)}")
    if not grid.is_floating_point():
        raise ValueError(f"ori_grid must hold floating-point numbers, found {grid.dtype}")
    error = float((grid.double().norm(dim=-1) - 1.0).abs().max())
    if not error <= _UNIT_TOLERANCE:  # NaN fails too
        raise ValueError(f"ori_grid must hold unit vectors, but a length differs from 1 by {error:.3g}")
    return grid.detach()


class Hyperparameters(BaseModel):
    """Hyper-parameters under the names of the authors' constructor, and only those that this package can honour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_dim: Annotated[int, Field(ge=2, le=119)]
    hidden_dim: Annotated[int, Field(ge=1)]
    output_dim: Literal[1]
    num_layers: Annotated[int, Field(ge=1)]
    radius: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None
    num_ori: int
    basis_dim: Annotated[int, Field(ge=1)] | None
    degree: Annotated[int, Field(ge=1, le=10)]
    widening_factor: Annotated[int, Field(ge=1)]
    multiple_readouts: bool
    output_dim_vec: Literal[0] = 0
    task_level: Literal["graph"] = "graph"
    lift_graph: bool = True
    #: Initial value of an optional factor on each block; its trained value is in the state, or it was not used.
    layer_scale: float | None = None

    @field_validator("num_ori")
    @classmethod
    def _known_form(cls, value: int) -> int:
        if value < 0:
            raise ValueError(
                f"num_ori = {value} is the position-orientation point cloud, which is not supported: "
                "only fibre bundles (num_ori > 0) and PNITA (num_ori = 0) are"
            )
        return value

    def config(self, envelope_power: int = 6) -> PublishedConfig:
        """The same in this package's names."""
        return PublishedConfig(
            cutoff=self.radius,
            num_ori=self.num_ori,
            channels=self.hidden_dim,
            num_layers=self.num_layers,
            basis_dim=self.basis_dim or self.hidden_dim,
            degree=self.degree,
            widening=self.widening_factor,
            multiple_readouts=self.multiple_readouts,
            envelope_power=envelope_power,
        )


#: Names of a block's tensors: published name, name here.
_BLOCK = {
    "conv.kernel.weight": "convolution.spatial.weight",
    "conv.bias": "convolution.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "linear_1.weight": "expand.weight",
    "linear_1.bias": "expand.bias",
    "linear_2.weight": "contract.weight",
    "linear_2.bias": "contract.bias",
}


def _names(config: PublishedConfig) -> dict[str, str]:
    """Published name of each tensor to its name in :class:`PublishedPonita`; all but the embedding are copied as is."""
    names = {"x_embedder.weight": "embedding.weight"}
    bases = {"basis_fn": "spatial_basis", **({"fiber_basis_fn": "fibre_basis"} if config.num_ori else {})}
    for published, here in bases.items():
        # The authors' sequence starts with the polynomial features, which have no weights.
        for place, own in ((1, 0), (3, 2)):
            for kind in ("weight", "bias"):
                names[f"{published}.{place}.{kind}"] = f"{here}.network.{own}.{kind}"
    block = {**_BLOCK, **({"conv.fiber_kernel.weight": "convolution.fibre.weight"} if config.num_ori else {})}
    for layer in range(config.num_layers):
        names |= {f"interaction_layers.{layer}.{theirs}": f"layers.{layer}.{here}" for theirs, here in block.items()}
    for index, layer in enumerate(range(config.num_layers) if config.multiple_readouts else [config.num_layers - 1]):
        for kind in ("weight", "bias"):
            names[f"read_out_layers.{layer}.{kind}"] = f"readouts.{index}.{kind}"
    return names


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], config: PublishedConfig) -> None:
    """Refuse tensors that are missing, unknown, of the wrong shape or of a dtype that is not the others'."""
    layers = [f"interaction_layers.{layer}" for layer in range(config.num_layers)]
    optional: dict[str, tuple[int, ...]] = {f"{layer}.layer_scale": (config.channels,) for layer in layers}
    flags = {f"{layer}.conv.callibrated" for layer in layers}
    window = {"windowing_fn.p", "windowing_fn.r_max"}
    required = set(expected) | (window if config.cutoff is not None else set())
    if missing := sorted(required - set(state)):
        raise ValueError(f"the state lacks {some_names(missing)}, which these hyper-parameters call for")
    if unknown := sorted(set(state) - required - set(optional) - flags):
        raise ValueError(f"the state has {some_names(unknown)}, which no network of these hyper-parameters has")
    dtype = state["x_embedder.weight"].dtype
    shapes = {**optional, **expected, **dict.fromkeys(window, ())}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch tensor, found {type(tensor).__name__}")
        if name in flags:
            continue
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name} must have shape {shapes[name]}, found {tuple(tensor.shape)}")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, found {tensor.dtype}")
        if name not in window and tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but x_embedder.weight is {dtype}: convert all to one dtype")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")


def some_names(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _envelope_power(state: Mapping[str, Tensor], radius: float | None) -> int:
    """p of the envelope in the state, once its radius is known to be the one in the hyper-parameters."""
    if radius is None or "windowing_fn.r_max" not in state or "windowing_fn.p" not in state:
        return 6
    found, power = state["windowing_fn.r_max"], state["windowing_fn.p"]
    for name, value in (("windowing_fn.r_max", found), ("windowing_fn.p", power)):
        if value.shape != ():
            raise ValueError(f"{name} must have shape (), found {tuple(value.shape)}")
    if not abs(float(found) - radius) <= 1e-6 * radius:
        raise ValueError(f"windowing_fn.r_max is {float(found):g} Å, but the hyper-parameter radius is {radius:g} Å")
    if float(power) < 1 or float(power) != int(power):
        raise ValueError(f"windowing_fn.p must be a positive whole number, found {float(power):g}")
    return int(power)


def _species(species: Sequence[int] | None, input_dim: int) -> list[int]:
    """Atomic numbers to keep, ascending; class 0 of the one-hot is no element."""
    known = list(range(1, input_dim))
    if species is None:
        return known
    chosen = sorted({int(z) for z in species})
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"species must be atomic numbers from 1 to {input_dim - 1}, got {list(species)}")
    return chosen


def build_published(
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    ori_grid: Tensor | None = None,
    species: Sequence[int] | None = None,
) -> tuple[PublishedPonita, list[int]]:
    """The authors' network with these weights, in their dtype, and the atomic numbers that it takes, ascending.

    Args:
        state: Tensors under the published names, all float32 or all float64.
        hyper: Arguments of the authors' constructor: input_dim, hidden_dim, output_dim, num_layers, radius (Å or
            None), num_ori, basis_dim, degree, widening_factor, multiple_readouts.
        ori_grid: Grid of the training run, shape (num_ori, 3); None where num_ori is 0.
        species: Atomic numbers that the network was trained on; None for all that it has a place for, 1 to
            input_dim − 1, trained or not.

    Raises:
        ValueError: Naming the hyper-parameter, tensor or option that is missing, unknown, unsupported or misshapen.
    """
    options = Hyperparameters.model_validate(dict(hyper))
    grid = _checked_grid(ori_grid, options.num_ori)
    config = options.config(_envelope_power(state, options.radius))
    numbers = _species(species, options.input_dim)
    with torch.random.fork_rng(devices=[]):  # first weights, soon overwritten, must not draw from the user's
        network = PublishedPonita(config, len(numbers))
    names = _names(config)
    own = network.state_dict()
    expected = {theirs: tuple(own[here].shape) for theirs, here in names.items()}
    expected["x_embedder.weight"] = (config.channels, options.input_dim)
    _check_state(state, expected, config)

    network.to(state["x_embedder.weight"].dtype)
    weights = {here: state[theirs].detach() for theirs, here in names.items()}
    weights["embedding.weight"] = weights["embedding.weight"][:, numbers].T
    _fold_layer_scale(weights, state, config.num_layers)
    weights["orientations"] = grid
    weights["orientation_weights"] = torch.full((len(grid),), 1.0 / len(grid), dtype=torch.float64)
    network.load_state_dict(weights)
    return network, numbers


def _fold_layer_scale(weights: dict[str, Tensor], state: Mapping[str, Tensor], num_layers: int) -> None:
    """Multiply the optional factor on each block's output into its last linear map, which is the same."""
    for layer in range(num_layers):
        factor = state.get(f"interaction_layers.{layer}.layer_scale")
        if factor is not None:
            name = f"layers.{layer}.contract"
            weights[f"{name}.weight"] = factor.detach().unsqueeze(-1) * weights[f"{name}.weight"]
            weights[f"{name}.bias"] = factor.detach() * weights[f"{name}.bias"]
