"""Tasks of the speed benchmark for this package's networks, and the matrix product that they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from speed_flops import count_flops, directed_edges
from speed_job import Job, Task, evaluation_task
from speed_systems import SEED, make_system
from torch import nn

from ponita_ff import Ponita, PonitaCalculator, PonitaConfig, Potential
from ponita_ff.network.orientations import orientation_grid
from ponita_ff.published.config import PublishedConfig
from ponita_ff.published.network import PublishedPonita
from ponita_ff.structure.graph import batch_graphs, build_graph
from ponita_ff.training.config import LossConfig, OptimiserConfig
from ponita_ff.training.optimisers import Optimiser
from ponita_ff.training.step import TrainingStep

SPECIES = (1, 6, 8)
SHIPPED = "ethanol-rmd17"
CUTOFF = 5.0

#: Sizes of one run of each task: full, and quick.
MD_STEPS = (50, 5)
REPLICAS = (1000, 20)
PRODUCTS = (4, 1)
MATRIX = (2048, 256)

BATCH_SIZE = 5
TIMESTEP_FS = 0.5
TEMPERATURE = 300.0


def _potential_of(network: nn.Module) -> Potential:
    return Potential(network, SPECIES, dict.fromkeys(SPECIES, 0.0)).eval().requires_grad_(False)


def default_config(quick: bool) -> PonitaConfig:
    """Return the force-field form at the published settings."""
    if quick:
        return PonitaConfig(num_ori=12, channels=16, num_layers=2, l_max=2, cutoff=CUTOFF)
    return PonitaConfig(num_ori=20, channels=128, num_layers=5, l_max=4, cutoff=CUTOFF)


def published_config(quick: bool, cutoff: float | None) -> PublishedConfig:
    """Return the published form, whose defaults are the published settings."""
    if quick:
        return PublishedConfig(num_ori=12, channels=16, num_layers=2, basis_dim=16, cutoff=cutoff)
    return PublishedConfig(cutoff=cutoff)


def make_potential(job: Job, atoms: Atoms) -> str | Potential:
    """Return the name of the shipped potential, or a float32 network with random weights of a fixed seed."""
    if job.form == "shipped":
        return SHIPPED
    torch.manual_seed(SEED)
    if job.form == "default":
        return _potential_of(Ponita(default_config(job.quick), len(SPECIES)))
    # As published: all pairs of a molecule; periodic systems need a cutoff.
    network = PublishedPonita(published_config(job.quick, CUTOFF if atoms.pbc.any() else None), len(SPECIES))
    network.orientations.copy_(torch.from_numpy(orientation_grid(network.config.num_ori).orientations))
    return _potential_of(network)


def make_calculator(job: Job, atoms: Atoms) -> PonitaCalculator:
    """Return the contender as an ASE calculator.

    Raises:
        RuntimeError: If the calculator would use another backend than the requested one.
    """
    calculator = PonitaCalculator(make_potential(job, atoms), device="cpu", backend=job.backend)
    if job.backend not in ("auto", calculator.backend):
        raise RuntimeError(f"no {job.backend} backend here: {calculator.backend} would compute instead")
    return calculator


def _size_facts(calculator: PonitaCalculator, atoms: Atoms) -> dict[str, Any]:
    """Return the numbers of atoms, edges and useful operations."""
    network = calculator.potential.network
    edges = directed_edges(atoms, network.cutoff)
    return {"atoms": len(atoms), "edges": edges, "flops": asdict(count_flops(network.config, len(atoms), edges))}


def evaluate_task(job: Job) -> Task:
    """Return the task of one evaluation of energy and forces through the calculator."""
    atoms = make_system(job.system)
    calculator = make_calculator(job, atoms)
    return evaluation_task(calculator, atoms, stress=True, facts=_size_facts(calculator, atoms))


def _time_network(calculator: PonitaCalculator) -> Callable[[], float]:
    """Time the calls of the calculator's network; returns a function that gives the seconds so far.

    The rest of a step is spent on the neighbour list, the graph, copies and checks, and in ASE.
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
    """Return the task of molecular dynamics, forward and back, since random weights break molecules in long runs."""
    atoms = make_system(job.system)
    atoms.calc = calculator = make_calculator(job, atoms)
    thermal = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(SEED).normal(size=atoms.positions.shape))
    facts, steps = _size_facts(calculator, atoms), job.pick(MD_STEPS)
    network_seconds = _time_network(calculator)
    dynamics = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)

    def run() -> None:
        atoms.set_momenta(-atoms.get_momenta())
        dynamics.run(steps)

    return Task(run, steps, facts | {"timestep_fs": TIMESTEP_FS}, network_seconds)


def train_task(job: Job) -> Task:
    """Return the task of a training step: loss and its gradient, clipping, Adam."""
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
    # As in the trainer, except for Adam, which all contenders use.
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
    """Return the task of evaluating many structures in one call."""
    replicas = _replicas(job)
    calculator = make_calculator(job, replicas[0])
    potential = calculator.potential

    def run() -> None:
        potential.evaluate(replicas, backend=job.backend)

    return Task(run, len(replicas), _size_facts(calculator, replicas[0]) | {"replicas": len(replicas)})


def loop_task(job: Job) -> Task:
    """Return the task of evaluating the same structures one after the other through the calculator."""
    replicas = _replicas(job)
    calculator = make_calculator(job, replicas[0])

    def run() -> None:
        for atoms in replicas:
            calculator.get_property("forces", atoms)
            calculator.get_property("energy", atoms)

    return Task(run, len(replicas), _size_facts(calculator, replicas[0]) | {"replicas": len(replicas)})


def product_task(job: Job) -> Task:
    """Return the task of multiplying two float32 matrices: the arithmetic that this machine can do at best."""
    size, number = job.pick(MATRIX), job.pick(PRODUCTS)
    left, right = torch.rand(2, size, size, generator=torch.Generator().manual_seed(SEED))
    out = torch.empty(size, size)

    def run() -> None:
        for _ in range(number):
            torch.mm(left, right, out=out)

    return Task(run, number, {"flops": {"convnext": 2.0 * size**3, "total": 2.0 * size**3}, "size": size})


def idle_task(job: Job) -> Task:
    """Return the task that does nothing: it shows what the imports take."""
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


def hardware_facts() -> dict[str, Any]:
    """Return what is computed with and on."""
    from ponita_ff.provenance import describe_hardware

    return {
        "hardware": describe_hardware(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
