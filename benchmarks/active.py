"""Active learning and labelling: reference frames, active learning against random frames, labelling in parallel.

    python benchmarks/active.py frames --structure CH3SH --number 500 --out WORK/ch3sh.xyz
    python benchmarks/active.py explore --structure CH3CONH2 --budget 60 --work WORK
    python benchmarks/active.py labels --structure CH3CONH2 --method pbe/def2-svp --frames 40 --work WORK

``frames`` runs dynamics with a method that labels (``--method``, as ``ponita-ff label`` takes it) and keeps labelled
frames far apart in time. ``explore`` gives active learning, frames drawn at random from such dynamics, and frames of
``ponita-ff sample`` the same number of labels and the same training, and tests all on frames of another run; with
``--defaults`` active learning labels in rounds as small as the command's. ``labels`` times one process against two.
Results gather in ``results/active.json``; ``results/active.md`` is written from them.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.io import read, write
from ase.md.langevin import Langevin
from pages import add_result, measured_on, table
from tqdm import tqdm

from ponita_ff.audit.dynamics import thermal_momenta
from ponita_ff.data import Frame, read_frames
from ponita_ff.explore import ExploreSettings, explore
from ponita_ff.files import write_atomically, write_text
from ponita_ff.labels import find_method, label_frames
from ponita_ff.potential.file import load_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.sample import SampleSettings
from ponita_ff.sample import sample as sample_geometries
from ponita_ff.sample.geometry import conformers
from ponita_ff.settings import parse_assignments
from ponita_ff.training.config import POTENTIAL_FILE
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.finetune import finetune, finetune_config
from ponita_ff.uncertainty import committee_spread

RESULTS = Path(__file__).resolve().parent / "results"

#: Reference dynamics: relaxation time of the thermostat, equilibration, time step.
RELAXATION_FS, EQUILIBRATION_PS, TIMESTEP_FS = 50.0, 1.0, 0.5

#: Dynamics of each round of active learning.
SIMULATION_PS = 4.0


def add(kind: str, key: str, values: dict[str, Any]) -> None:
    """Add a result to the JSON file, and write the page anew."""
    add_result(RESULTS / "active", report, kind, key, values)


def structure(name: str) -> Atoms:
    """Return a molecule of ASE's collection, the first structure of a file, or a conformer of a SMILES."""
    if name in g2.names:
        found = g2[name]
    elif Path(name).is_file():
        found = read(name, index=0)
    else:
        found = conformers(name, 1, 0)[0]
    assert isinstance(found, Atoms)
    return Atoms(found.numbers, found.positions)


def sample(start: Atoms, method: str, number: int, temperature: float, every_fs: float, seed: int) -> list[Atoms]:
    """Run Langevin dynamics with a method and return labelled frames."""
    atoms, generator = start.copy(), np.random.default_rng(seed)
    atoms.calc = find_method(method).calculator()
    thermal_momenta(atoms, temperature, generator)
    dynamics = Langevin(
        atoms,
        TIMESTEP_FS * units.fs,
        temperature_K=temperature,
        friction=1.0 / (RELAXATION_FS * units.fs),
        rng=generator,
        fixcm=False,
    )
    dynamics.run(round(1000 * EQUILIBRATION_PS / TIMESTEP_FS))
    frames = []
    for _ in tqdm(range(number), desc="frames"):
        dynamics.run(round(every_fs / TIMESTEP_FS))
        labels = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(Atoms(atoms.numbers, atoms.positions, calculator=labels))
        frames[-1].info |= {"labels": method, "energy_unit": "eV", "length_unit": "Angstrom"}
    return frames


def sample_file(path: Path, *arguments: Any) -> Path:
    """Write such frames to a file unless it exists; return its path."""
    if not path.is_file():
        frames = sample(*arguments)
        write_atomically(path, lambda temporary: write(temporary, frames, format="extxyz"))
    return path


@click.group()
def main() -> None:
    """Reference frames, active learning, labelling; every result is added to the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def with_structure(command: Any) -> Any:
    """Add the options that all commands have."""
    command = click.option("--method", default="gfn2-xtb", show_default=True)(command)
    return click.option("--structure", "name", required=True, help="Molecule of ase.build, file, SMILES.")(command)


def with_dynamics(command: Any) -> Any:
    """Add the options of the reference dynamics."""
    command = click.option("--temperature", default=500.0, show_default=True, help="K.")(command)
    return click.option("--every", default=50.0, show_default=True, help="fs between frames.")(command)


@main.command()
@with_structure
@with_dynamics
@click.option("--number", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def frames(name: str, method: str, temperature: float, every: float, number: int, seed: int, out: Path) -> None:
    """Write labelled frames of dynamics with the method."""
    sample_file(out, structure(name), method, number, temperature, every, seed)


def errors_of(members: list[Potential], tests: list[Frame]) -> dict[str, float]:
    """Return the force MAE of the members, on average, and of the committee's mean, meV/Å."""
    forces = committee_spread(members, [frame.to_atoms() for frame in tests])[1]
    deviations = np.concatenate([np.abs(f - frame.forces).ravel() for f, frame in zip(forces, tests, strict=True)])
    each = [evaluate(member, tests, backend="auto").errors.forces_mae for member in members]
    return {"member": 1e3 * float(np.mean(each)), "committee": 1e3 * float(deviations.mean())}


def labelled_geometries(start: Atoms, method: str, number: int, work: Path) -> Path:
    """Return the file of labelled frames of ``ponita-ff sample``, made unless it exists."""
    # Of one structure the default makes some thirty frames.
    each = {"frames": max(6, number // 2)}
    settings = SampleSettings.make({"method": method, "md": each, "modes": each, "selection": {"frames": number}})
    sampled = sample_geometries([start], settings, work / "geometries")
    labelling = label_frames(sampled.path, method, work / "sampled.xyz")
    if labelling.path is None:
        raise click.ClickException(f"no frame could be labelled: {next(iter(labelling.failures.values()))}")
    return labelling.path


def committee(base: str, data: Path, members: int, overrides: dict[str, Any], out: Path) -> list[Potential]:
    """Fine-tune potentials that differ in their seeds, unless they exist."""
    found = []
    for member in range(members):
        folder = out.with_name(f"{out.name}-{member}")
        if not (folder / POTENTIAL_FILE).is_file():
            seeds = {"data.seed": member, "seed": member}
            finetune(finetune_config(base, [data], overrides={**overrides, **seeds}), folder)
        found.append(load_potential(folder / POTENTIAL_FILE))
    return found


@main.command(name="explore")
@with_structure
@with_dynamics
@click.option("--base", default="organic-wb97x", show_default=True)
@click.option("--budget", default=60, show_default=True)
@click.option("--members", default=2, show_default=True)
@click.option("--tests", default=200, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A stopped run goes on there.")
@click.option("--defaults", is_flag=True, help="Rounds as of ponita-ff explore, not three of equal size.")
@click.option("--set", "training", multiple=True, metavar="NAME=VALUE", help="Setting of the fine-tuning.")
def compare(
    name: str,
    method: str,
    temperature: float,
    every: float,
    base: str,
    budget: int,
    members: int,
    tests: int,
    work: Path,
    defaults: bool,
    training: tuple[str, ...],
) -> None:
    """Compare active learning with as many random frames of dynamics, and with as many of sampling."""
    start = structure(name)
    overrides = parse_assignments(training)
    dynamics = (temperature, every)
    held_out = list(read_frames(sample_file(work / "tests.xyz", start, method, tests, *dynamics, 1)))
    began = time.perf_counter()
    settings = {"method": method, "budget": budget, "members": members, "temperature": temperature}
    settings |= {"simulation_time": SIMULATION_PS, "training": overrides}
    if not defaults:
        settings |= dict.fromkeys(("initial_labels", "labels_per_round"), max(4, budget // 3))
    found = explore([start], base, ExploreSettings.from_mapping(settings), work / "explored")
    taken = work / "seconds.txt"  # a later call, for the others, has nothing left to explore
    if not taken.is_file():
        write_text(taken, str(time.perf_counter() - began))
    drawn = sample_file(work / "random.xyz", start, method, found.labels, *dynamics, 2)
    geometries = labelled_geometries(start, method, found.labels, work)
    others = {
        name: committee(base, data, members, overrides, work / name)
        for name, data in (("random", drawn), ("sampled", geometries))
    }
    add(
        "explore",
        f"{name}, {method}, {budget} labels",
        {
            "base": base,
            "labels": found.labels,
            "rounds": len(found.rounds),
            "outcome": found.outcome,
            "seconds": float(taken.read_text(encoding="utf-8")),
            "tests": len(held_out),
            "temperature": temperature,
            "explored": errors_of([load_potential(path) for path in found.members], held_out),
            **{name: errors_of(found, held_out) for name, found in others.items()},
        },
    )


@main.command()
@with_structure
@click.option("--frames", "number", default=40, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def labels(name: str, method: str, number: int, work: Path) -> None:
    """Measure the time of labelling with one process and with two."""
    start, generator = structure(name), np.random.default_rng(0)
    structures = [start.copy() for _ in range(number)]
    for atoms in structures:
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
    seconds = {}
    for processes in (1, 2):
        out = work / f"labels-{processes}.xyz"
        for old in work.glob(f"labels-{processes}.*"):
            old.unlink()
        began = time.perf_counter()
        labelling = label_frames(structures, method, out, processes=processes)
        seconds[processes] = time.perf_counter() - began
        if labelling.failures:
            raise click.ClickException(
                f"{len(labelling.failures)} frames failed: {next(iter(labelling.failures.values()))}"
            )
    add("labels", f"{name}, {method}, {number} frames", {"one": seconds[1], "two": seconds[2]})


def report(results: dict[str, Any]) -> str:
    """Return the page."""
    explored = [
        [key, r["base"], str(r["labels"]), str(r["rounds"]), f"{r['seconds'] / 60:.0f}"]
        + [
            f"{r[kind][whose]:.1f}" if kind in r else ""
            for kind in ("explored", "random", "sampled")
            for whose in ("member", "committee")
        ]
        for key, r in results.get("explore", {}).items()
    ]
    labelled = [
        [key, f"{r['one']:.1f}", f"{r['two']:.1f}", f"{r['one'] / r['two']:.2f}"]
        for key, r in results.get("labels", {}).items()
    ]
    lines = [
        "# Active learning and labels",
        "",
        "*Written by `python benchmarks/active.py`; all numbers come from `active.json`.*",
        "",
        "## As many labels, chosen, of dynamics, and sampled",
        "",
        "Committees fine-tuned on frames that `ponita-ff explore` chose, and in the same way on frames at even "
        "distances of the method's own dynamics, and on frames of `ponita-ff sample`. Force MAE in meV/Å on frames of "
        "another run of dynamics.",
        "",
        *table(
            [
                "molecule",
                "from",
                "labels",
                "rounds",
                "minutes",
                "chosen: a member",
                "committee",
                "dynamics: a member",
                "committee",
                "sampled: a member",
                "committee",
            ],
            explored,
        ),
        "",
        "## Labelling with one process and with two",
        "",
        *table(["frames", "one (s)", "two (s)", "ratio"], labelled),
        "",
        measured_on(result for kind in results.values() for result in kind.values()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
