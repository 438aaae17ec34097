"""The published network, number for number: potentials from weights trained with the authors' code.

The authors' PyTorch Geometric code (arXiv:2310.02970) draws its kernels from MLPs on polynomial features,

    k1(x_ij, n) = w1 · MLP(p(a1, a2)) u(|x_ij|),    a1 = x_ij·n,  a2 = |x_ij − a1 n|
    k2(n, n')   = w2 · MLP(p(n·n')),                p(x) = x, x⊗x, x⊗x⊗x, …

(num_ori = 0: k1 of |x_ij| alone, no k2) and counts every atom among its own neighbours. Its blocks, read-outs and
envelope u are those of :mod:`ponita_ff.convolution`. This form is here for parity; the force-field form of
:mod:`ponita_ff.model` is smooth, faster, and has a grid that does not depend on chance.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ponita_ff.convolution import ConvNeXt, envelope, over_orientations
from ponita_ff.graph import Graph, gather_neighbours
from ponita_ff.invariants import published_invariants
from ponita_ff.model import Network
from ponita_ff.potential import Potential

__all__ = ["PublishedConfig", "PublishedPonita", "import_checkpoint", "load_published"]

#: How far from 1 the length of a grid vector may be: the authors make grids in float32.
_UNIT_TOLERANCE = 1e-5


class PublishedConfig(BaseModel):
    """Everything that fixes the published network's shape. Refuses unknown and out-of-range values by field name.

    Attributes:
        cutoff: Radius of the neighbourhood, Å; None where all pairs of a molecule interact.
        num_ori: Orientations in the grid, or 0 for PNITA on R³.
        channels: Feature channels at every atom and orientation.
        num_layers: ConvNeXt blocks.
        basis_dim: Functions that the kernels of all layers combine.
        degree: Highest degree of the polynomial features.
        widening: Hidden width of a block over ``channels``.
        multiple_readouts: A read-out after every layer, or after the last only.
        envelope_power: p of :func:`ponita_ff.convolution.envelope`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["published"] = "published"
    cutoff: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    num_ori: Annotated[int, Field(ge=0)] = 20
    channels: Annotated[int, Field(ge=1)] = 128
    num_layers: Annotated[int, Field(ge=1)] = 5
    basis_dim: Annotated[int, Field(ge=1)] = 256
    degree: Annotated[int, Field(ge=1, le=10)] = 3
    widening: Annotated[int, Field(ge=1)] = 4
    multiple_readouts: bool = True
    envelope_power: Annotated[int, Field(ge=1)] = 6


def _num_features(attributes: int, degree: int) -> int:
    """Number of polynomial features of so many attributes."""
    return sum(attributes**power for power in range(1, degree + 1))


class PolynomialBasis(nn.Module):
    """Kernel basis: an MLP on x, x⊗x, x⊗x⊗x, … of the invariants x, without a constant."""

    def __init__(self, attributes: int, degree: int, hidden: int, basis_dim: int) -> None:
        super().__init__()
        self.degree = degree
        self.network = nn.Sequential(
            nn.Linear(_num_features(attributes, degree), hidden), nn.GELU(), nn.Linear(hidden, basis_dim), nn.GELU()
        )

    def forward(self, attributes: Tensor) -> Tensor:
        """Attributes (..., A) to basis values (..., basis_dim)."""
        powers = [attributes]
        for _ in range(1, self.degree):
            powers.append((powers[-1].unsqueeze(-1) * attributes.unsqueeze(-2)).flatten(-2))
        basis: Tensor = self.network(torch.cat(powers, dim=-1))
        return basis


class PublishedConvolution(nn.Module):
    """Depthwise convolution over neighbours and the atom itself, then over orientations."""

    def __init__(self, channels: int, basis_dim: int, fibre: bool) -> None:
        super().__init__()
        self.spatial = nn.Linear(basis_dim, channels, bias=False)
        self.fibre = nn.Linear(basis_dim, channels, bias=False) if fibre else None
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        features: Tensor,
        basis: Tensor,
        self_basis: Tensor,
        fibre_basis: Tensor,
        neighbours: Tensor,
        reverse: Tensor,
        fused: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            features: f, shape (N, O, C).
            basis: Spatial basis times envelope, zero in unused slots, shape (N, M, O, K).
            self_basis: Spatial basis at x_ii = 0, shape (K,).
            fibre_basis: Quadrature weight of n' times the fibre basis, shape (O', O, K), senders first; unused
                without orientations.
            neighbours: Shape (N, M).
            reverse: Shape (N, M).
            fused: See :func:`ponita_ff.convolution.over_orientations`.

        Returns:
            Shape (N, O, C).
        """
        senders = gather_neighbours(features, neighbours, reverse)
        spatial = (self.spatial(basis) * senders).sum(1) + self.spatial(self_basis) * features
        if self.fibre is not None:
            spatial = over_orientations(spatial, self.fibre(fibre_basis), fused)
        return spatial + self.bias


class PublishedPonita(Network):
    """PONITA as its authors published it (arXiv:2310.02970); for orientations, the fibre-bundle form.

    The grid belongs to the weights: the authors draw it at random, and what a network learnt on one grid it does not
    quite know on another. So there is none, but NaN, which no prediction survives, until a state with one is loaded.

    Args:
        config: Shape of the network.
        num_species: Number of chemical elements; the graph's elements come in as indices 0 … num_species − 1.
    """

    def __init__(self, config: PublishedConfig, num_species: int) -> None:
        super().__init__()
        self.config = config
        self.cutoff, self.envelope_power = config.cutoff, config.envelope_power
        channels, basis_dim, fibre = config.channels, config.basis_dim, bool(config.num_ori)
        self.embedding = nn.Embedding(num_species, channels)
        self.spatial_basis = PolynomialBasis(2 if fibre else 1, config.degree, channels, basis_dim)
        self.fibre_basis = PolynomialBasis(1, config.degree, channels, basis_dim) if fibre else None
        self.layers = nn.ModuleList(
            ConvNeXt(PublishedConvolution(channels, basis_dim, fibre), channels, config.widening)
            for _ in range(config.num_layers)
        )
        number = config.num_layers if config.multiple_readouts else 1
        self.readouts = nn.ModuleList(nn.Linear(channels, 1) for _ in range(number))
        size = max(config.num_ori, 1)
        grid = torch.full((size, 3), torch.nan) if fibre else torch.tensor([[0.0, 0.0, 1.0]])
        self.orientations: Tensor
        self.orientation_weights: Tensor
        self.register_buffer("orientations", grid.to(self.embedding.weight))
        self.register_buffer("orientation_weights", torch.full((size,), 1.0 / size).to(self.orientations))

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, fused: bool = False) -> Tensor:
        """Atomic energies in the network's own scale, shape (N,).

        Args:
            graph: Topology: its ``neighbours``, ``reverse`` and ``used``.
            species: Index of each atom's element, shape (N,).
            vectors: Edge vectors, shape (N, M, 3), Å, in the network's dtype.
            fused: See :class:`PublishedConvolution`.
        """
        basis = self._edge_basis(vectors, graph.used)
        # Of x_ii = 0 every invariant is 0 and so is every feature: a constant, the same at all orientations.
        self_basis = self.spatial_basis(vectors.new_zeros(2 if self.fibre_basis is not None else 1))
        fibre_basis = self._fibre_basis()

        # A product with a one-hot matrix, not a look-up: its gradient adds up in the same order in every run.
        every = torch.arange(self.embedding.num_embeddings, device=species.device)
        one_hot = (species.unsqueeze(-1) == every).to(vectors.dtype)
        features = (one_hot @ self.embedding.weight).unsqueeze(1).expand(-1, len(self.orientations), -1)
        first_readout = len(self.layers) - len(self.readouts)
        energy = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for index, layer in enumerate(self.layers):
            features = layer(features, basis, self_basis, fibre_basis, graph.neighbours, graph.reverse, fused=fused)
            if index >= first_readout:
                energy = energy + self.readouts[index - first_readout](features).squeeze(-1)
        return (energy @ self.orientation_weights) / len(self.readouts)

    def _edge_basis(self, vectors: Tensor, used: Tensor) -> Tensor:
        """Spatial basis of every edge, times the envelope, zero in unused slots; shape (N, M, O or 1, K)."""
        # High powers of an unused slot's length overflow float32 in second derivatives: a harmless vector instead.
        vectors = torch.where(used.unsqueeze(-1), vectors, torch.ones_like(vectors))
        distance = vectors.square().sum(-1).sqrt()
        if self.fibre_basis is None:
            attributes = distance[..., None, None]
        else:
            attributes = published_invariants(vectors, self.orientations)
        window = used.to(vectors.dtype)
        if self.cutoff is not None:
            window = window * envelope(distance, self.cutoff, self.envelope_power)
        basis: Tensor = self.spatial_basis(attributes)
        return basis * window[..., None, None]

    def _fibre_basis(self) -> Tensor:
        """Quadrature weight of n' times the basis of n·n', shape (O', O, K), senders first; empty without a grid."""
        if self.fibre_basis is None:
            return self.orientations.new_zeros(0)
        basis: Tensor = self.fibre_basis((self.orientations @ self.orientations.T).unsqueeze(-1))
        return basis * self.orientation_weights[:, None, None]


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


class _Hyper(BaseModel):
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
        raise ValueError(f"the state lacks {_some(missing)}, which these hyper-parameters call for")
    if unknown := sorted(set(state) - required - set(optional) - flags):
        raise ValueError(f"the state has {_some(unknown)}, which no network of these hyper-parameters has")
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


def _some(names: Sequence[str]) -> str:
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


def load_published(
    state: Mapping[str, Tensor],
    hyper: Mapping[str, Any],
    ori_grid: Tensor | None = None,
    *,
    species: Sequence[int] | None = None,
    scale: float = 1.0,
    energy_per_atom: float = 0.0,
) -> Potential:
    """Potential whose network is the authors' network with these weights.

    Args:
        state: Tensors under the published names, all float32 or all float64.
        hyper: Arguments of the authors' constructor: input_dim, hidden_dim, output_dim, num_layers, radius (Å or
            None), num_ori, basis_dim, degree, widening_factor, multiple_readouts.
        ori_grid: Grid of the training run, shape (num_ori, 3); None where num_ori is 0.
        species: Atomic numbers that the network was trained on; None for all that it has a place for, 1 to
            input_dim − 1, trained or not.
        scale: eV per unit of network output.
        energy_per_atom: eV added for every atom (see :func:`import_checkpoint`).

    Returns:
        Potential in the dtype of the weights, in eval mode, weights without gradients.

    Raises:
        ValueError: Naming the hyper-parameter, tensor or option that is missing, unknown, unsupported or misshapen.
    """
    options = _Hyper.model_validate(dict(hyper))
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
    origin = "none" if energy_per_atom == 0.0 else "one energy for every atom, given at import"
    metadata = {"origin": "weights from the published PONITA code", "reference_energies_from": origin}
    potential = Potential(network, numbers, dict.fromkeys(numbers, energy_per_atom), scale, metadata=metadata)
    return potential.eval().requires_grad_(False)


def _fold_layer_scale(weights: dict[str, Tensor], state: Mapping[str, Tensor], num_layers: int) -> None:
    """Multiply the optional factor on each block's output into its last linear map, which is the same."""
    for layer in range(num_layers):
        factor = state.get(f"interaction_layers.{layer}.layer_scale")
        if factor is not None:
            name = f"layers.{layer}.contract"
            weights[f"{name}.weight"] = factor.detach().unsqueeze(-1) * weights[f"{name}.weight"]
            weights[f"{name}.bias"] = factor.detach() * weights[f"{name}.bias"]


def import_checkpoint(
    path: Path | str,
    hyper: Mapping[str, Any] | None = None,
    *,
    ori_grid: Path | str | Tensor | None = None,
    species: Sequence[int] | None = None,
    scale: float = 1.0,
    energy_per_atom: float = 0.0,
) -> Potential:
    """Potential from a file with weights that were trained with the authors' code. No code in the file is ever run.

    The authors' rMD17 script predicts energy = scale · network + shift, in meV, and saves neither of the two with the
    weights, nor the grid: scale is the root mean square of the training forces, shift the mean training energy of the
    one molecule. Give ``scale`` in eV (theirs / 1000). A mean energy per molecule says nothing about another number
    of atoms, so it comes in as ``energy_per_atom`` (theirs / 1000 / number of atoms) and is right for that molecule.
    Weights are taken from the file's ``state_dict``; averaged weights that an optimiser keeps elsewhere are not.

    Args:
        path: ``.ckpt``, ``.pt`` or ``.pth`` with a state dict, bare or under ``state_dict``; ``.safetensors`` with the
            tensors; or ``.npz`` with ``state/<name>``, ``hyper`` (JSON) and ``ori_grid``.
        hyper: Arguments of the authors' constructor that win over those in the file and those inferred from the
            tensors' shapes. All can be inferred as a rule.
        ori_grid: Grid of the training run, shape (num_ori, 3): a ``.npy`` or ``.npz`` file (one array, or the one
            named ``ori_grid``) or a tensor; wins over one in the file.
        species: See :func:`load_published`.
        scale: See :func:`load_published`.
        energy_per_atom: eV added for every atom.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: For files that hold something else, and as :func:`load_published`; the message says what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    tensors, in_file = _read_tensors(path)
    state, grid = _network_state(tensors, path)
    if ori_grid is not None:
        grid = ori_grid if isinstance(ori_grid, Tensor) else _read_grid(Path(ori_grid))
    options = {**_inferred_hyper(state, grid), **in_file, **(hyper or {})}
    if options["num_ori"] == 0 and ori_grid is None:
        grid = None
    potential = load_published(state, options, grid, species=species, scale=scale, energy_per_atom=energy_per_atom)
    potential.metadata |= {"name": path.stem, "imported_from": path.name}
    return potential


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


def _read_grid(path: Path) -> Tensor:
    """The orientation grid in a file."""
    arrays = _numpy_arrays(path)
    name = next(iter(arrays)) if len(arrays) == 1 else "ori_grid"
    if name not in arrays:
        raise ValueError(f"{path} has {_some(sorted(arrays))}: name the orientation grid ori_grid")
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
    return {name: value for name, value in renamed.items() if name in _Hyper.model_fields}


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


def _inferred_hyper(state: Mapping[str, Tensor], grid: Tensor | None) -> dict[str, Any]:
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
