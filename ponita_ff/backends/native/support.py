"""What the native kernels implement, as a list: everything else is refused and left to torch.

The C++ sources repeat the mathematics of ``network/``. A subclass with a forward of its own, a part that was exchanged,
or a new field of the configuration would silently get the old mathematics. So the kernels accept a network only if
each of its modules, parameters, buffers, attributes and configuration fields is listed here. Whoever adds one either
implements it in the kernels and lists it, or leaves it out, and it runs eagerly. :mod:`comparison` checks the result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.build import KernelError
from ponita_ff.kernels.loader import SUFFIX, Kernels
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.convolution import SeparableConvolution
from ponita_ff.network.ponita import Ponita
from ponita_ff.network.radial import RadialBasis

__all__ = ["check_network", "check_size", "check_training_potential"]

#: Fields of the configuration. The kernels read most of them; ``form`` is one by its class, and
#: ``avg_num_neighbours`` matters for the initial weights only.
_CONFIG_FIELDS = frozenset(
    {
        "form",
        "cutoff",
        "num_ori",
        "channels",
        "num_layers",
        "l_max",
        "widening",
        "num_bessel",
        "radial_hidden",
        "radial_basis",
        "avg_num_neighbours",
    }
)

#: Exact class of every module; ``*`` stands for the number of a layer.
_MODULES: dict[str, type[nn.Module]] = {
    "": Ponita,
    "embedding": nn.Embedding,
    "radial_basis": RadialBasis,
    "radial_basis.network": nn.Sequential,
    "radial_basis.network.0": nn.Linear,
    "radial_basis.network.1": nn.SiLU,
    "radial_basis.network.2": nn.Linear,
    "radial_basis.network.3": nn.SiLU,
    "layers": nn.ModuleList,
    "layers.*": ConvNeXt,
    "layers.*.convolution": SeparableConvolution,
    "layers.*.convolution.radial": nn.Linear,
    "layers.*.norm": nn.LayerNorm,
    "layers.*.expand": nn.Linear,
    "layers.*.contract": nn.Linear,
    "readouts": nn.ModuleList,
    "readouts.*": nn.Linear,
}

#: Attributes of the modules besides parameters, buffers and submodules. ``forward`` is in none of the lists.
_ATTRIBUTES: dict[type[nn.Module], frozenset[str]] = {
    Ponita: frozenset({"config", "cutoff", "l_max"}),
    ConvNeXt: frozenset(),
    SeparableConvolution: frozenset({"channels", "l_max", "fibre"}),  # fibre: None without orientations
    RadialBasis: frozenset({"cutoff", "num_bessel"}),
    nn.Embedding: frozenset(nn.Embedding.__constants__),
    nn.LayerNorm: frozenset(nn.LayerNorm.__constants__),
    nn.Linear: frozenset(nn.Linear.__constants__),
    nn.ModuleList: frozenset(),
    nn.Sequential: frozenset(),
    nn.SiLU: frozenset(nn.SiLU.__constants__),
}

_MODULE_STATE = frozenset(vars(nn.Module()))

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_BUFFERS = frozenset({"orientations", "orientation_weights"})


def check_network(network: nn.Module) -> Ponita:
    """Refuse a network that is not, in every part, what the kernels implement.

    Args:
        network: Any.

    Returns:
        The network.

    Raises:
        KernelError: Naming what the kernels do not implement.
    """
    if not isinstance(network, Ponita):
        raise KernelError(f"only the force-field form has native kernels, not the class {_name_of(type(network))}")
    _check_config(network)
    _check_modules(network)
    _check_parameters(network)
    _check_settings(network)
    return network


def check_size(network: Ponita, kernels: Kernels) -> None:
    """Refuse a network that is larger than the kernels' arrays (limits.h).

    Raises:
        KernelError: Naming the limit.
    """
    for what, number, limit in (
        ("layers", len(network.layers), kernels.limit("MAX_LAYERS")),
        ("Legendre degrees", network.l_max + 1, kernels.limit("MAX_DEGREES")),
    ):
        if number > limit:
            raise KernelError(f"the native kernels take up to {limit} {what}, not {number}")


def check_training_potential(potential: EnergyModel) -> None:
    """Refuse a potential with more to train, or to differentiate, than its network.

    Raises:
        KernelError: Naming what the training kernels do not implement.
    """
    if len(potential.rotations) > 1:
        raise KernelError("the native kernels do not train averages over rotations")
    for name, _ in potential.named_parameters():
        if not name.startswith("network."):
            raise KernelError(f"the native kernels do not train the parameter {name!r}, which is not the network's")


def _check_config(network: Ponita) -> None:
    fields = frozenset(type(network.config).model_fields)
    for field in sorted(fields - _CONFIG_FIELDS):
        raise KernelError(f"the native kernels do not implement the config field {field!r}")
    for field in sorted(_CONFIG_FIELDS - fields):
        raise KernelError(f"the native kernels need the config field {field!r}, which this network does not have")
    if type(network.config) is not PonitaConfig:
        raise KernelError(f"the native kernels do not implement the config class {_name_of(type(network.config))}")


def _check_modules(network: Ponita) -> None:
    """Exact classes, no other modules, attributes or hooks, and each module in one place only."""
    for name, module in network.named_modules(remove_duplicate=False):
        known = _MODULES.get(re.sub(r"^(layers|readouts)\.\d+", r"\1.*", name))
        place = f"as {name!r}" if name else "as the network"
        if known is None or type(module) is not known:
            expected = f": they know {known.__name__} there" if known else ""
            raise KernelError(
                f"the native kernels do not implement the class {_name_of(type(module))} {place}{expected}"
            )
        for attribute in sorted(vars(module).keys() - _MODULE_STATE - _ATTRIBUTES[known]):
            raise KernelError(f"the native kernels do not know the attribute {attribute!r} of {known.__name__} {place}")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise KernelError(f"the native kernels do not run the hooks of {known.__name__} {place}")
    present = {name for name, _ in network.named_modules(remove_duplicate=False)}
    needed = {name.replace("*", str(layer)) for name in _MODULES for layer in range(network.config.num_layers)}
    for name in sorted(needed - present):
        raise KernelError(f"the native kernels need the module {name!r}, which this network does not have")


def _check_parameters(network: Ponita) -> None:
    """Names, shapes, dtype, device and memory layout of what the kernels read through bare addresses."""
    found = dict(network.named_parameters(remove_duplicate=False))
    expected = dict(_parameter_shapes(network.config, network.embedding.num_embeddings))
    for name in sorted(found.keys() ^ expected.keys()):
        problem = "do not implement" if name in found else "need"
        raise KernelError(f"the native kernels {problem} the parameter {name!r}")
    for buffer in sorted({name for name, _ in network.named_buffers()} ^ _BUFFERS):
        raise KernelError(f"the native kernels do not implement a network with other buffers: {buffer!r}")
    dtype = network.embedding.weight.dtype
    for name, parameter in found.items():
        if parameter.device.type != "cpu":
            raise KernelError(f"the native kernels run on the CPU, not on {parameter.device}")
        if parameter.dtype not in SUFFIX or parameter.dtype != dtype:
            raise KernelError(
                f"the native kernels compute in float32 and float64 alone, not {parameter.dtype} ({name})"
            )
        if tuple(parameter.shape) != expected[name]:
            raise KernelError(f"{name} has the shape {tuple(parameter.shape)}; the kernels expect {expected[name]}")
        if not parameter.is_contiguous():
            raise KernelError(f"{name} is not contiguous, as the native kernels need it")
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise KernelError(f"{name} has values that are not finite: the native kernels cannot be checked with them")
    shared = [address for address, number in Counter(p.data_ptr() for p in found.values()).items() if number > 1]
    for name, parameter in found.items():
        if parameter.data_ptr() in shared:
            raise KernelError(f"the native kernels do not implement {name} sharing its memory with another parameter")


def _parameter_shapes(config: PonitaConfig, num_species: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters of a network of this configuration."""
    channels, degrees, hidden = config.channels, config.l_max + 1, config.channels * config.widening
    yield "embedding.weight", (num_species, channels)
    yield "radial_basis.network.0.weight", (config.radial_hidden, config.num_bessel)
    yield "radial_basis.network.0.bias", (config.radial_hidden,)
    yield "radial_basis.network.2.weight", (config.radial_basis, config.radial_hidden)
    yield "radial_basis.network.2.bias", (config.radial_basis,)
    for layer in range(config.num_layers):
        block = f"layers.{layer}"
        if config.num_ori:
            yield f"{block}.convolution.fibre", (degrees, channels)
        yield f"{block}.convolution.self_weight", (channels,)
        yield f"{block}.convolution.bias", (channels,)
        yield f"{block}.convolution.radial.weight", (degrees * channels, config.radial_basis)
        yield f"{block}.norm.weight", (channels,)
        yield f"{block}.norm.bias", (channels,)
        yield f"{block}.expand.weight", (hidden, channels)
        yield f"{block}.expand.bias", (hidden,)
        yield f"{block}.contract.weight", (channels, hidden)
        yield f"{block}.contract.bias", (channels,)
        yield f"readouts.{layer}.weight", (1, channels)
        yield f"readouts.{layer}.bias", (1,)


def _check_settings(network: Ponita) -> None:
    """Settings of the modules that the kernels take from the configuration, or once for all layers."""
    config, radial = network.config, network.radial_basis
    layers = [layer for layer in network.layers if isinstance(layer, ConvNeXt)]
    convolutions = [layer.convolution for layer in layers]
    pairs: list[tuple[str, object, object]] = [
        ("cutoff", network.cutoff, config.cutoff),
        ("l_max", network.l_max, config.l_max),
        ("radial_basis.cutoff", radial.cutoff, config.cutoff),
        ("radial_basis.num_bessel", radial.num_bessel, config.num_bessel),
        *(("convolution.channels", convolution.channels, config.channels) for convolution in convolutions),
        *(("convolution.l_max", convolution.l_max, config.l_max) for convolution in convolutions),
        *(("norm.normalized_shape", tuple(layer.norm.normalized_shape), (config.channels,)) for layer in layers),
        *(("norm.eps", layer.norm.eps, layers[0].norm.eps) for layer in layers),
        ("orientation_weights", tuple(network.orientation_weights.shape), tuple(network.orientations.shape[:1])),
    ]
    for name, value, expected in pairs:
        if value != expected:
            raise KernelError(f"the native kernels do not implement {name} = {value}: they expect {expected}")
    number = len(network.orientations)
    if number % 2 and config.num_ori:
        raise KernelError(f"the native kernels need an even number of orientations, not {number}")


def _name_of(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
