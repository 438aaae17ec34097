"""What the kernels do not implement is refused by name, and torch computes it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor, nn

from ponita_ff import PonitaCalculator
from ponita_ff.backends.native import support
from ponita_ff.backends.native.engine import NativeNetwork
from ponita_ff.backends.native.support import check_network, check_size, check_training_potential
from ponita_ff.backends.native.training import NativeDifferentiation
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.network.block import ConvNeXt
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import LossConfig
from ponita_ff.training.step import TrainingStep

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

Make = Callable[..., Potential]


class DampedPonita(Ponita):
    """A form with a forward of its own."""

    def forward(self, *args: object, **options: object) -> Tensor:
        return 0.5 * super().forward(*args, **options)


class GatedBlock(ConvNeXt):
    """A block with a forward of its own."""

    def forward(self, features: Tensor, *geometry: object, for_compile: bool = False) -> Tensor:
        return torch.tanh(super().forward(features, *geometry, for_compile=for_compile))


class ChargedConfig(PonitaConfig):
    """A configuration with a field more."""

    total_charge: float = 0.0


def subclass(network: Ponita) -> None:
    network.__class__ = DampedPonita


def block(network: Ponita) -> None:
    network.layers[1].__class__ = GatedBlock


def activation(network: Ponita) -> None:
    network.radial_basis.network[1] = nn.GELU()


def norm(network: Ponita) -> None:
    network.layers[0].norm = nn.Identity()


def dropout(network: Ponita) -> None:
    network.layers[1].dropout = nn.Dropout(0.1)


def field(network: Ponita) -> None:
    network.config = ChargedConfig(**network.config.model_dump())


def missing_field(network: Ponita) -> None:
    fields = {name: value for name, value in PonitaConfig.model_fields.items() if name != "widening"}
    network.config = type("Shorter", (), {"model_fields": fields})()


def parameter(network: Ponita) -> None:
    network.temperature = nn.Parameter(torch.ones(1))


def buffer(network: Ponita) -> None:
    network.register_buffer("mask", torch.ones(3))


def own_forward(network: Ponita) -> None:
    network.layers[0].forward = lambda features, *geometry, **options: features


def hook(network: Ponita) -> None:
    network.layers[0].register_forward_hook(lambda module, args, output: 2 * output)


def eps(network: Ponita) -> None:
    network.layers[1].norm.eps = 1e-3


def cutoff(network: Ponita) -> None:
    network.radial_basis.cutoff = 3.0


def shared_layer(network: Ponita) -> None:
    network.layers[1] = network.layers[0]


def wide_readout(network: Ponita) -> None:
    network.readouts[0].weight = nn.Parameter(torch.zeros(2, 16))


def transposed(network: Ponita) -> None:
    weight = network.layers[0].expand.weight
    network.layers[0].expand.weight = nn.Parameter(weight.detach().T.contiguous().T)


def mixed(network: Ponita) -> None:
    network.layers[0].expand.double()


def not_a_number(network: Ponita) -> None:
    with torch.no_grad():
        network.layers[0].contract.bias[2] = torch.nan


def odd_grid(network: Ponita) -> None:
    network.orientations, network.orientation_weights = network.orientations[:7], network.orientation_weights[:7]


#: Each with what the message must say.
PLANTED: list[tuple[Callable[[Ponita], None], str]] = [
    (subclass, "class .*DampedPonita as the network"),
    (block, r"class .*GatedBlock as 'layers\.1': they know ConvNeXt there"),
    (activation, r"class .*GELU as 'radial_basis\.network\.1': they know SiLU there"),
    (norm, r"class .*Identity as 'layers\.0\.norm'"),
    (dropout, r"class .*Dropout as 'layers\.1\.dropout'"),
    (field, "config field 'total_charge'"),
    (missing_field, "need the config field 'widening'"),
    (parameter, "do not implement the parameter 'temperature'"),
    (buffer, "other buffers: 'mask'"),
    (own_forward, r"attribute 'forward' of ConvNeXt as 'layers\.0'"),
    (hook, r"hooks of ConvNeXt as 'layers\.0'"),
    (eps, r"norm\.eps = 0\.001"),
    (cutoff, r"radial_basis\.cutoff = 3\.0: they expect 4\.0"),
    (shared_layer, r"layers\.\d\..* sharing its memory"),
    (wide_readout, r"readouts\.0\.weight has the shape \(2, 16\)"),
    (transposed, r"layers\.0\.expand\.weight is not contiguous"),
    (mixed, r"not torch\.float64 \(layers\.0\.expand\.weight\)"),
    (not_a_number, r"layers\.0\.contract\.bias has values that are not finite"),
    (odd_grid, "even number of orientations, not 7"),
]


@pytest.mark.parametrize(("plant", "message"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_refused_by_name(plant: Callable[[Ponita], None], message: str, make_potential: Make) -> None:
    potential = make_potential(dtype=torch.float32)
    assert check_network(potential.network) is potential.network
    plant(potential.network)
    for kernels in (lambda: NativeNetwork(potential.network), lambda: NativeDifferentiation(potential)):
        with pytest.raises(KernelError, match=message):
            kernels()


@pytest.mark.parametrize("plant", [subclass, block, field], ids=lambda plant: plant.__name__)
def test_the_calculator_goes_on_with_torch_and_says_so(
    plant: Callable[[Ponita], None],
    make_potential: Make,
    make_system: Callable[[str], Atoms],
    caplog: pytest.LogCaptureFixture,
) -> None:
    potential, atoms = make_potential(dtype=torch.float32), make_system("molecule")
    before = PonitaCalculator(potential, backend="eager").get_forces(atoms)
    plant(potential.network)
    with caplog.at_level(logging.INFO):
        calculator = PonitaCalculator(potential)
        forces = calculator.get_forces(atoms)
    assert calculator.backend == "eager"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "do not implement" in message
    assert np.allclose(forces, before, atol=1e-6) == (plant is field)
    assert np.array_equal(forces, PonitaCalculator(potential, backend="eager").get_forces(atoms))


@pytest.mark.parametrize("plant", [subclass, block, field], ids=lambda plant: plant.__name__)
def test_training_goes_on_with_torch_and_says_so(
    plant: Callable[[Ponita], None], make_potential: Make, caplog: pytest.LogCaptureFixture
) -> None:
    potential = make_potential(dtype=torch.float32).requires_grad_(True)
    plant(potential.network)
    assert TrainingStep(potential, LossConfig(), "native").backend == "eager"
    assert "training without native kernels: the native kernels do not implement" in caplog.text


def test_a_new_field_of_the_configuration_must_be_listed() -> None:
    """Whoever adds one implements it in the kernels, or leaves it out of the list: then they are not used."""
    assert frozenset(PonitaConfig.model_fields) == support._CONFIG_FIELDS


@pytest.mark.parametrize("shape", [{}, {"num_ori": 0}, {"num_ori": 20, "l_max": 0, "num_layers": 1}], ids=str)
def test_what_they_implement_is_accepted(shape: dict[str, int], make_potential: Make) -> None:
    for dtype in (torch.float32, torch.float64):
        network = make_potential(dtype=dtype, **shape).network
        assert check_network(network.requires_grad_(False).eval()) is network
        assert check_network(network.requires_grad_(True).train()) is network


def test_devices_and_dtypes(make_potential: Make) -> None:
    with pytest.raises(KernelError, match="run on the CPU, not on meta"):
        check_network(make_potential().network.to("meta"))
    with pytest.raises(KernelError, match=r"not torch\.bfloat16"):
        check_network(make_potential(dtype=torch.bfloat16).network)


class SmallKernels:
    """Kernels with little room."""

    def limit(self, name: str) -> int:
        return {"MAX_LAYERS": 1, "MAX_DEGREES": 9}[name]


def test_networks_beyond_the_limits(make_potential: Make) -> None:
    check_size(make_potential(num_layers=1, l_max=8).network, SmallKernels())
    with pytest.raises(KernelError, match="up to 1 layers, not 2"):
        check_size(make_potential(l_max=8).network, SmallKernels())
    with pytest.raises(KernelError, match="up to 9 Legendre degrees, not 10"):
        check_size(make_potential(num_layers=1, l_max=9).network, SmallKernels())


def test_more_to_train_than_the_network(make_potential: Make) -> None:
    potential = make_potential()
    check_training_potential(potential)
    potential.shift = nn.Parameter(torch.zeros(1))
    with pytest.raises(KernelError, match="do not train the parameter 'shift'"):
        check_training_potential(potential)
