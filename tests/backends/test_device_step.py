"""A step as a GPU takes it, without a GPU: the same function, padded to the same shapes, not recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch.fx.experimental.proxy_tensor import make_fx

from ponita_ff.backends.device_step import DeviceStep
from ponita_ff.calculator import PonitaCalculator
from ponita_ff.energy.derivatives import predict
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, build_graph

SMALL = {"channels": 4, "num_layers": 1, "l_max": 1, "num_ori": 6}

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def graph_of(atoms: Atoms, potential: Potential) -> Graph:
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
    return build_graph(atoms.numbers, atoms.positions, potential.cutoff, cell, atoms.pbc)


def device_calculator(potential: Any, **options: Any) -> PonitaCalculator:
    """A calculator that takes the steps of a GPU."""
    calculator = PonitaCalculator(potential, device="cpu", backend="eager", **options)
    calculator._device_step = DeviceStep(calculator.potentials)
    return calculator


def test_same_predictions_whatever_the_padding(make_potential: Callable[..., Potential], system: Atoms) -> None:
    potentials = [make_potential(zbl_cutoff=1.5, **SMALL), make_potential(seed=1, **SMALL)]
    graph = graph_of(system, potentials[0])
    stress = bool(system.pbc.all())
    found = DeviceStep(potentials)(graph, stress, graph.positions, 0.1)
    expected = [value for potential in potentials for value in predict(potential, graph, True, stress)]
    assert found.holds
    assert found.closest > 0.1
    assert len(found.predictions) == len(expected)
    for value, reference in zip(found.predictions, expected, strict=True):
        assert value == pytest.approx(reference.numpy(), rel=1e-12, abs=1e-11)


def test_whether_the_list_holds(tiny_potential: Potential, make_system: Callable[[str], Atoms]) -> None:
    graph = graph_of(make_system("molecule"), tiny_potential)
    made_at = graph.positions.clone()
    step = DeviceStep([tiny_potential])
    assert step(graph, False, made_at, 0.2).holds
    for moved, holds in ((0.19, True), (0.21, False), (float("nan"), False)):
        graph["positions"] = made_at.clone()
        graph["positions"][4, 1] += moved
        assert step(graph, False, made_at, 0.2).holds is holds


def test_the_next_system_of_one_size_is_another(make_potential: Callable[..., Potential]) -> None:
    """Tables are copied once, and again when they are others."""
    potential = make_potential(**SMALL)
    step = DeviceStep([potential])
    for seed in range(3):
        atoms = Atoms("COH", positions=np.random.default_rng(seed).uniform(0, 2.5, (3, 3)))
        atoms.numbers[:2] = atoms.numbers[:2][:: 1 if seed else -1]
        for _ in range(2):
            graph = graph_of(atoms, potential)
            energy = step(graph, False, graph.positions, 0.1).predictions[0]
            assert energy == pytest.approx(predict(potential, graph, False, False)[0].numpy(), rel=1e-13)
    assert len(step._recordings) == 1


def test_old_recordings_are_dropped(make_potential: Callable[..., Potential], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.backends.recording._MAX_RECORDINGS", 2)
    potential = make_potential(**SMALL)
    step = DeviceStep([potential])
    for number in (1, 5, 9, 1):
        graph = graph_of(Atoms("C" * number, positions=np.arange(3 * number).reshape(-1, 3)), potential)
        found = step(graph, False, graph.positions, 0.1).predictions[2]
        assert found == pytest.approx(predict(potential, graph, True, False)[2].numpy(), abs=1e-12)
        assert len(step._recordings) == len(step._recordings._held) <= 2


@pytest.mark.parametrize("stress", [False, True])
def test_nothing_in_a_step_depends_on_values(make_potential: Callable, make_system: Callable, stress: bool) -> None:
    """It traces with tensors that have no values: nothing waits for the device, and the trace holds for other sizes."""
    potential = make_potential(zbl_cutoff=1.5, **SMALL)
    step = DeviceStep([potential])
    atoms = make_system("crystal")
    graph = graph_of(atoms, potential)
    inputs = step._inputs(graph, (12, 56, stress), graph.positions, 0.1)
    traced = make_fx(
        lambda tensors: step._values(tensors, stress, for_compile=True),
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )(inputs)
    larger = step._inputs(graph, (20, 64, stress), graph.positions, 0.1)
    (expected,), (found,) = step._values(larger, stress, for_compile=False), traced(larger)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-10, abs=1e-10)


def test_compiled_once_for_all_shapes(
    make_potential: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: calls.append(options) or function)
    potential = make_potential(**SMALL)
    step = DeviceStep([potential], compiled=True)
    for number in (7, 11, 3):
        positions = np.random.default_rng(0).uniform(0, 3, (number, 3))
        graph = graph_of(Atoms("C" * number, positions=positions), potential)
        found = step(graph, False, graph.positions, 0.1)
        assert found.predictions[2] == pytest.approx(predict(potential, graph, True, False)[2].numpy(), abs=1e-12)
    assert len(calls) == 1
    assert calls[0]["dynamic"]
    assert "could not compile" not in caplog.text


def test_dynamics_equals_that_without_it(make_potential: Callable, system: Atoms) -> None:
    """Through new lists, cells and elements, with a committee."""
    potentials = [make_potential(**SMALL), make_potential(seed=1, **SMALL)]
    calculator = device_calculator(potentials)
    stress = bool(system.pbc.all())
    rng = np.random.default_rng(0)
    for step in range(12):
        system.positions += 0.06 * rng.normal(size=(len(system), 3))
        if step == 6:
            system.numbers[0] = 6 if system.numbers[0] == 1 else 1
        if step == 9 and stress:
            system.set_cell(np.asarray(system.cell) * 1.01)
        fresh = PonitaCalculator(potentials, device="cpu", backend="eager", skin=0.0)
        for name in ("energy", "forces", "forces_std", *(["stress"] if stress else [])):
            expected = fresh.get_property(name, system)
            assert calculator.get_property(name, system) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 1 < calculator._graphs.rebuilds < 12 or len(system) < 3


def test_one_evaluation_a_step_while_the_list_holds(
    tiny_potential: Potential, make_system: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator, atoms = device_calculator(tiny_potential, skin=0.5), make_system("crystal")
    held: list[bool] = []
    call = DeviceStep.__call__

    def watched(self: DeviceStep, *args: Any) -> Any:
        values = call(self, *args)
        held.append(values.holds)
        return values

    monkeypatch.setattr(DeviceStep, "__call__", watched)
    monkeypatch.setattr(calculator._graphs, "_renew_on_host", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calculator.get_forces(atoms)
    monkeypatch.undo()
    monkeypatch.setattr(DeviceStep, "__call__", watched)
    for moved, expected in ((0.0, [True]), (0.2, [True]), (0.04, [True]), (0.02, [False, True]), (0.1, [True])):
        held.clear()
        atoms.positions[1, 0] += moved + 1e-6
        calculator.get_forces(atoms)
        assert held == expected


def test_one_wait_a_step(make_potential: Callable, make_system: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = make_system("molecule")
    atoms.calc = device_calculator([make_potential(zbl_cutoff=1.5), make_potential(seed=1)])
    atoms.get_forces()
    waits: list[str] = []
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        method = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: Any, name: str = name, method: Any = method) -> Any:
            waits.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert waits == ["cpu"]


@pytest.mark.parametrize("where", ["at once", "later"])
def test_what_is_refused(where: str, make_potential: Callable, make_system: Callable) -> None:
    calculator, atoms = device_calculator(make_potential(**SMALL)), make_system("molecule")
    if where == "later":
        calculator.get_forces(atoms)
    good = atoms.positions.copy()
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(ValueError, match="atoms 0 and 1 are in one place"):
        calculator.get_forces(atoms)
    atoms.positions[1] = float("nan")
    with pytest.raises(ValueError, match="position"):
        calculator.get_forces(atoms)
    atoms.positions = good
    assert np.isfinite(calculator.get_forces(atoms)).all()


@on_gpu
def test_recorded_steps_equal_the_first(make_potential: Callable, make_system: Callable) -> None:
    potential = make_potential(dtype=torch.float32, **SMALL)
    here, there = PonitaCalculator(potential, device="cpu", backend="eager"), PonitaCalculator(potential, device="cuda")
    atoms = make_system("molecule")
    for _ in range(3):
        assert there.get_forces(atoms) == pytest.approx(here.get_forces(atoms), abs=1e-4)
        atoms.rattle(0.05, seed=1)
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            atoms.positions[0, 0] += 0.01
            there.get_forces(atoms)
        finally:
            torch.cuda.set_sync_debug_mode("default")
