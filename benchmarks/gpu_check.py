"""Everything that can be learnt of this package on a GPU in ten minutes, the most valuable first.

    python benchmarks/gpu_check.py --out gpu-out                        # on a machine with a GPU
    python benchmarks/gpu_check.py --out gpu-out --device cpu --quick   # does the script itself work?

Every part runs in a process of its own with a time limit, and every result is a line of JSON in OUT/results.jsonl as
soon as it is there: what ends the script loses nothing that was measured. The parts, in this order:

- machine: device, versions, rates of matrix products and of copies;
- kernels: the Triton kernels against torch, and their time, rate and bandwidth at the size of 1,000 atoms of water;
- results: energies, forces, stress and the gradient of a loss against float64 on the CPU;
- md: time of a step through the calculator for 9, 21, 192 and 999 atoms, recorded and eager; steps per second of NVE;
- training: steps and frames per second and memory at several batch sizes, on the device alone;
- large: time and memory for 10,000 and 100,000 atoms;
- replicas: 10,000 copies of ethanol in one call;
- compiled: the steps of md with code compiled by torch;
- profile: the kernels that take longest in a step of md and of training.

``benchmarks/gpu_bundle.py`` collects the packages for a machine that cannot fetch any.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

#: Seconds that all parts together may take, and of those kept back for the end.
TOTAL, RESERVE = 590.0, 5.0

#: Parts in their order, and the seconds that each may take.
LIMITS = {
    "machine": 40.0,
    "kernels": 90.0,
    "results": 70.0,
    "md": 120.0,
    "training": 120.0,
    "large": 60.0,
    "replicas": 40.0,
    "compiled": 150.0,
    "profile": 60.0,
}

RESULTS = "results.jsonl"


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
            check.write(f"time of {name}", **found, edges=used, tflops_of_one_sum=work / found["ms"])
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


def _potential(dtype: Any = None) -> Any:
    """The shipped potential of ethanol: what it makes of water costs as much as any other of its shape."""
    from ponita_ff.potential.file import load_potential

    potential = load_potential("ethanol-rmd17")
    return potential if dtype is None else potential.to(dtype=dtype)


def _batch(check: Check, frames: int, dtype: Any) -> tuple[Any, Any]:
    """A potential that can be trained, and a batch of labelled ethanol on the device."""
    import torch

    from ponita_ff.structure.graph import batch_graphs, build_graph

    potential = _potential(dtype).requires_grad_(True).to(device=check.device)
    graphs = []
    for seed in range(frames):
        atoms = _system("ethanol")
        atoms.rattle(0.05, seed=seed)
        graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
        graph.energy = torch.tensor([-4209.0], dtype=torch.float64)
        graph.forces = torch.zeros_like(graph.positions)
        graphs.append(graph)
    return potential, batch_graphs(graphs).to(check.device)


def _gradient(check: Check, frames: int, dtype: Any) -> Any:
    import torch

    from ponita_ff.training.config import LossConfig
    from ponita_ff.training.step import TrainingStep

    potential, graph = _batch(check, frames, dtype)
    TrainingStep(potential, LossConfig(), "eager")(graph)
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]).double().cpu()


def results(check: Check) -> None:
    """Energies, forces, stress and gradients of every dtype against float64 on the CPU."""
    import numpy as np
    import torch

    from ponita_ff.calculator import PonitaCalculator

    for name in ("ethanol",) if check.quick else ("ethanol", "aspirin", "water-192"):
        atoms = _system(name)
        properties = ("energy", "forces", *(("stress",) if atoms.pbc.all() else ()))
        exact = PonitaCalculator("ethanol-rmd17", device="cpu", dtype="float64", backend="eager")
        for dtype in ("float64", "float32"):
            with check.attempt(f"{name} {dtype}"):
                calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype=dtype, backend="eager")
                errors = {}
                for key in properties:
                    difference = calculator.get_property(key, atoms) - exact.get_property(key, atoms)
                    errors[f"{key}_error"] = float(np.abs(difference).max())
                moved = atoms.copy()
                moved.rattle(0.02, seed=1)
                difference = calculator.get_property("forces", moved) - exact.get_property("forces", moved)
                errors["forces_error_of_second_step"] = float(np.abs(difference).max())
                check.write(f"{name} {dtype}", **errors)
    frames = 2 if check.quick else 5
    wanted = _gradient(Check(check.part, "cpu", check.quick, check.out), frames, torch.float64)
    for kind in (torch.float64, torch.float32):
        with check.attempt(f"gradient {kind}"):
            check.write(f"gradient {kind}", error=relative_error(_gradient(check, frames, kind), wanted))
    for function in (_tf32, _waits):
        with check.attempt(function.__name__.strip("_")):
            function(check)


def _tf32(check: Check) -> None:
    """What TF32 in the network's matrix products does to forces; geometry and sums over neighbours have none."""
    import numpy as np
    import torch

    from ponita_ff.calculator import PonitaCalculator

    atoms = _system("ethanol" if check.quick else "water-192")
    found = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32", backend="eager")
        found.append(calculator.get_property("forces", atoms))
    torch.set_float32_matmul_precision("highest")
    error = np.abs(found[1] - found[0])
    check.write("TF32", largest_force_error=float(error.max()), mean_force_error=float(error.mean()))


def _waits(check: Check) -> None:
    """Calls that wait for the device in a step, beside the one copy of the results, which is not counted."""
    import warnings

    import torch

    from ponita_ff.calculator import PonitaCalculator

    if check.device != "cuda":
        return
    atoms = _system("ethanol")
    calculator = PonitaCalculator("ethanol-rmd17", device="cuda", dtype="float32", backend="eager")
    for _ in range(2):
        calculator.get_property("forces", atoms)
        atoms.positions[0, 0] += 1e-3
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calculator.get_property("forces", atoms)
    torch.cuda.set_sync_debug_mode("default")
    check.write("waits of a step", number=len(caught), where=[str(one.message)[:200] for one in caught][:5])


def _steps(check: Check, calculator: Any, name: str, seconds: float = 1.5) -> dict[str, float]:
    """Time of forces at positions that differ a little in every call."""
    import numpy as np

    atoms = _system(name)
    moves = 0.002 * np.random.default_rng(0).normal(size=(16, len(atoms), 3))
    start, number = atoms.positions.copy(), 0

    def step() -> None:
        nonlocal number
        number += 1
        atoms.positions = start + moves[number % 16]
        calculator.get_property("forces", atoms)

    return check.time(step, seconds)


def md(check: Check) -> None:
    """Steps through the calculator."""
    import numpy as np
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from ponita_ff.audit.dynamics import thermal_momenta
    from ponita_ff.calculator import PonitaCalculator

    systems = ("ethanol",) if check.quick else ("ethanol", "aspirin", "water-192", "water-999")
    for recorded in (True, False):
        for name in systems:
            label = f"{name} {'recorded' if recorded else 'eager'}"
            with check.attempt(label):
                calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32", backend="eager")
                if not recorded:
                    calculator._device_step = None
                check.memory()
                check.write(label, **_steps(check, calculator, name), **check.memory(), atoms=len(_system(name)))
    with check.attempt("NVE of ethanol"):
        atoms = _system("ethanol")
        atoms.calc = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32")
        thermal_momenta(atoms, 300.0, np.random.default_rng(0))
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        steps = 2 if check.quick else 3000
        dynamics.run(steps // 5)
        before, start = atoms.get_total_energy(), time.perf_counter()
        dynamics.run(steps)
        rate = steps / (time.perf_counter() - start)
        check.write("NVE of ethanol", steps_per_s=rate, drift_ev=atoms.get_total_energy() - before)


def training(check: Check) -> None:
    """Loss, second derivative, optimiser: steps of training at several batch sizes, as the trainer makes them."""
    for frames in (2,) if check.quick else (64, 512, 5, 2048):
        for resident in (True, False):
            name = f"batch of {frames}, {'recorded' if resident else 'eager'}"
            with check.attempt(name):
                _train(check, name, frames, resident)


def _train(check: Check, name: str, frames: int, resident: bool) -> None:
    """Steps with frames that stay on the device, padded and recorded, or with one plain batch."""
    import numpy as np
    import torch

    from ponita_ff.data import Frame
    from ponita_ff.network.orientations import random_rotations
    from ponita_ff.training.config import LossConfig
    from ponita_ff.training.optimisers import Optimiser
    from ponita_ff.training.resident import ResidentFrames
    from ponita_ff.training.step import TrainingStep

    potential, plain = _batch(check, frames, torch.float32)
    optimiser = Optimiser(potential, "muon", 0.0)
    step = TrainingStep(potential, LossConfig(), "eager")
    numbers, molecule = plain.atomic_numbers.cpu().numpy(), len(_system("ethanol"))
    positions = plain.positions.cpu().numpy().reshape(frames, molecule, 3)
    labels = {"energy": -4209.0, "forces": np.zeros((molecule, 3))}
    there = ResidentFrames(
        [Frame(numbers[:molecule], one, np.zeros((3, 3)), np.zeros(3, bool), **labels) for one in positions], potential
    )
    number = 0

    def batch() -> Any:
        nonlocal number
        number += 1
        return there.batch(list(range(frames)), random_rotations(frames, (number,))) if resident else plain

    def whole() -> None:
        step(batch())
        optimiser.step(1e-9, 10.0)

    check.memory()
    found = check.time(whole)
    gradient, gathering = check.time(partial(step, batch())), check.time(batch, 0.3)
    parts = {"gradient_ms": gradient["ms"], "batch_ms": gathering["ms"]}
    rates = {"steps_per_s": 1e3 / found["ms"], "frames_per_s": 1e3 * frames / found["ms"]}
    check.write(name, **found, **rates, **parts, **check.memory())


def large(check: Check) -> None:
    """Time and memory of large boxes."""
    from ponita_ff.calculator import PonitaCalculator

    for name in ("water-24",) if check.quick else ("water-9999", "water-99999"):
        with check.attempt(name):
            calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32", backend="eager")
            check.memory()
            found, memory = _steps(check, calculator, name, 3.0), check.memory()
            atoms = len(_system(name))
            per_atom = {"kb_per_atom": 1e6 * memory["peak_gb"] / atoms} if memory else {}
            check.write(name, **found, **memory, **per_atom, atoms=atoms)


def replicas(check: Check) -> None:
    """Many copies of ethanol in one call."""
    from ponita_ff.structure.graph import batch_graphs, build_graph

    potential = _potential().to(device=check.device)
    predict = potential.predictor("eager")
    atoms = _system("ethanol")
    one = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    for number in (3,) if check.quick else (1000, 10_000):
        with check.attempt(f"{number} replicas"):
            graph = batch_graphs([one] * number).to(check.device)
            check.memory()
            found = check.time(partial(predict, graph))
            check.write(f"{number} replicas", **found, **check.memory(), replicas_per_s=1e3 * number / found["ms"])


def compiled(check: Check) -> None:
    """The steps of md with compiled code; a minute is spent compiling."""
    from ponita_ff.calculator import PonitaCalculator

    if check.quick:
        check.write("left out", reason="--quick")
        return
    calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32", backend="compiled")
    for name in ("ethanol", "aspirin", "water-999"):
        with check.attempt(name):
            start = time.perf_counter()
            found = _steps(check, calculator, name)
            check.write(name, **found, all_seconds=time.perf_counter() - start)


def profile(check: Check) -> None:
    """Kernels by the time that they take."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from ponita_ff.calculator import PonitaCalculator
    from ponita_ff.training.config import LossConfig
    from ponita_ff.training.step import TrainingStep

    name = "ethanol" if check.quick else "water-999"
    calculator = PonitaCalculator("ethanol-rmd17", device=check.device, dtype="float32", backend="eager")
    atoms = _system(name)
    calculator.get_property("forces", atoms)

    def step() -> None:
        atoms.positions[0, 0] += 1e-4
        calculator.get_property("forces", atoms)

    potential, graph = _batch(check, 2 if check.quick else 64, torch.float32)
    training_step = TrainingStep(potential, LossConfig(), "eager")
    training_step(graph)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if check.device == "cuda" else [])
    for label, function in ((f"a step of {name}", step), ("a step of training", lambda: training_step(graph))):
        with check.attempt(label):
            with record(activities=activities) as recorded:
                function()
                check.synchronise()
            # Its name was another in torch before 2.6.
            rows = [
                [row.key[:90], row.count, getattr(row, "self_device_time_total", 0.0), row.self_cpu_time_total]
                for row in recorded.key_averages()
            ]
            column = 2 if check.device == "cuda" else 3
            rows.sort(key=lambda row: -row[column])
            totals = {"device_us": sum(row[2] for row in rows), "launches": sum(row[1] for row in rows if row[2] > 0)}
            check.write(label, columns=["name", "calls", "device µs", "host µs"], rows=rows[:25], **totals)


PARTS: dict[str, Callable[[Check], None]] = {
    "machine": machine,
    "kernels": kernels,
    "results": results,
    "md": md,
    "training": training,
    "large": large,
    "replicas": replicas,
    "compiled": compiled,
    "profile": profile,
}


# ---------------------------------------------------------------------------------------------------- running


def run_part(check: Check) -> None:
    """One part here; its failure is a result."""
    start = time.perf_counter()
    with check.attempt("failed"):
        PARTS[check.part](check)
    check.write("end of part", seconds=time.perf_counter() - start)


def run_in_process(command: list[str], part: str, limit: float, out: Path) -> None:
    """One part in a process that is ended when its time is over."""
    try:
        done = subprocess.run(command, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        append(out, {"part": part, "name": "ended", "reason": f"its {limit:.0f} s were over"})
        return
    if done.returncode:
        append(out, {"part": part, "name": "ended", "reason": f"exit status {done.returncode}"})


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else "")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results; lines are added.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="The smallest sizes: does the script work?")
@click.option("--seconds", default=TOTAL, show_default=True, help="For all parts together.")
@click.option("--only", "chosen", multiple=True, type=click.Choice(list(PARTS)), help="Parts to run; all by default.")
@click.option("--here", is_flag=True, help="Run the parts in this process, without time limits.")
def main(out: Path, device: str, quick: bool, seconds: float, chosen: tuple[str, ...], here: bool) -> None:
    """Run the parts."""
    end = time.monotonic() + seconds - RESERVE
    for part in chosen or PARTS:
        if here:
            run_part(Check(part, device, quick, out))
            continue
        limit = min(LIMITS[part], end - time.monotonic())
        if limit < 1.0:
            append(out, {"part": part, "name": "left out", "reason": "no time left"})
            continue
        options = ["--out", str(out), "--device", device, "--only", part, "--here", *(["--quick"] if quick else [])]
        run_in_process([sys.executable, __file__, *options], part, limit, out)


if __name__ == "__main__":
    main()
