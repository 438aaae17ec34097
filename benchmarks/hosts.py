"""What batches save in other engines, and how well those conserve energy.

    python benchmarks/hosts.py torch-sim --replicas 64 --steps 50 [--mace]
    python benchmarks/hosts.py ipi --beads 32
    python benchmarks/hosts.py nve --ps 10

Each adds its results to ``benchmarks/results/hosts.json`` and writes the page anew. All with ethanol-rmd17, float32, on
the CPU; threads by OMP_NUM_THREADS. Needs the extras torch-sim, openmm and ipi (``make test-hosts`` installs them);
``--mace`` an environment with the extra torch-sim and mace-torch 0.3.16.
"""

from __future__ import annotations

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pages
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md.verlet import VelocityVerlet

from ponita_ff import PonitaCalculator
from ponita_ff.kernels.threads import number_of_threads
from ponita_ff.simulate.md import draw_momenta, hold_centre
from ponita_ff.simulate.statistics import energy_drift

if TYPE_CHECKING:
    from torch_sim.models.interface import ModelInterface

PAGE = Path(__file__).parent / "results" / "hosts"
POTENTIAL = "ethanol-rmd17"
TIMESTEP = 0.5  # fs
Array = np.ndarray[Any, np.dtype[np.float64]]


def started(number: int, temperature: float = 300.0) -> list[Atoms]:
    """Molecules of ethanol with different momenta."""
    systems = []
    for seed in range(number):
        atoms = molecule("CH3CH2OH")
        hold_centre(atoms)
        # They are at a minimum: half of the kinetic energy soon turns into potential energy.
        draw_momenta(atoms, 2 * temperature, np.random.default_rng(seed))
        systems.append(atoms)
    return systems


def ponita_in_torch_sim() -> ModelInterface:
    """The potential."""
    from ponita_ff.hosts.torch_sim import PonitaModel

    return PonitaModel(POTENTIAL, device="cpu")


def mace_in_torch_sim() -> ModelInterface:
    """MACE in the shape of MACE-OFF23 small, with random weights, by the wrapper that TorchSim brings."""
    from peers import mace_off
    from torch_sim.models.mace import MaceModel

    network = mace_off("96x0e", 4.5).models[0]
    return MaceModel(network, device=torch.device("cpu"), dtype=torch.float32, compute_stress=False)


def torch_sim_run(
    systems: list[Atoms], model: ModelInterface | None = None, timestep: float = TIMESTEP
) -> tuple[Callable[[], None], Callable[[], float]]:
    """A step (fs) at constant energy of all systems in one state, and their total energy (eV)."""
    import torch_sim

    model = model or ponita_in_torch_sim()
    state = torch_sim.initialize_state(systems, model.device, model.dtype)
    step_length = torch.tensor(1e-3 * timestep * torch_sim.units.MetalUnits.time, dtype=torch.float64)
    init, update = torch_sim.nve(model=model, dt=step_length, kT=torch.tensor(0.0))
    state = init(state, kT=torch.tensor(0.0, dtype=torch.float64), seed=1)
    momenta = np.concatenate([atoms.get_momenta() for atoms in systems])
    state.momenta = torch.from_numpy(momenta).to(model.dtype)  # ASE's units are the same: √(eV amu)
    states = [state]

    def step() -> None:
        states[0] = update(states[0])

    def energy() -> float:
        kinetic = 0.5 * (states[0].momenta.square().sum(1) / states[0].masses).sum()
        return float(states[0].energy.sum() + kinetic)

    return step, energy


def ase_run(atoms: Atoms, calculator: PonitaCalculator) -> VelocityVerlet:
    """The same for one system in ASE."""
    atoms.calc = calculator
    atoms.get_forces()
    return VelocityVerlet(atoms, TIMESTEP * units.fs)


def openmm_run(atoms: Atoms) -> tuple[Callable[[], None], Callable[[], float]]:
    """The same in OpenMM, in double precision."""
    import openmm
    from openmm import app, unit
    from openmmml import MLPotential

    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    system = MLPotential("ponita", potential=POTENTIAL, device="cpu").createSystem(topology, removeCMMotion=False)
    integrator = openmm.VerletIntegrator(1e-3 * TIMESTEP)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * unit.angstrom)
    context.setVelocities(atoms.get_velocities() * (1e3 * units.fs) * unit.angstrom / unit.picosecond)

    def energy() -> float:
        state = context.getState(energy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        return total.value_in_unit(unit.kilojoule_per_mole) * units.kJ / units.mol

    return lambda: integrator.step(1), energy


IPI = """<simulation verbosity='quiet'>
  <output prefix='run'> <properties filename='out' stride='1000000'> [ step ] </properties> </output>
  {driver}
  <system>
    <initialize nbeads='1'>
      <file mode='xyz' units='angstrom'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>600</velocities>
      <cell mode='abc' units='angstrom'>[30, 30, 30]</cell>
    </initialize>
    <forces><force forcefield='ponita'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'>{timestep}</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


def ipi_run(atoms: Atoms) -> tuple[Callable[[], None], Callable[[], float]]:
    """The same in i-PI, with its own momenta; in the working directory."""
    from ipi.scripting import InteractiveSimulation

    from ponita_ff.hosts.ipi_driver import ffdirect

    write("start.xyz", atoms, format="xyz")
    driver = ffdirect("start.xyz", POTENTIAL, 1, device="cpu")
    simulation = InteractiveSimulation(IPI.format(driver=driver, timestep=TIMESTEP))

    # Properties come in ASE's units.
    return lambda: simulation.run(1, write_outputs=False), lambda: float(simulation.properties("conserved"))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


TORCH_SIM_CONTENDERS = {
    "torch_sim_ms": "TorchSim",
    "ase_ms": "ASE, one after another",
    "mace_ms": "TorchSim, MACE-OFF23 small",
}

MACE_NOTE = (
    "MACE has random weights (`peers.py`) and the wrapper that TorchSim brings; its steps are 1e-6 fs long, so that "
    "its molecules stay whole."
)


def report(results: pages.Results) -> str:
    """The page."""
    lines = [
        "# Other engines",
        "",
        "*Written by `python benchmarks/hosts.py`; all numbers come from `hosts.json`.*",
        "",
        "Ethanol with ethanol-rmd17, float32, on the CPU. Times are medians of rounds in which the contenders take "
        "turns, with the smallest and the largest in brackets.",
        "",
    ]
    found = [value for kind in results.values() for value in kind.values()]
    for result in results.get("torch-sim", {}).values():
        batch, single = (result[name] for name in ("torch_sim_ms", "ase_ms"))
        mace = "mace_ms" in result
        lines += [
            f"## TorchSim: {result['replicas']} replicas",
            "",
            "Time of a step of all replicas at constant energy, in one state of TorchSim and in ASE one after another; "
            f"{result['rounds']} rounds of {result['steps']} steps, {result['threads']} thread(s).",
            "",
            *pages.table(
                ("", "ms", "replica steps/s"),
                [
                    (name, _times(result[key]), f"{1e3 * result['replicas'] / result[key]['median']:.0f}")
                    for key, name in TORCH_SIM_CONTENDERS.items()
                    if key in result
                ],
            ),
            "",
            f"TorchSim takes {batch['median'] / single['median']:.2f} times as long as ASE."
            + (f" MACE takes {result['mace_ms']['median'] / batch['median']:.1f} times as long." if mace else ""),
            *(["", MACE_NOTE] if mace else []),
            "",
        ]
    for result in results.get("ipi", {}).values():
        batch, single = (result[name] for name in ("batch_ms", "separate_ms"))
        lines += [
            f"## i-PI: {result['beads']} beads",
            "",
            f"Time of the driver for all beads, {result['rounds']} rounds, {result['threads']} thread(s).",
            "",
            *pages.table(("", "ms"), [("one batch", _times(batch)), ("separate evaluations", _times(single))]),
            "",
            f"A batch takes {batch['median'] / single['median']:.2f} times as long.",
            "",
        ]
    if "nve" in results:
        lines += ["## Conservation of energy", "", f"Near 300 K with steps of {TIMESTEP:g} fs.", ""]
        rows = [
            (name, f"{r['ps']:g}", f"{r['slope']:.2g} ± {r['error']:.2g}", f"{r['rms']:.2f}")
            for name, r in results["nve"].items()
        ]
        lines += [*pages.table(("engine", "ps", "drift (meV/atom/ns)", "fluctuation (meV)"), rows), ""]
    lines.append(pages.measured_on(found))
    return "\n".join(lines) + "\n"


def _times(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}–{values['max']:.2f})"


@click.group()
def main() -> None:
    """See the module's docstring."""


page_option = click.option("--page", type=click.Path(path_type=Path), default=PAGE, help="Of the results.")


@main.command("torch-sim")
@click.option("--replicas", default=64, show_default=True)
@click.option("--steps", default=50, show_default=True, help="In each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--mace", is_flag=True, help="Beside MACE by the wrapper that TorchSim brings.")
@page_option
def torch_sim(replicas: int, steps: int, rounds: int, mace: bool, page: Path) -> None:
    """Replicas in one state against ASE runs one after another."""
    step, _ = torch_sim_run(started(replicas))
    calculators = PonitaCalculator(POTENTIAL, device="cpu")
    runs = [ase_run(atoms, calculators) for atoms in started(replicas)]
    contenders: dict[str, Callable[[], object]] = {
        "torch_sim_ms": lambda: [step() for _ in range(steps)],
        "ase_ms": lambda: [run.run(steps) for run in runs],
    }
    if mace:
        mace_step, _ = torch_sim_run(started(replicas), mace_in_torch_sim(), timestep=1e-6)
        contenders["mace_ms"] = lambda: [mace_step() for _ in range(steps)]
        mace_step()
    step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run_steps in contenders.items():
            times[name].append(1e3 / steps * seconds(run_steps))
    measured = {name: spread(values) for name, values in times.items()}
    setting = {"replicas": replicas, "steps": steps, "rounds": rounds, "threads": number_of_threads()}
    pages.add_result(page, report, "torch-sim", str(replicas), setting | measured)


@main.command()
@click.option("--beads", default=32, show_default=True)
@click.option("--rounds", default=20, show_default=True)
@page_option
def ipi(beads: int, rounds: int, page: Path) -> None:
    """All beads in one batch against as many evaluations."""
    from ipi.utils.units import unit_to_internal

    from ponita_ff.hosts.ipi_driver import PonitaDriver

    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "start.xyz"
        write(template, molecule("CH3CH2OH"), format="xyz")
        # Each with its own lists: neither shall disturb the other's.
        together, alone = (PonitaDriver(str(template), POTENTIAL, device="cpu") for _ in range(2))
    generator = np.random.default_rng(0)
    start = molecule("CH3CH2OH").positions
    angstrom = unit_to_internal("length", "angstrom", 1.0)
    positions = [angstrom * (start + generator.normal(0, 0.05, start.shape)) for _ in range(beads)]
    cells = [30 * angstrom * np.eye(3)] * beads
    together(cells, positions)
    alone(cells[0], positions[0])
    times: dict[str, list[float]] = {"batch_ms": [], "separate_ms": []}
    for _ in range(rounds):
        times["batch_ms"].append(1e3 * seconds(lambda: together(cells, positions)))
        times["separate_ms"].append(
            1e3 * seconds(lambda: [alone(*pair) for pair in zip(cells, positions, strict=True)])
        )
    measured = {name: spread(values) for name, values in times.items()}
    setting = {"beads": beads, "rounds": rounds, "threads": number_of_threads()}
    pages.add_result(page, report, "ipi", str(beads), setting | measured)


@main.command()
@click.option("--ps", default=10.0, show_default=True, help="Length of each run.")
@page_option
def nve(ps: float, page: Path) -> None:
    """Drift of the total energy in each engine."""
    number = round(1e3 * ps / TIMESTEP)
    (atoms,) = started(1)
    page = page.resolve()
    makers = {
        "TorchSim": lambda: torch_sim_run([atoms]),
        "OpenMM": lambda: openmm_run(atoms),
        "i-PI": lambda: ipi_run(atoms),
    }
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            step, energy = make()
            energies = []
            for _ in range(number):
                step()
                energies.append(energy())
        drift = energy_drift(1e-3 * TIMESTEP * np.arange(number), np.array(energies), len(atoms))
        values = {"ps": ps, "slope": float(drift.slope), "error": float(drift.error), "rms": drift.rms}
        pages.add_result(page, report, "nve", name, values)


if __name__ == "__main__":
    main()
