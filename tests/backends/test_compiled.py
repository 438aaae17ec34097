"""Compiling by shape: what is compiled, what is not, and what happens when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor
from torch._inductor import config as inductor_config

from ponita_ff.backends.compiled import ShapeCompiler
from ponita_ff.calculator import PonitaCalculator
from ponita_ff.kernels.build import compiler as find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here")


def cube(fixed: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """A function that differentiates inside."""
    (weight,), (x,) = fixed, tensors
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = (weight * x.pow(3)).sum()
        (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient.detach()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """``torch.compile`` replaced by handing back what it was given, and a list of that."""
    compiled: list[Any] = []

    def stand_in(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    return compiled


def failing(*args: Any, **kwargs: Any) -> Any:
    """A compiler tool-chain that is not there."""
    raise RuntimeError("no C++ compiler\nand a long story")


def test_traced_function_gives_the_values_of_the_plain_one(calls: list[Any]) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("the plain function was used")

    compiler = ShapeCompiler(cube, never)
    weight = torch.tensor(2.0)
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5])):
        value, gradient = compiler([weight], [x])
        assert torch.allclose(value, 2 * x.pow(3).sum())
        assert torch.allclose(gradient, 6 * x.square())
    assert len(calls) == 1
    # Fixed tensors are arguments as well: nothing of the first call is baked in.
    assert torch.allclose(compiler([torch.tensor(5.0)], [x])[1], 15 * x.square())


def test_each_shape_is_compiled_once_up_to_the_limit(calls: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    plain: list[int] = []

    def counted(fixed: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        plain.append(len(tensors[0]))
        return cube(fixed, tensors)

    compiler = ShapeCompiler(cube, counted, limit=2)
    with caplog.at_level(logging.WARNING):
        for size in (1, 2, 1, 3, 4, 2, 3):
            assert compiler([torch.tensor(1.0)], [torch.ones(size)])[0] == size
    assert len(calls) == 2
    assert plain == [3, 4, 3]
    assert caplog.text.count("uncompiled") == 1


@pytest.mark.parametrize(
    ("device", "replay", "replays"), [("cpu", True, False), ("cuda", False, False), ("cuda", True, True)]
)
def test_launches_are_replayed_on_a_gpu_where_results_are_used_up(
    device: str, replay: bool, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which options the compiler gets; what they do there needs a GPU."""
    given: list[dict[str, Any]] = []

    class Stand:
        """A tensor as far as choosing the options goes."""

        shape, device = torch.Size([2]), torch.device("meta")

    def stand_in(function: Any, options: dict[str, Any]) -> Any:
        given.append(options)
        return lambda fixed, tensors: ()

    Stand.device = torch.device(device)
    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr("ponita_ff.backends.compiled.make_fx", lambda function: lambda *arguments: function)
    ShapeCompiler(cube, cube, replay=replay)([], [Stand()])  # type: ignore[list-item]
    assert given[0].get("triton.cudagraphs", False) is replays


def test_where_compiling_fails_the_plain_function_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    compiler = ShapeCompiler(cube, cube)
    for _ in range(3):
        assert compiler([torch.tensor(1.0)], [torch.ones(2)])[0] == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["could not compile, continuing uncompiled: no C++ compiler"]


def test_calculator_goes_on_where_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_potential, make_system: Callable
) -> None:
    atoms: Atoms = make_system("crystal")
    expected = PonitaCalculator(tiny_potential).get_property("energy", atoms)
    monkeypatch.setattr(torch, "compile", failing)
    assert PonitaCalculator(tiny_potential, backend="compiled").get_property("energy", atoms) == expected
    assert "could not compile" in caplog.text


@needs_compiler
def test_what_torch_itself_compiles(caplog: pytest.LogCaptureFixture) -> None:
    """With all of its defaults, among them vectorised code."""
    compiler = ShapeCompiler(cube, failing)
    x = torch.linspace(-2.0, 2.0, 40)
    value, gradient = compiler([torch.tensor(2.0)], [x])
    torch.testing.assert_close(value, 2 * x.pow(3).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, 6 * x.square())
    assert not [record for record in caplog.records if record.name.startswith("ponita_ff")]


@needs_compiler
# One file with all kernels, each file takes seconds for its headers alone.
@inductor_config.patch({"cpp_wrapper": True, "cpp_cache_precompile_headers": False})
def test_compiled_calculator_equals_the_eager_one(caplog: pytest.LogCaptureFixture, make_potential: Callable) -> None:
    # As small as a network can be. What orientations add to a trace is compiled in test_ahead_of_time.py.
    shape = {"channels": 4, "num_layers": 1, "num_ori": 0, "widening": 1}
    radial = {"num_bessel": 2, "radial_hidden": 8, "radial_basis": 4}
    potential = make_potential(dtype=torch.float32, zbl_cutoff=1.3, **shape, **radial)
    eager, compiled = PonitaCalculator(potential, backend="eager"), PonitaCalculator(potential, backend="compiled")
    atoms = Atoms("OCH", positions=[[0, 0, 0], [0.1, 0, 1.2], [0.9, 0.3, 1.7]])
    for _ in range(3):
        energy = eager.get_property("energy", atoms)
        assert compiled.get_property("energy", atoms) == pytest.approx(energy, rel=1e-6)
        assert compiled.results["energies"] == pytest.approx(eager.results["energies"], abs=1e-5)
        assert compiled.get_forces(atoms) == pytest.approx(eager.get_forces(atoms), abs=1e-5)
        atoms.rattle(0.02, seed=1)
    assert np.abs(eager.get_forces(atoms)).max() > 0.01
    # It was compiled, and did not fall back.
    assert not [record for record in caplog.records if record.name.startswith("ponita_ff")]
