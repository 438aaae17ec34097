"""One contender of the speed benchmark in a process of its own, where it can run out of memory without harm.

``benchmarks/speed.py`` starts it with a :class:`Job` as JSON. It then reads one command a line and answers each with
one line of JSON: ``hello`` (all is imported), ``facts`` (what runs here), ``prepare`` (make the contender and run it
once, which compiles where there is something to compile), ``turn SECONDS`` (run for about so long; the time of every
run).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

if "OMP_WAIT_POLICY" not in os.environ:  # as the command line does
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from peers import PEERS
from speed_systems import SEED, count_flops, directed_edges, make_system
from torch import nn

from ponita_ff import Ponita, PonitaCalculator, PonitaConfig, Potential
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.published.network import PublishedConfig, PublishedPonita
from ponita_ff.structure.graph import batch_graphs, build_graph
from ponita_ff.training.config import LossConfig, OptimiserConfig
from ponita_ff.training.optimisers import Optimiser
from ponita_ff.training.step import TrainingStep

SPECIES = (1, 6, 8)
SHIPPED = "ethanol-rmd17"
CUTOFF = 5.0

#: Sizes of one run of each task: full, and of a quick trial.
MD_STEPS = (50, 5)
REPLICAS = (1000, 20)
PRODUCTS = (4, 1)
MATRIX = (2048, 256)

BATCH_SIZE = 5
TIMESTEP_FS = 0.5
TEMPERATURE = 300.0

#: After this many seconds a run does not mind what another process left in the caches.
WARM = 0.1

#: Runs of another force field before it is timed: TorchScript compiles in the first few.
PEER_WARM_UP = 3


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        task: ``evaluate``, ``md``, ``train``, ``batch`` (many structures at once), ``loop`` (one by one), ``product``
            (matrix products) or ``idle``.
        form: ``shipped``, ``default`` or ``published`` (the two forms at the published settings), or a peer's name.
        backend: Of the calculator; of training.
        system: See :func:`speed_systems.make_system`.
        quick: Tiny networks and short runs, to try the script.
        memory_gib: Address space that the process may take; None for no limit.
    """

    task: str
    form: str = ""
    backend: str = ""
    system: str = ""
    quick: bool = False
    memory_gib: float | None = None

    def pick(self, sizes: tuple[int, int]) -> int:
        """The full or the quick one of two sizes."""
        return sizes[self.quick]


@dataclass
class Task:
    """Something to run over and over.

    Attributes:
        run: Does it once.
        per: How many units of work (evaluations, steps, structures) a run is.
        facts: For the results.
        inside: Seconds that the network has taken so far, where that is measured.
    """

    run: Callable[[], None]
    per: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    inside: Callable[[], float] | None = None


# ------------------------------------------------------------------------------------------------------ contenders


def _potential_of(network: nn.Module) -> Potential:
    return Potential(network, SPECIES, dict.fromkeys(SPECIES, 0.0)).eval().requires_grad_(False)


def default_config(quick: bool) -> PonitaConfig:
    """The force-field form at the published settings."""
    if quick:
        return PonitaConfig(num_ori=12, channels=16, num_layers=2, l_max=2, cutoff=CUTOFF)
    return PonitaConfig(num_ori=20, channels=128, num_layers=5, l_max=4, cutoff=CUTOFF)


def published_config(quick: bool, cutoff: float | None) -> PublishedConfig:
    """The published form: its defaults are the published settings."""
    if quick:
        return PublishedConfig(num_ori=12, channels=16, num_layers=2, basis_dim=16, cutoff=cutoff)
    return PublishedConfig(cutoff=cutoff)


def make_potential(job: Job, atoms: Atoms) -> str | Potential:
    """The shipped potential's name, or a network with random weights from a fixed seed, float32."""
    if job.form == "shipped":
        return SHIPPED
    torch.manual_seed(SEED)
    if job.form == "default":
        return _potential_of(Ponita(default_config(job.quick), len(SPECIES)))
    # As published: all pairs of a molecule, and a cutoff where there is no end of pairs.
    network = PublishedPonita(published_config(job.quick, CUTOFF if atoms.pbc.any() else None), len(SPECIES))
    network.orientations.copy_(torch.from_numpy(orientation_grid(network.config.num_ori).orientations))
    return _potential_of(network)


def make_calculator(job: Job, atoms: Atoms) -> Calculator:
    """The contender as an ASE calculator.

    Raises:
        RuntimeError: Where another backend would compute than the one that was asked for.
    """
    if job.form in PEERS:
        return PEERS[job.form].make()
    calculator = PonitaCalculator(make_potential(job, atoms), device="cpu", backend=job.backend)
    if job.backend not in ("auto", calculator.backend):
        raise RuntimeError(f"no {job.backend} backend here: {calculator.backend} would compute instead")
    return calculator


def _size_facts(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Number of atoms and, of our own networks, of edges and of useful operations."""
    facts: dict[str, Any] = {"atoms": len(atoms)}
    if isinstance(calculator, PonitaCalculator):
        network = calculator.potential.network
        edges = directed_edges(atoms, network.cutoff)
        facts |= {"edges": edges, "flops": asdict(count_flops(network.config, len(atoms), edges))}
    return facts


# ----------------------------------------------------------------------------------------------------------- tasks


def evaluate_task(job: Job) -> Task:
    """Energy and forces, of a crystal stress too, through the calculator; the atoms move a little every time."""
    atoms = make_system(job.system)
    calculator = make_calculator(job, atoms)
    # Stress first: one pass then gives all, as in any run that wants the stress.
    wanted = ("stress", "forces", "energy") if atoms.pbc.all() else ("forces", "energy")
    if job.form in PEERS and not PEERS[job.form].stress:
        wanted = ("forces", "energy")
    displacement = 1e-4 * np.random.default_rng(SEED).normal(size=atoms.positions.shape)
    start, turns = atoms.positions.copy(), [0]

    def run() -> None:
        turns[0] += 1
        atoms.positions[:] = start + displacement * (turns[0] % 7)
        for name in wanted:
            calculator.get_property(name, atoms)

    return Task(run, facts=_size_facts(calculator, atoms))


def _time_network(calculator: PonitaCalculator) -> Callable[[], float]:
    """Let the calculator note the time that its potential takes; gives the seconds so far.

    Everything else of a step is the neighbour list, the graph, copies and checks, and ASE.
    """
    predict, total = calculator._predictors[0], [0.0]

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return predict(*arguments)
        finally:
            total[0] += time.perf_counter() - began

    calculator._predictors[0] = timed
    return lambda: total[0]


def md_task(job: Job) -> Task:
    """Steps of molecular dynamics, to and fro: with random weights, a molecule would fall apart on a longer way."""
    atoms = make_system(job.system)
    atoms.calc = calculator = make_calculator(job, atoms)
    thermal = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(SEED).normal(size=atoms.positions.shape))
    facts, steps = _size_facts(calculator, atoms), job.pick(MD_STEPS)
    inside = _time_network(calculator)
    dynamics = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)

    def run() -> None:
        atoms.set_momenta(-atoms.get_momenta())
        dynamics.run(steps)

    return Task(run, steps, facts | {"timestep_fs": TIMESTEP_FS}, inside)


def train_task(job: Job) -> Task:
    """Training steps: loss and its gradient, clipping, Adam."""
    atoms, generator = make_system(job.system), np.random.default_rng(SEED)
    potential = make_potential(job, atoms)
    assert isinstance(potential, Potential)
    potential.train().requires_grad_(True)
    graphs = []
    for _ in range(BATCH_SIZE):
        moved = atoms.positions + 0.05 * generator.normal(size=atoms.positions.shape)
        graph = build_graph(atoms.numbers, moved, potential.cutoff)
        graph.energy = torch.zeros(1, dtype=torch.float64)
        graph.forces = torch.from_numpy(generator.normal(size=moved.shape))
        graphs.append(graph)
    batch, step = batch_graphs(graphs), TrainingStep(potential, LossConfig(), job.backend)
    # As the trainer's, but for Adam, which everybody's step has.
    optimiser, clip = Optimiser(potential, "adam", weight_decay=0.0), OptimiserConfig().clip_norm

    def run() -> None:
        step(batch)
        optimiser.step(1e-4, clip)

    return Task(run, facts={"atoms": len(atoms), "batch_size": BATCH_SIZE})


def _replicas(job: Job) -> list[Atoms]:
    atoms, generator = make_system(job.system), np.random.default_rng(SEED)
    replicas = [atoms.copy() for _ in range(job.pick(REPLICAS))]
    for replica in replicas:
        replica.positions += 0.05 * generator.normal(size=replica.positions.shape)
    return replicas


def batch_task(job: Job) -> Task:
    """Many structures by one call."""
    replicas = _replicas(job)
    calculator = make_calculator(job, replicas[0])
    assert isinstance(calculator, PonitaCalculator)
    potential = calculator.potential

    def run() -> None:
        potential.evaluate(replicas, backend=job.backend)

    return Task(run, len(replicas), _size_facts(calculator, replicas[0]) | {"replicas": len(replicas)})


def loop_task(job: Job) -> Task:
    """The same structures one after the other through the calculator."""
    replicas = _replicas(job)
    calculator = make_calculator(job, replicas[0])

    def run() -> None:
        for atoms in replicas:
            calculator.get_property("forces", atoms)
            calculator.get_property("energy", atoms)

    return Task(run, len(replicas), _size_facts(calculator, replicas[0]) | {"replicas": len(replicas)})


def product_task(job: Job) -> Task:
    """Products of two float32 matrices: what this machine can do at best, now."""
    size, number = job.pick(MATRIX), job.pick(PRODUCTS)
    left, right = torch.rand(2, size, size, generator=torch.Generator().manual_seed(SEED))
    out = torch.empty(size, size)

    def run() -> None:
        for _ in range(number):
            torch.mm(left, right, out=out)

    return Task(run, number, {"flops": {"convnext": 2.0 * size**3, "total": 2.0 * size**3}, "size": size})


def idle_task(job: Job) -> Task:
    """Nothing: what the imports alone take."""
    return Task(lambda: None)


TASKS = {
    "evaluate": evaluate_task,
    "md": md_task,
    "train": train_task,
    "batch": batch_task,
    "loop": loop_task,
    "product": product_task,
    "idle": idle_task,
}


# --------------------------------------------------------------------------------------------------------- process


def peak_bytes() -> int:
    """Largest resident set of this process so far.

    From /proc where there is one: ``ru_maxrss`` of a young process may still be that of the process that started it.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def limit_memory(gibibytes: float) -> None:
    """Let allocations beyond so much address space fail, rather than the machine come to a halt."""
    import resource

    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Warnings(logging.Handler):
    """Keeps what the package warns of: it goes on without a compiler, and a benchmark must not."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def explain(error: BaseException, memory_gib: float | None) -> str:
    """One line for the tables."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
        return "out of memory" + (f" at {memory_gib:g} GiB" if memory_gib else "")
    return f"{type(error).__name__}: {text}"[:200]


class Worker:
    """Answers commands."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task = Task(lambda: None)
        self._slow = False

    def answer(self, command: str, argument: str) -> dict[str, Any]:
        """The answer to one command, whatever goes wrong with it."""
        try:
            return {"hello": self.hello, "facts": self.facts, "prepare": self.prepare, "turn": self.turn}[command](
                argument
            )
        except Exception as error:
            return {"failure": explain(error, self.job.memory_gib)}

    def hello(self, _: str) -> dict[str, Any]:
        """Nothing but that all is imported."""
        return {}

    def facts(self, _: str) -> dict[str, Any]:
        """What runs here."""
        from ponita_ff.provenance import describe_hardware

        return {
            "hardware": describe_hardware(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "wait_policy": os.environ["OMP_WAIT_POLICY"],
            "spin_count": os.environ.get("GOMP_SPINCOUNT", "default"),
        }

    def prepare(self, _: str) -> dict[str, Any]:
        """Make the contender and run it for the first time."""
        warnings = _Warnings()
        logging.getLogger("ponita_ff").addHandler(warnings)
        began = time.perf_counter()
        self.task = TASKS[self.job.task](self.job)
        made = time.perf_counter()
        self.task.run()
        first = time.perf_counter() - made
        if self.job.form in PEERS:
            for _ in range(PEER_WARM_UP):
                self.task.run()
        # A first run that compiled something tells nothing of the later ones.
        self._slow = first > WARM and self.job.backend in ("native", "eager")
        if warnings.messages:
            return {"failure": warnings.messages[0][:200]}
        return {"make_s": made - began, "first_s": first, "peak_bytes": peak_bytes(), "facts": self.task.facts}

    def turn(self, seconds: str) -> dict[str, Any]:
        """Seconds of every run, and of those the network's, per unit of work."""
        task, times, inside = self.task, [], []
        end = time.perf_counter() + float(seconds)
        if not self._slow:
            task.run()  # another process has just had the caches
        while not times or time.perf_counter() < end:
            before = task.inside() if task.inside else 0.0
            began = time.perf_counter()
            task.run()
            times.append((time.perf_counter() - began) / task.per)
            if task.inside:
                inside.append((task.inside() - before) / task.per)
        self._slow = min(times) * task.per > WARM
        return {"seconds": times, "inside": inside, "runs": len(times), "peak_bytes": peak_bytes()}


def serve(job: Job, commands: TextIO, answers: TextIO) -> None:
    """Answer commands until there are no more."""
    if job.memory_gib is not None:
        limit_memory(job.memory_gib)
    worker = Worker(job)
    for line in commands:
        command, _, argument = line.strip().partition(" ")
        answers.write(json.dumps(worker.answer(command, argument)) + "\n")
        answers.flush()


def main() -> None:
    """Serve the job on the command line; whatever a contender prints goes to the log, not among the answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(Job(**json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
