"""Is one checkout of ponita_ff slower than another? Times both in turn, so that a busy machine slows both alike.

    python benchmarks/regression.py OLD NEW                  # two checkouts; minutes
    python benchmarks/regression.py OLD NEW --only md --rounds 9

Every round starts one process for each checkout, in an order that changes from round to round, with one and the same
Python. A process times each task several times and reports the fastest. What is printed is the median over rounds of
the ratio new / old, with the smallest and largest ratio.

Tasks: ``md`` (a step of ethanol with the shipped potential through ASE), ``latency`` (aspirin, a call with new
positions), ``training`` (a step with a batch of five ethanol molecules, default network), ``box`` (1,008 atoms of water
with stress, default network).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TASKS = ("md", "latency", "training", "box")


def fastest(function: Callable[[], object], repeats: int) -> float:
    """Shortest of several times, ms, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def default_potential(symbols: str, references: float = 0.0):
    """The default network with random weights for some elements."""
    import torch
    from ase.data import atomic_numbers

    from ponita_ff import Ponita, PonitaConfig, Potential

    species = sorted(atomic_numbers[symbol] for symbol in symbols)
    torch.manual_seed(0)
    return Potential(Ponita(PonitaConfig(), len(species)), species, dict.fromkeys(species, references), 1.0)


def time_md(repeats: int) -> float:
    """A step of NVE of ethanol, ms."""
    from ase.build import molecule
    from ase.md.verlet import VelocityVerlet
    from ase.units import fs

    from ponita_ff import PonitaCalculator

    atoms = molecule("CH3CH2OH")
    atoms.calc = PonitaCalculator("ethanol-rmd17", device="cpu")
    atoms.rattle(0.05, seed=0)  # which moves soon enough
    dynamics = VelocityVerlet(atoms, 0.5 * fs)
    return fastest(lambda: dynamics.run(100), repeats) / 100


def time_latency(repeats: int) -> float:
    """Energy and forces of aspirin at new positions, ms."""
    from ase.io import read

    from ponita_ff import PonitaCalculator

    atoms = read(Path(os.environ["CHECKOUT"]) / "potentials" / "aspirin-rmd17" / "structure.xyz")
    atoms.calc = PonitaCalculator("aspirin-rmd17", device="cpu")

    def calls() -> None:
        for seed in range(20):
            atoms.rattle(1e-3, seed=seed)
            atoms.get_forces()

    return fastest(calls, repeats) / 20


def time_training(repeats: int) -> float:
    """Loss and gradients of five molecules of ethanol, ms."""
    import numpy as np
    from ase.build import molecule

    from ponita_ff.data import Frame
    from ponita_ff.training.config import LossConfig
    from ponita_ff.training.evaluate import frame_graph
    from ponita_ff.training.step import TrainingStep

    try:
        from ponita_ff.structure.graph import batch_graphs
    except ImportError:  # before the folders
        from ponita_ff.graph import batch_graphs  # type: ignore[import-not-found, no-redef]
    graphs, rng = [], np.random.default_rng(0)
    for seed in range(5):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        forces = rng.normal(size=(len(atoms), 3))
        frame = Frame(
            numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            energy=-1.0,
            forces=forces,
        )
        graphs.append(frame_graph(frame, 5.0))
    graph = batch_graphs(graphs)
    step = TrainingStep(default_potential("HCO").train(), LossConfig(), "native")

    def steps() -> None:
        for _ in range(5):
            step(graph)

    return fastest(steps, repeats) / 5


def time_box(repeats: int) -> float:
    """Energy, forces and stress of 1,008 atoms of water at new positions, ms."""
    import numpy as np
    from ase import Atoms
    from ase.build import molecule

    from ponita_ff import PonitaCalculator

    water, length = molecule("H2O"), 3.107
    places = np.array([(i, j, k) for i in range(7) for j in range(8) for k in range(6)]) * length
    atoms = Atoms(cell=np.array([7, 8, 6]) * length, pbc=True)
    for index, place in enumerate(places):
        one = water.copy()
        one.rotate(37.0 * index, (1, 2, 3), center="COM")
        one.positions += place
        atoms += one
    atoms.calc = PonitaCalculator(default_potential("HO"), device="cpu")

    def call() -> None:
        atoms.rattle(1e-3, seed=1)
        atoms.get_stress()

    return fastest(call, repeats)


def work(tasks: list[str], repeats: int) -> None:
    """Time the tasks in this process and print them as JSON."""
    run = {"md": time_md, "latency": time_latency, "training": time_training, "box": time_box}
    print(json.dumps({task: run[task](max(2, repeats // 3) if task == "box" else repeats) for task in tasks}))


def measure(checkout: Path, tasks: list[str], repeats: int) -> dict[str, float]:
    """Times of a checkout, in a process of its own."""
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        **os.environ,
        "PYTHONPATH": str(checkout),
        "CHECKOUT": str(checkout),
    }
    command = [sys.executable, __file__, "--work", "--only", *tasks, "--repeats", str(repeats), str(checkout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="OLD NEW")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.only, arguments.repeats)
        return
    if len(arguments.checkouts) != 2:
        parser.error("give two checkouts, the old one and the new one")
    old, new = (path.resolve() for path in arguments.checkouts)
    ratios: dict[str, list[float]] = {task: [] for task in arguments.only}
    times: dict[str, list[float]] = {task: [] for task in arguments.only}
    for number in range(arguments.rounds):
        order = (old, new) if number % 2 == 0 else (new, old)
        found = {path: measure(path, arguments.only, arguments.repeats) for path in order}
        for task in arguments.only:
            ratios[task].append(found[new][task] / found[old][task])
            times[task].append(found[new][task])
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    print(f"{'task':<10}{'new, ms':>10}{'new / old':>12}{'smallest':>10}{'largest':>10}")
    for task, values in ratios.items():
        ratio = statistics.median(values)
        print(
            f"{task:<10}{statistics.median(times[task]):>10.2f}{ratio:>12.3f}{min(values):>10.3f}{max(values):>10.3f}"
        )


if __name__ == "__main__":
    main()
