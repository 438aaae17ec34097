"""Which backend computes, what happens where it is not to be had, and that all of them give the same."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ponita_ff import PonitaCalculator
from ponita_ff.backends.predictor import BACKENDS, Predictor
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.network.base import Network
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph, edge_vectors

Make = Callable[..., Potential]

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")


class TorchEngine:
    """What the C++ engine computes, by torch, and with its interface."""

    def __init__(self, network: Network) -> None:
        self.network = copy.deepcopy(network)

    def __call__(self, graph: Graph, species: Tensor, rotations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        dtype = next(self.network.parameters()).dtype
        positions = graph.positions.clone().requires_grad_(True)
        strain = torch.zeros(len(graph.cell), 3, 3, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            vectors = edge_vectors(positions, graph.offsets, graph.neighbours, graph.reverse)
            vectors = vectors + vectors @ (0.5 * (strain + strain.mT))[graph.batch]
            turned = [vectors] if rotations is None else [vectors @ rotation for rotation in rotations]
            energies = torch.stack([self.network(graph, species, v.to(dtype)) for v in turned]).mean(0).double()
            gradient, virial = torch.autograd.grad(energies.sum(), (positions, strain))
        return energies.detach(), gradient, virial


def no_engine(network: Network) -> TorchEngine:
    """A machine on which there is none."""
    raise KernelError("there is no C++ compiler")


@pytest.fixture
def torch_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.backends.predictor.NativeNetwork", TorchEngine)


def batch_of(*systems: Atoms) -> Graph:
    return batch_graphs([build_graph(a.numbers, a.positions, 4.3, np.asarray(a.cell), a.pbc) for a in systems])


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("backend", ["fast", "Native", "", None, True])
def test_unknown_backend_is_refused_with_the_choices(backend: Any, tiny_potential: Potential) -> None:
    pattern = f"backend must be one of auto, native, compiled, eager, got {backend!r}"
    with pytest.raises(ValueError, match=pattern):
        PonitaCalculator(tiny_potential, backend=backend)
    with pytest.raises(ValueError, match=pattern):
        tiny_potential.evaluate([], backend=backend)


@pytest.mark.parametrize(
    ("asked", "dtype", "given"),
    [
        ("auto", "float32", "native"),
        ("auto", "float64", "eager"),
        ("native", "float32", "native"),
        ("native", "float64", "native"),
        ("compiled", "float32", "compiled"),
        ("eager", "float32", "eager"),
    ],
)
@pytest.mark.usefixtures("torch_engine")
def test_choice(asked: str, dtype: str, given: str, tiny_potential: Potential, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert PonitaCalculator(tiny_potential, dtype=dtype, backend=asked).backend == given
    assert not caplog.records


def test_native_where_it_is_not_to_be_had_goes_on_with_one_warning(
    make_potential: Make, make_system: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ponita_ff.backends.predictor.NativeNetwork", no_engine)
    atoms, potential = make_system("crystal"), make_potential(dtype=torch.float32)
    calculator = PonitaCalculator(potential, backend="native")
    forces = calculator.get_forces(atoms)
    atoms.rattle(0.01)
    calculator.get_forces(atoms)
    assert calculator.backend == "eager"
    assert messages(caplog, logging.WARNING) == ["native kernels are not used: there is no C++ compiler"]
    assert np.array_equal(forces, PonitaCalculator(potential, backend="eager").get_forces(make_system("crystal")))


def test_auto_goes_on_quietly(make_potential: Make, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr("ponita_ff.backends.predictor.NativeNetwork", no_engine)
    with caplog.at_level(logging.INFO):
        assert PonitaCalculator(make_potential(dtype=torch.float32)).backend == "eager"
    assert not messages(caplog, logging.WARNING)
    assert messages(caplog, logging.INFO) == ["native kernels are not used: there is no C++ compiler"]


@pytest.mark.usefixtures("torch_engine")
@pytest.mark.parametrize("at_once", [1, 15, 500], ids=["one by one", "two and one", "together"])
@pytest.mark.parametrize("rotations", [1, 3])
@pytest.mark.parametrize("zbl_cutoff", [None, 1.8])
def test_the_engine_is_given_all_that_a_potential_is(
    at_once: int,
    rotations: int,
    zbl_cutoff: float | None,
    make_potential: Make,
    make_system: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ponita_ff.backends.predictor._ROTATED_ATOMS", at_once)
    potential = make_potential(scale=0.7, zbl_cutoff=zbl_cutoff, num_layers=1)
    potential.average_rotations(rotations)
    graph = batch_of(make_system("crystal"), make_system("two atoms in a tiny cell"))
    native, eager = (Predictor(potential, backend)(graph, stress=True) for backend in ("native", "eager"))
    assert len(native) == len(eager) == 4
    for value, expected in zip(native, eager, strict=True):
        assert value.dtype == torch.float64
        assert not value.requires_grad
        assert float(expected.abs().max()) > 1e-2
        assert float((value - expected).abs().max()) < 1e-10


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_equals_eager(dtype: torch.dtype, system: Atoms, make_potential: Make) -> None:
    potential = make_potential(dtype=dtype, zbl_cutoff=1.5)
    native, eager = (PonitaCalculator(potential, backend=backend) for backend in ("native", "eager"))
    assert native.backend == "native"
    for name in ("energy", "energies", "forces", *(["stress"] if system.pbc.all() else [])):
        value, expected = native.get_property(name, system), eager.get_property(name, system)
        assert value == pytest.approx(expected, rel=1e-6, abs=2e-5), name


@needs_compiler
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
def test_a_copy_of_a_native_calculator_is_native(duplicate: Callable, make_potential: Make, make_system) -> None:
    atoms = make_system("molecule")
    original = PonitaCalculator(make_potential(dtype=torch.float32))
    original.get_forces(atoms)
    second = duplicate(original)
    assert second.backend == "native"
    atoms.rattle(0.05, seed=4)
    assert np.array_equal(second.get_forces(atoms), original.get_forces(atoms))


@pytest.mark.usefixtures("torch_engine")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_asked_for_is_left_out(
    backend: str, make_potential: Make, make_system: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    graph = batch_of(make_system("crystal"))
    predict = Predictor(make_potential(channels=4, num_layers=1, l_max=1, num_ori=6), backend)
    energy, energies, forces, stress = predict(graph, stress=True)
    for wanted, expected in {
        (False, True): (energy, energies, forces),
        (True, False): (energy, energies, stress),
        (False, False): (energy, energies),
    }.items():
        found = predict(graph, *wanted)
        assert len(found) == len(expected)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))
