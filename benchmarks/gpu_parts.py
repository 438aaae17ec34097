"""What ``gpu.py`` measures, a function for each part; every result is a line of JSON as soon as it is there."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

RESULTS = "results.jsonl"

#: Potentials that are measured: 32 orientations and 64 channels; 12 orientations, 96 channels and degrees up to 3. What
#: the first makes of water costs as much as any other of its shape.
SMALL, GENERAL = "ethanol-rmd17", "organic-wb97x"


@dataclass
class Check:
    """What a part is told, and where it writes."""

    part: str
    device: str
    quick: bool
    out: Path

    def write(self, name: str, **values: Any) -> None:
        """Append a result, on the disk when this returns."""
        append(self.out, {"part": self.part, "name": name, **values})

    def synchronise(self) -> None:
        """Wait for the device."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Warnings of the package are results too."""

        def keep(record: logging.LogRecord) -> bool:
            self.write("warning", message=record.getMessage()[:500])
            return True

        handler = logging.Handler(logging.WARNING)
        handler.emit = keep  # type: ignore[method-assign]
        logger = logging.getLogger("ponita_ff")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails is a result too; the rest of the part goes on."""
        try:
            yield
        except Exception as error:
            self.write(name, error=f"{type(error).__name__}: {error}"[:500], where=traceback.format_exc()[-1500:])

    def time(self, function: Callable[[], object], seconds: float = 1.0, warm: int = 3) -> dict[str, float]:
        """Median, least and number of times in ms of a call that ends with the device's work done."""
        seconds, warm = (0.05, 1) if self.quick else (seconds, warm)
        for _ in range(warm):
            function()
        self.synchronise()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            function()
            self.synchronise()
            times.append(1e3 * (time.perf_counter() - start))
        return {"ms": sorted(times)[len(times) // 2], "least_ms": min(times), "runs": len(times)}

    def memory(self) -> dict[str, float]:
        """Most memory that was in use on the device since the last call, GB."""
        import torch

        if self.device != "cuda":
            return {}
        found = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return {"peak_gb": found}


def append(out: Path, row: dict[str, Any]) -> None:
    """Add a line to the results, on the disk when this returns."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    click.echo(json.dumps(row))


# ----------------------------------------------------------------------------------------------------- parts


def machine(check: Check) -> None:
    """Device and versions, then its rates."""
    import importlib.metadata

    import torch

    packages = ("torch", "triton", "ase", "numpy", "torch-geometric", "matscipy")
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) if name in installed else None for name in packages}
    facts: dict[str, Any] = {"python": platform.python_version(), "host": platform.machine(), "cpus": os.cpu_count()}
    if check.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gb": properties.total_memory / 1e9, "sms": properties.multi_processor_count}
        facts |= {"cuda": torch.version.cuda, "capability": torch.cuda.get_device_capability(0)}
    check.write("facts", **facts, versions=versions)
    size = 256 if check.quick else 8192
    a = torch.randn(size, size, device=check.device)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        found = check.time(lambda: a @ a)
        check.write(f"matrix product, float32, {precision}", **found, tflops=2 * size**3 / found["ms"] / 1e9)
    torch.set_float32_matmul_precision("highest")
    source = torch.empty(10**6 if check.quick else 10**9, device=check.device)
    target = torch.empty_like(source)
    found = check.time(lambda: target.copy_(source))
    check.write("copy", **found, gb_per_s=8e-6 * source.numel() / found["ms"])


def _sums(check: Check, atoms: int, dtype: Any, shape: tuple[int, int, int]) -> tuple[Any, list[Any]]:
    """Edges of a box of water, random A, R, f, g."""
    import torch
    from speed_systems import water_box

    from ponita_ff.kernels.messages import Edges
    from ponita_ff.structure.graph import build_graph, squared_distances

    box = water_box(atoms)
    graph = build_graph(box.numbers, box.positions, 5.5, box.cell.array, box.pbc)
    active = squared_distances(graph) < 25.0
    edges = Edges(*(value.to(check.device) for value in (graph.neighbours, graph.reverse, active)))
    generator = torch.Generator().manual_seed(0)
    degrees, orientations, channels = shape
    number, slots = graph.neighbours.shape
    sizes = ((number, slots, degrees, orientations), (number, slots, degrees, channels))
    features = (number, orientations, channels)
    return edges, [
        torch.randn(*size, generator=generator, dtype=torch.float64).to(check.device, dtype)
        for size in (*sizes, features, features)
    ]


def kernels(check: Check) -> None:
    """Triton against torch, then times."""
    import torch

    from ponita_ff.kernels import messages

    module = messages._triton() if check.device == "cuda" else None
    check.write("triton", used=module is not None)
    shapes = ((3, 12, 64), (1, 1, 32), (4, 20, 96), (3, 60, 128), (5, 12, 33))
    for dtype in (torch.float32, torch.float64):
        for shape in shapes[:1] if check.quick else shapes:
            with check.attempt(f"errors {dtype} {shape}"):
                edges, (angular, radial, features, receivers) = _sums(check, 12 if check.quick else 192, dtype, shape)
                inputs = (angular, radial, features, receivers)
                exact = [value.double() for value in inputs]
                other = (angular.flip(0), radial.flip(0))
                errors = {}
                for adjoint in (False, True):
                    found = messages._sum_messages(angular, radial, *other, features, *edges, adjoint)
                    wanted = messages._sum_by_torch(
                        *exact[:2], *(value.double() for value in other), exact[2], edges, adjoint
                    )
                    errors[f"sum, adjoint {adjoint}"] = relative_error(found, wanted)
                table = (edges.neighbours, edges.active)
                slopes = messages._edge_slopes(*inputs, *table)
                again = messages._edge_slopes(*inputs, *table)
                for name, one, two, wanted in zip(
                    ("angular", "radial"), slopes, again, messages._edge_slopes_by_torch(*exact, *table), strict=True
                ):
                    errors[f"slopes, {name}"] = relative_error(one, wanted)
                    errors[f"same bits, {name}"] = float(torch.equal(one, two))
                check.write(f"errors {dtype} {shape}", **errors)
    shape = (3, 12, 64)
    edges, (angular, radial, features, receivers) = _sums(check, 12 if check.quick else 999, torch.float32, shape)
    table = (edges.neighbours, edges.active)
    used = int(edges.active.sum())
    work = 2e-9 * used * (shape[0] + 1) * shape[1] * shape[2]
    # Factors and a neighbour's features of every edge, and the result, each number once: 4 bytes.
    moved = 4e-6 * (used * (shape[0] * (shape[1] + shape[2]) + shape[1] * shape[2]) + features.numel())
    other = (angular.flip(0).contiguous(), radial.flip(0).contiguous())
    timed = {
        "sum": lambda: messages._sum_messages(angular, radial, None, None, features, *edges, False),
        "adjoint sum": lambda: messages._sum_messages(angular, radial, None, None, features, *edges, True),
        "sum of two": lambda: messages._sum_messages(angular, radial, *other, features, *edges, True),
        "slopes": lambda: messages._edge_slopes(angular, radial, features, receivers, *table),
        "sum by torch": lambda: messages._sum_by_torch(angular, radial, None, None, features, edges, False),
        "slopes by torch": lambda: messages._edge_slopes_by_torch(angular, radial, features, receivers, *table),
    }
    for name, function in timed.items():
        with check.attempt(f"time of {name}"):
            found = check.time(function, 0.5)
            rates = {"tflops_of_one_sum": work / found["ms"], "gb_per_s_of_one_sum": moved / found["ms"]}
            check.write(f"time of {name}", **found, edges=used, **rates)
    if module is not None and not check.quick:
        before = module._SUM_BLOCK
        for block in ((2, 64), (4, 32), (4, 64), (8, 32), (8, 64), (16, 64), (4, 128)):
            module._SUM_BLOCK = block
            with check.attempt(f"sum in blocks of {block}"):
                check.write(
                    f"sum in blocks of {block}",
                    **check.time(timed["sum"], 0.2),
                    two=check.time(timed["sum of two"], 0.2),
                )
        module._SUM_BLOCK = before


def relative_error(found: Any, expected: Any) -> float:
    """Largest error over the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _system(name: str) -> Any:
    from speed_systems import make_system

    return make_system(name)


def _calculator(check: Check, potential: str, dtype: str = "float32", kind: str = "recorded", **options: Any) -> Any:
    """A calculator of a kind: ``recorded`` and ``compiled`` take a GPU's steps, on a CPU without recording."""
    from ponita_ff.backends.device_step import DeviceStep
    from ponita_ff.calculator import PonitaCalculator

    backend = kind if kind in ("compiled", "native") else "eager"
    calculator = PonitaCalculator(potential, device=check.device, dtype=dtype, backend=backend, **options)
    if kind == "eager":
        calculator._device_step = None
    elif kind == "recorded" and calculator._device_step is None:
        calculator._device_step = DeviceStep(calculator.potentials)
    return calculator


def _potential(dtype: Any = None, name: str = SMALL) -> Any:
    from ponita_ff.potential.file import load_potential

    potential = load_potential(name)
    return potential if dtype is None else potential.to(dtype=dtype)


# ------------------------------------------------------------------------------------------------ correctness


def correctness(check: Check) -> None:
    """Energies, forces, stress and gradients of every backend and dtype against float64 on the CPU."""
    systems = [("ethanol", SMALL)]
    if not check.quick:
        systems += [("aspirin", SMALL), ("water-192", SMALL), ("ethanol", GENERAL)]
    for system, potential in systems:
        expected = _expected(system, potential)
        for dtype in ("float64", "float32"):
            for kind in ("recorded", "eager", "batched"):
                with check.attempt(f"{system}, {potential}, {dtype}, {kind}"):
                    found = _found(check, system, potential, dtype, kind)
                    errors = _errors(found, expected)
                    check.write(f"{system}, {potential}, {dtype}, {kind}", **errors)
    for function in (_gradients, _tf32, _waits):
        with check.attempt(function.__name__.strip("_")):
            function(check)


def _two(system: str) -> list[Any]:
    """A system, and the same with its atoms moved: the second step of a recording is the first that is replayed."""
    atoms = _system(system)
    moved = atoms.copy()
    moved.rattle(0.02, seed=1)
    return [atoms, moved]


def _properties(atoms: Any) -> tuple[str, ...]:
    return ("energy", "forces", *(("stress",) if atoms.pbc.all() else ()))


def _expected(system: str, potential: str) -> list[dict[str, Any]]:
    """What float64 on the CPU gives for both."""
    from ponita_ff.calculator import PonitaCalculator

    exact = PonitaCalculator(potential, device="cpu", dtype="float64", backend="eager")
    return [{key: exact.get_property(key, atoms) for key in _properties(atoms)} for atoms in _two(system)]


def _found(check: Check, system: str, potential: str, dtype: str, kind: str) -> list[dict[str, Any]]:
    pair = _two(system)
    if kind != "batched":
        calculator = _calculator(check, potential, dtype, kind)
        return [{key: calculator.get_property(key, atoms) for key in _properties(atoms)} for atoms in pair]
    from ase.stress import full_3x3_to_voigt_6_stress

    from ponita_ff.potential.device import DTYPES

    predict = _potential(DTYPES[dtype], potential).to(device=check.device)
    # All of one shape, so that the second batch is recorded.
    stress = bool(pair[0].pbc.all())
    for _ in range(2):
        found = predict.evaluate([*pair, pair[0]], stress=stress, backend="eager")
    values = []
    for index in range(2):
        values.append({"energy": found.energies[index], "forces": found.forces[index]})
        if found.stress is not None:
            values[-1]["stress"] = full_3x3_to_voigt_6_stress(found.stress[index])
    return values


def _errors(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, float]:
    """Largest differences, eV, eV/Å and eV/Å³."""
    import numpy as np

    errors: dict[str, float] = {}
    for one, other in zip(found, expected, strict=True):
        for key, value in other.items():
            errors[key] = max(errors.get(key, 0.0), float(np.abs(one[key] - value).max()))
    return errors


def _gradients(check: Check) -> None:
    """By all weights, of a loss of energies and forces; and whether a second step has the same bits."""
    import torch

    frames = 1 if check.quick else 5
    wanted = _gradient(_Training(Check(check.part, "cpu", check.quick, check.out), frames, torch.float64), "plain")
    for dtype in (torch.float32,) if check.quick else (torch.float64, torch.float32):
        for kind in ("plain", "resident"):
            with check.attempt(f"gradient, {dtype}, {kind}"):
                training = _Training(check, frames, dtype)
                found, again = _gradient(training, kind), _gradient(training, kind)
                values = {"relative_error": relative_error(found, wanted), "same_bits": bool(torch.equal(found, again))}
                check.write(f"gradient, {dtype}, {kind}", **values)


def _tf32(check: Check) -> None:
    """What TF32 in the network's matrix products does to forces; geometry and sums over neighbours have none."""
    import numpy as np
    import torch

    atoms = _system("ethanol" if check.quick else "water-192")
    found = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        found.append(_calculator(check, SMALL).get_property("forces", atoms))
    torch.set_float32_matmul_precision("highest")
    error = np.abs(found[1] - found[0])
    check.write("TF32", largest_force_error=float(error.max()), mean_force_error=float(error.mean()))


def _waits(check: Check) -> None:
    """Calls that wait for the device in a step, beside the one copy of the results, which is not counted."""
    import warnings

    import torch

    if check.device != "cuda":
        return
    atoms = _system("ethanol")
    calculator = _calculator(check, SMALL)
    for _ in range(2):
        calculator.get_property("forces", atoms)
        atoms.positions[0, 0] += 1e-3
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calculator.get_property("forces", atoms)
    torch.cuda.set_sync_debug_mode("default")
    check.write("waits of a step", number=len(caught), where=[str(one.message)[:200] for one in caught][:5])


# ------------------------------------------------------------------------------------------------------ speed


def _steps(check: Check, calculator: Any, atoms: Any, seconds: float = 1.0) -> dict[str, float]:
    """Time of forces at positions that differ a little in every call."""
    import numpy as np

    moves = 0.002 * np.random.default_rng(0).normal(size=(16, len(atoms), 3))
    start, number = atoms.positions.copy(), 0

    def step() -> None:
        nonlocal number
        number += 1
        atoms.positions = start + moves[number % 16]
        calculator.get_property("forces", atoms)

    found = check.time(step, seconds)
    atoms.positions = start
    return found


def _dynamics(check: Check, calculator: Any, atoms: Any, seconds: float = 1.5) -> dict[str, float]:
    """Steps per second of NVE through ASE from 300 K, and by how much the total energy has changed at the end."""
    import numpy as np
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from ponita_ff.audit.dynamics import thermal_momenta

    thermal_momenta(atoms, 300.0, np.random.default_rng(0))
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(1 if check.quick else 10)
    before, start, steps, block = atoms.get_total_energy(), time.perf_counter(), 0, 1 if check.quick else 5
    while time.perf_counter() - start < (0.05 if check.quick else seconds):
        dynamics.run(block)
        steps += block
    rate = steps / (time.perf_counter() - start)
    return {"steps_per_s": rate, "drift_ev": float(atoms.get_total_energy() - before), "steps": steps}


def _measure(check: Check, label: str, calculator: Any, system: str) -> None:
    """Time of a step, memory, and steps of dynamics per second, each written as soon as it is there."""
    atoms = _system(system)
    with check.attempt(label):
        check.memory()
        found, memory = _steps(check, calculator, atoms), check.memory()
        per_atom = {"kb_per_atom": 1e6 * memory["peak_gb"] / len(atoms)} if memory else {}
        check.write(label, system=system, atoms=len(atoms), **found, **memory, **per_atom)
    with check.attempt(f"{label}, dynamics"):
        values = _dynamics(check, calculator, atoms)
        check.write(f"{label}, dynamics", system=system, atoms=len(atoms), **values)


def speed(check: Check) -> None:
    """Steps through the calculator: time, memory, dynamics."""
    jobs = [("ethanol", SMALL, "recorded"), ("ethanol", SMALL, "eager")]
    if not check.quick:
        jobs += [("water-999", SMALL, "recorded"), ("aspirin", SMALL, "recorded"), ("water-96", SMALL, "recorded")]
        jobs += [(system, GENERAL, "recorded") for system in ("ethanol", "aspirin", "water-96", "water-999")]
        jobs += [("water-999", SMALL, "eager")]
    for system, potential, kind in jobs:
        _measure(check, f"{system}, {potential}, {kind}", _calculator(check, potential, kind=kind), system)
        _forget(check)


def large(check: Check) -> None:
    """Boxes of 10,000 atoms and more, until one does not fit."""
    for system in ("water-24",) if check.quick else ("water-9999", "water-99999", "water-300000", "water-1000000"):
        _measure(check, f"{system}, {SMALL}, recorded", _calculator(check, SMALL), system)
        _forget(check)


def _forget(check: Check) -> None:
    """Give memory back that nothing holds any more."""
    import gc

    import torch

    gc.collect()
    if check.device == "cuda":
        torch.cuda.empty_cache()


def replicas(check: Check) -> None:
    """Many copies of ethanol in one call: of the potential, and of what TorchSim and i-PI call, which moves them."""
    potential = _potential().to(device=check.device)
    for number in (3,) if check.quick else (100, 1000, 10_000):
        for kind, make in (("potential", _one_graph), ("engines", _moved_replicas)):
            name = f"{number} replicas, {kind}"
            with check.attempt(name):
                function = make(check, potential, number)
                check.memory()
                found = check.time(function, 0.5)
                rate = {"replicas_per_s": 1e3 * number / found["ms"]}
                check.write(name, replicas=number, **found, **check.memory(), **rate)
            _forget(check)


def _one_graph(check: Check, potential: Any, number: int) -> Callable[[], object]:
    from ponita_ff.structure.graph import batch_graphs, build_graph

    atoms = _system("ethanol")
    one = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    return partial(potential.predictor("eager"), batch_graphs([one] * number).to(check.device))


def _moved_replicas(check: Check, potential: Any, number: int) -> Callable[[], object]:
    import torch

    from ponita_ff.hosts.batched import BatchedPotential

    atoms = _system("ethanol")
    batched = BatchedPotential(potential, device=check.device, backend="eager")
    places = torch.from_numpy(atoms.positions).to(check.device).repeat(number, 1)
    numbers = torch.from_numpy(atoms.numbers).to(check.device).repeat(number)
    owners = torch.arange(number, device=check.device).repeat_interleave(len(atoms))
    cells = torch.zeros(number, 3, 3, dtype=torch.float64, device=check.device)

    def call() -> object:
        return batched(places + 0.01 * torch.randn_like(places), numbers, owners, cells, False)

    return call


# --------------------------------------------------------------------------------------------------- training


class _Training:
    """Training on copies of ethanol: a potential, an optimiser, a plain batch, and the frames on the device."""

    def __init__(self, check: Check, frames: int, dtype: Any, backend: str = "eager") -> None:
        import numpy as np
        import torch

        from ponita_ff.data import Frame
        from ponita_ff.structure.graph import batch_graphs
        from ponita_ff.training.config import LossConfig
        from ponita_ff.training.evaluate import frame_graph
        from ponita_ff.training.optimisers import Optimiser
        from ponita_ff.training.resident import ResidentFrames
        from ponita_ff.training.step import TrainingStep

        self.potential = _potential(dtype).requires_grad_(True).to(device=check.device)
        self.optimiser = Optimiser(self.potential, "muon", 0.0)
        self.step = TrainingStep(self.potential, LossConfig(), backend)
        atoms, generator = _system("ethanol"), np.random.default_rng(0)
        labels: dict[str, Any] = {"energy": -4209.0, "forces": np.zeros((len(atoms), 3))}
        space: dict[str, Any] = {"cell": np.zeros((3, 3)), "pbc": np.zeros(3, dtype=bool)}
        moves = 0.05 * generator.normal(size=(frames, len(atoms), 3))
        made = [Frame(atoms.numbers, atoms.positions + move, **space, **labels) for move in moves]
        self.plain = batch_graphs([frame_graph(frame, self.potential.cutoff) for frame in made]).to(check.device)
        self._frames, self._resident = frames, ResidentFrames(made, self.potential)
        self._number = 0
        self.places = [p for p in self.potential.parameters() if p.grad is not None]
        self._torch = torch

    def batch(self, kind: str, rotate: bool = True) -> Any:
        """The plain batch, or the next one that is gathered and rotated on the device."""
        from ponita_ff.network.orientations import random_rotations

        if kind == "plain":
            return self.plain
        self._number += 1
        rotations = random_rotations(self._frames, (self._number,)) if rotate else None
        return self._resident.batch(list(range(self._frames)), rotations)

    def whole(self, kind: str) -> None:
        """A step as the trainer makes it."""
        self.step(self.batch(kind))
        self.optimiser.step(1e-9, 10.0)


def _gradient(training: _Training, kind: str) -> Any:
    training.step(training.batch(kind, rotate=False))
    return training.optimiser.weights.gradients.double().cpu()


def training(check: Check) -> None:
    """Loss, second derivative, optimiser: steps at several batch sizes, as the trainer makes them."""
    import torch

    for frames in (2,) if check.quick else (64, 512, 5):
        for kind in ("resident", "plain"):
            name = f"batch of {frames}, {kind}"
            with check.attempt(name):
                made = _Training(check, frames, torch.float32)
                check.memory()
                found = check.time(partial(made.whole, kind))
                rates = {"steps_per_s": 1e3 / found["ms"], "frames_per_s": 1e3 * frames / found["ms"]}
                check.write(name, frames=frames, kind=kind, **found, **rates, **check.memory())
            with check.attempt(f"{name}, parts"):
                gradient = check.time(partial(made.step, made.batch(kind)), 0.3)
                gathering, update = (
                    check.time(call, 0.3)
                    for call in (partial(made.batch, kind), partial(made.optimiser.step, 1e-9, 10.0))
                )
                times = {"gradient_ms": gradient["ms"], "batch_ms": gathering["ms"], "update_ms": update["ms"]}
                check.write(f"{name}, parts", **times)
            _forget(check)


def cpu(check: Check) -> None:
    """The same on two cores of this machine, with batches of 5, by the kernels for CPUs."""
    import torch

    torch.set_num_threads(2)
    host = Check(check.part, "cpu", check.quick, check.out)
    frames = 2 if check.quick else 5
    made = _Training(host, frames, torch.float32, "native")
    found = host.time(partial(made.whole, "plain"))
    check.write("two cores", frames=frames, backend=made.step.backend, **found, frames_per_s=1e3 * frames / found["ms"])


# ------------------------------------------------------------------------------------------------------ share


def share(check: Check) -> None:
    """What part of the device's matrix-product rate and bandwidth a step of dynamics and of training reach."""
    import torch

    from ponita_ff.energy.derivatives import predict
    from ponita_ff.structure.graph import build_graph

    rates = _rates(check)
    system = "ethanol" if check.quick else "water-999"
    atoms, potential = _system(system), _potential().to(device=check.device)
    cell = atoms.cell.array if atoms.pbc.any() else None
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff, cell, atoms.pbc).to(check.device)
    training = _Training(check, 2 if check.quick else 64, torch.float32)
    jobs: list[tuple[str, Callable[[], object], Callable[[], float]]] = [
        (
            f"a step of {system}",
            lambda: predict(potential, graph, forces=True, stress=False),
            lambda: _steps(check, _calculator(check, SMALL), atoms)["ms"],
        ),
        (
            f"a step of training, batch of {2 if check.quick else 64}",
            lambda: training.step(training.plain),
            lambda: check.time(partial(training.step, training.batch("resident")))["ms"],
        ),
    ]
    for label, function, timed in jobs:
        with check.attempt(label):
            flops, read_and_written = _count(function)
            ms = timed()
            rows = {"tflops": 1e-9 * flops / ms, "gb_per_s": 1e-6 * read_and_written / ms}
            shares = {f"share_of_{key}": value / rates[key] for key, value in rows.items() if key in rates}
            check.write(label, ms=ms, gflop=1e-9 * flops, mb=1e-6 * read_and_written, **rows, **shares)


def _rates(check: Check) -> dict[str, float]:
    """The device's own, where they were measured."""
    lines = (check.out / RESULTS).read_text(encoding="utf-8").splitlines() if (check.out / RESULTS).exists() else []
    found = {}
    for row in map(json.loads, lines):
        for key in ("tflops", "gb_per_s"):
            if row["part"] == "machine" and key in row and row["name"].split(", ")[-1] != "high":
                found[key] = float(row[key])
    return found


def _count(function: Callable[[], object]) -> tuple[float, float]:
    """Operations of a call's matrix products, and bytes that its operations read and write, each tensor once for each.

    What an operation of ours sums over neighbours is not among the products.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    total = 0

    class Bytes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total
            result = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves = tree_leaves((args, kwargs, result))
                total += sum(leaf.nbytes for leaf in leaves if hasattr(leaf, "nbytes"))
            return result

    counter = FlopCounterMode(display=False)
    with counter, Bytes():
        function()
    return float(counter.get_total_flops()), float(total)


# ------------------------------------------------------------------------------------------------------ peers


def peer(name: str, check: Check) -> None:
    """Another package's force field, untrained, in its published shape: steps and dynamics as ours."""
    from peers import GPU_PEERS

    calculator = GPU_PEERS[name].make(device=check.device)
    check.write("version", version=GPU_PEERS[name].package.installed_version())
    for system in ("ethanol",) if check.quick else ("ethanol", "aspirin", "water-96", "water-999", "water-9999"):
        _measure(check, f"{system}, {name}", calculator, system)
        _forget(check)


def missing(name: str) -> str | None:
    """Why a peer cannot be measured; None where it can."""
    import importlib.metadata

    from peers import GPU_PEERS

    for distribution in (GPU_PEERS[name].package.distribution, GPU_PEERS[name].also):
        try:
            importlib.metadata.version(distribution or "torch")
        except importlib.metadata.PackageNotFoundError:
            return f"{distribution} is not installed here"
    return None


# --------------------------------------------------------------------------------------- compiled and profile


def compiled(check: Check) -> None:
    """Code compiled by torch, which takes a minute: its errors and its time."""
    if check.quick:
        check.write("left out", reason="--quick: compiling takes a minute")
        return
    for system in ("ethanol", "water-999"):
        with check.attempt(f"{system}, errors"):
            start = time.perf_counter()
            found = _found(check, system, SMALL, "float32", "compiled")
            seconds = time.perf_counter() - start
            check.write(f"{system}, errors", **_errors(found, _expected(system, SMALL)), seconds=seconds)
        _measure(check, f"{system}, {SMALL}, compiled", _calculator(check, SMALL, kind="compiled"), system)


def profile(check: Check) -> None:
    """Kernels by the time that they take."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    name = "ethanol" if check.quick else "water-999"
    calculator, atoms = _calculator(check, SMALL), _system(name)
    calculator.get_property("forces", atoms)

    def step() -> None:
        atoms.positions[0, 0] += 1e-4
        calculator.get_property("forces", atoms)

    made = _Training(check, 1 if check.quick else 64, torch.float32)
    made.step(made.plain)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if check.device == "cuda" else [])
    for label, function in ((f"a step of {name}", step), ("a step of training", lambda: made.step(made.plain))):
        with check.attempt(label):
            with record(activities=activities) as recorded:
                function()
                check.synchronise()
            rows = [
                [row.key[:90], row.count, getattr(row, "self_device_time_total", 0.0), row.self_cpu_time_total]
                for row in recorded.key_averages()
            ]
            column = 2 if check.device == "cuda" else 3
            rows.sort(key=lambda row: -row[column])
            totals = {"device_us": sum(row[2] for row in rows), "launches": sum(row[1] for row in rows if row[2] > 0)}
            check.write(label, columns=["name", "calls", "device µs", "host µs"], rows=rows[:25], **totals)
