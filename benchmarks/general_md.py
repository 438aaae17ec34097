"""Dynamics, minima and speed of potentials for molecules that they were never trained on.

    python benchmarks/general_md.py choose --molecules SMILES
    python benchmarks/general_md.py whole --contender organic-wb97x --processes 2
    python benchmarks/general_md.py minima --contender organic-wb97x --reference 'ani-2x{weights: FOLDER}' --work WORK
    python benchmarks/general_md.py water --contender organic-wb97x --work WORK
    python benchmarks/general_md.py speed --contender organic-wb97x --contender 'ani-2x{weights: FOLDER}'

``choose`` draws 40 molecules of PubChem (``spice_pubchem.smi``; elements, charges and exclusions as in
``organic_wb97x``), ten of each size, into ``organic_wb97x/dynamics.smi``. ``whole``: Langevin dynamics at 500 K of
each, as in the audit; a molecule is whole while no bond is 0.5 Å longer or shorter than in the relaxed molecule
(arXiv:2210.07237). Then NVE dynamics. ``minima``: relaxation of RDKit's conformers by both methods. ``water``: a
periodic box of 64 molecules at 300 K. ``speed``: energy and forces through ASE.

Results gather in ``results/general_md.json``; ``results/general_md.md`` is written from them. The same command goes on
after a stop: ``whole`` with the molecules that the results lack (of the same weights), the others from what WORK keeps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms, units
from ase.build import minimize_rotation_and_translation
from ase.calculators.calculator import BaseCalculator
from ase.geometry import find_mic
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pages import add_result, measured_on, read_results, table
from speed_systems import water_box
from tqdm import tqdm

from ponita_ff.audit.dynamics import energy_drift, run_nve, run_nvt, thermal_momenta
from ponita_ff.audit.settings import AuditSettings
from ponita_ff.audit.target import AuditTarget
from ponita_ff.files import is_file, write_json, write_text
from ponita_ff.potential.file import find_potential, read_header
from ponita_ff.potential.header import shipped_potentials
from ponita_ff.sample.geometry import conformers
from ponita_ff.sample.methods import method_for
from ponita_ff.structure.bonds import find_bonds

HERE = Path(__file__).resolve().parent
RESULTS, LISTED = HERE / "results" / "general_md", HERE / "organic_wb97x" / "dynamics.smi"

#: Smallest and largest number of heavy atoms of each group of molecules, and molecules in a group.
SIZES, EACH = ((9, 16), (17, 24), (25, 32), (33, 40)), 10

#: O–O distribution of water at 295 K by X-rays, first maximum, minimum and second maximum: distance (Å) and height
#: (Skinner et al. 2013, doi:10.1063/1.4790861).
MEASURED_WATER = ((2.80, 2.57), (3.45, 0.84), (4.5, 1.12))

#: Molecules of the timing.
TIMED = {
    "ethanol": "CCO",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "sildenafil": "CCCc1nn(C)c2c1nc([nH]c2=O)-c1cc(S(=O)(=O)N2CCN(C)CC2)ccc1OCC",
}

WATERS = 64


def calculator_of(contender: str) -> BaseCalculator:
    """Return a calculator of a potential or a method of ``ponita-ff label``."""
    return method_for(contender).calculator()


def label_of(contender: str) -> str:
    """Return the name in the results."""
    name = contender.partition("{")[0]
    return Path(name).stem if name.endswith(".safetensors") else name


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier run has kept in a file, or compute and keep it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def weights_of(contender: str) -> str:
    """Return the hash of a potential's weights, nothing for another method."""
    if is_file(Path(contender)) or contender in shipped_potentials():
        return str(read_header(find_potential(contender))["weights_sha256"])
    return ""


def listed() -> list[str]:
    """Return the chosen SMILES."""
    return LISTED.read_text(encoding="utf-8").split()


def embedded(smiles: str) -> Atoms:
    """Return RDKit's first conformer."""
    return conformers(smiles, 1, 0)[0]


@click.group()
def main() -> None:
    """Measure potentials in dynamics of molecules that they were never trained on."""


@main.command()
@click.option("--molecules", type=click.Path(path_type=Path, exists=True), required=True)
def choose(molecules: Path) -> None:
    """Write the list of molecules."""
    sys.path.insert(0, str(HERE / "organic_wb97x"))
    from molecules import is_test, parsed

    lines = (molecules / "spice_pubchem.smi").read_text(encoding="utf-8").split()
    order = np.random.default_rng(0).permutation(len(lines))
    groups: list[list[str]] = [[] for _ in SIZES]
    for index in order:
        mol = parsed(lines[index], SIZES[-1][1])
        if mol is None or is_test(mol):
            continue
        for group, (smallest, largest) in zip(groups, SIZES, strict=True):
            fits = smallest <= mol.GetNumHeavyAtoms() <= largest and len(group) < EACH
            if fits and conformers(lines[index], 1, 0):
                group.append(lines[index])
    write_text(LISTED, "\n".join(smiles for group in groups for smiles in group) + "\n")


@main.command()
@click.option("--contender", required=True)
@click.option("--ps", default=20.0, show_default=True)
@click.option("--nve-ps", default=2.0, show_default=True)
@click.option("--first", type=click.IntRange(min=1), help="Only so many of each size.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Molecules at a time.")
def whole(contender: str, ps: float, nve_ps: float, first: int | None, processes: int) -> None:
    """Langevin dynamics at 500 K, and NVE dynamics."""
    name, weights = f"{label_of(contender)}, {ps:g} ps", weights_of(contender)
    before = read_results(RESULTS.with_suffix(".json")).get("whole", {}).get(name, {})
    rows = dict(before["molecules"]) if before.get("weights") == weights else {}
    chosen = [smiles for index, smiles in enumerate(listed()) if index % EACH < (first or EACH)]
    left = [smiles for smiles in chosen if smiles not in rows]
    work = partial(_dynamics, contender, ps=ps, nve_ps=nve_ps)
    with (
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) if processes > 1 else nullcontext() as pool
    ):
        found = pool.map(work, left) if pool else map(work, left)  # stops at the first error, or Ctrl-C
        for smiles, row in zip(left, tqdm(found, total=len(left), desc="molecules"), strict=True):
            rows[smiles] = row
            add_result(RESULTS, report, "whole", name, {"weights": weights, "molecules": rows})


def _dynamics(contender: str, smiles: str, ps: float, nve_ps: float) -> dict[str, Any]:
    """Dynamics of one molecule."""
    settings = AuditSettings.make({"nvt": {"picoseconds": ps}})
    target = AuditTarget(calculator_of(contender), embedded(smiles), None, settings)
    run = run_nvt(target, 500.0)
    atoms = target.attach(target.relaxed.atoms)
    thermal_momenta(atoms, 600.0, np.random.default_rng(0))
    nve = run_nve(atoms, 0.5, nve_ps, find_bonds(atoms), 20)
    drift = energy_drift(nve)
    return {
        "atoms": len(atoms),
        "relaxed": target.relaxed.converged,
        "broken_at_ps": run.broken_at,
        "largest_bond_change": max(run.bond_change, default=None),
        "mean_temperature": float(np.mean(run.temperature)) if run.temperature else None,
        "drift_meV_per_atom_per_ns": drift.slope,
        "drift_error": drift.standard_error,
        "nve_fluctuation_meV_per_atom": drift.fluctuation,
    }


@main.command()
@click.option("--contender", required=True)
@click.option("--reference", required=True)
@click.option("--fmax", default=0.01, show_default=True, help="eV/Å.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def minima(contender: str, reference: str, fmax: float, steps: int, work: Path) -> None:
    """Relaxation from RDKit's conformers, beside that by a reference."""
    both = {name: calculator_of(name) for name in (contender, reference)}

    def relax(name: str, start: Atoms) -> dict[str, Any]:
        atoms = start.copy()
        atoms.calc = both[name]
        with BFGS(atoms, logfile=None) as optimiser:
            converged = bool(optimiser.run(fmax=fmax, steps=steps))
        return {"converged": converged, "steps": optimiser.nsteps, "positions": atoms.positions.tolist()}

    rows = {}
    for index, smiles in enumerate(tqdm(listed(), desc="molecules")):
        start, found = embedded(smiles), {}
        for name in both:
            path = work / f"minima-{label_of(name)}" / f"{index:02d}.json"
            found[name] = kept(path, lambda name=name, start=start: relax(name, start))
        ends = [Atoms(start.numbers, found[name]["positions"]) for name in both]
        minimize_rotation_and_translation(ends[1], ends[0])
        rows[smiles] = {
            "atoms": len(start),
            "converged": found[contender]["converged"],
            "steps": found[contender]["steps"],
            "reference_converged": found[reference]["converged"],
            "rmsd": float(np.sqrt(((ends[0].positions - ends[1].positions) ** 2).sum(1).mean())),
        }
    add_result(RESULTS, report, "minima", f"{label_of(contender)} and {label_of(reference)}", {"molecules": rows})


@main.command()
@click.option("--contender", required=True)
@click.option("--ps", default=20.0, show_default=True, help="After a quarter of it to come to equilibrium.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
def water(contender: str, ps: float, work: Path) -> None:
    """Run a box of water at 300 K; its O–O distribution."""
    name = label_of(contender)
    path = work / f"water-{name}.traj"
    atoms = _water_dynamics(contender, 1.25 * ps, path)
    frames = [frame for frame in read(path, ":") if frame.info["ps"] > 0.25 * ps]
    distances, values = oxygen_distribution(frames)
    values_of = {"ps": ps, "atoms": len(atoms), "whole": all(map(molecules_whole, frames))}
    values_of |= {"distance": distances.round(3).tolist(), "distribution": values.round(4).tolist()}
    results = add_result(RESULTS, report, "water", name, values_of)
    plot_water(results["water"])


def _water_dynamics(contender: str, ps: float, path: Path) -> Atoms:
    """Langevin dynamics with 0.5 fs, a frame every 50 fs, from where an earlier run ended."""
    done = read(path, ":") if path.is_file() else []
    atoms = done[-1] if done else water_box(3 * WATERS)
    atoms.calc = calculator_of(contender)
    if not done:
        with BFGS(atoms, logfile=None) as optimiser:
            optimiser.run(fmax=0.5, steps=100)
        thermal_momenta(atoms, 300.0, np.random.default_rng(1))
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=300.0,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(len(done)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with Trajectory(path, "a" if done else "w") as trajectory:
        for frame in tqdm(range(len(done), round(20 * ps)), desc="water", unit="50 fs"):
            dynamics.run(100)
            atoms.info["ps"] = (frame + 1) / 20
            trajectory.write(atoms)
    return atoms


def molecules_whole(box: Atoms) -> bool:
    """Tell whether the first atom of each three is within 1.5 Å of the two others."""
    places = box.positions.reshape(-1, 3, 3)
    bonds = (places[:, 1:] - places[:, :1]).reshape(-1, 3)
    return bool(find_mic(bonds, box.cell, box.pbc)[1].max() < 1.5)


def oxygen_distribution(frames: Iterable[Atoms], width: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return distances (Å) and the O–O pair distribution there, up to half the cell."""
    counts, expected, edges = 0.0, 0.0, None
    for atoms in frames:
        side = float(atoms.cell.lengths().min())
        edges = np.arange(0.0, side / 2, width) if edges is None else edges
        oxygen = atoms.positions[atoms.numbers == 8]
        first, second = np.triu_indices(len(oxygen), 1)
        lengths = find_mic(oxygen[second] - oxygen[first], atoms.cell, atoms.pbc)[1]
        counts = counts + np.histogram(lengths, edges)[0]
        expected = expected + len(first) / atoms.get_volume() * 4 / 3 * np.pi * np.diff(edges**3)
    if edges is None:
        raise click.ClickException("there are no frames after equilibration: give a longer --ps")
    return (edges[1:] + edges[:-1]) / 2, counts / expected


def plot_water(rows: dict[str, Any]) -> None:
    """Draw the distributions, with what is measured."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, row in rows.items():
        axes.plot(row["distance"], row["distribution"], label=name)
    axes.plot(*zip(*MEASURED_WATER, strict=True), "k.", label="X-rays, 295 K: maxima and minimum")
    axes.set(xlabel="O–O distance (Å)", ylabel="pair distribution", xlim=(2, 6.2))
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(RESULTS.with_name("general_md_water.png"), dpi=150)


@main.command()
@click.option("--contender", "contenders", multiple=True, required=True)
@click.option("--rounds", default=5, show_default=True)
def speed(contenders: tuple[str, ...], rounds: int) -> None:
    """Time energy and forces through ASE, contenders in turns."""
    systems = {name: embedded(smiles) for name, smiles in TIMED.items()}
    calculators = {label_of(contender): calculator_of(contender) for contender in contenders}
    times: dict[str, dict[str, list[float]]] = {name: {label: [] for label in calculators} for name in systems}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, atoms in systems.items():
            for label, calculator in calculators.items():
                times[name][label].append(_milliseconds(calculator, atoms.copy()))
    for label in calculators:
        values = {name: {"atoms": len(systems[name]), "ms": float(np.median(times[name][label]))} for name in systems}
        add_result(RESULTS, report, "speed", label, values)


def _milliseconds(calculator: BaseCalculator, atoms: Atoms, steps: int = 12) -> float:
    """Return the median time of energy and forces of a molecule that moves a little each time."""
    atoms.calc = calculator
    generator, found = np.random.default_rng(0), []
    for _ in range(steps):
        atoms.positions += 0.002 * generator.normal(size=atoms.positions.shape)
        began = time.perf_counter()
        atoms.get_forces()
        found.append(1e3 * (time.perf_counter() - began))
    return float(np.median(found[2:]))


def report(results: dict[str, Any]) -> str:
    """Write the page."""
    pages = {"whole": _whole_page, "minima": _minima_page, "water": _water_page, "speed": _speed_page}
    return "\n".join(line for kind, page in pages.items() if kind in results for line in page(results[kind]))


def _whole_page(rows: dict[str, Any]) -> list[str]:
    head = ["", "molecules", "atoms", "whole to the end", "first broken (ps)", "largest bond change (Å)"]
    head += ["NVE drift, mean size (meV/atom/ns)"]
    body = []
    for name, row in rows.items():
        found = list(row["molecules"].values())
        broken = [each["broken_at_ps"] for each in found if each["broken_at_ps"] is not None]
        sizes = [each["atoms"] for each in found]
        changes = [each["largest_bond_change"] for each in found if each["broken_at_ps"] is None]
        drift = float(np.mean([abs(each["drift_meV_per_atom_per_ns"]) for each in found]))
        cells = [f"{min(sizes)}–{max(sizes)}", f"{len(found) - len(broken)}", f"{min(broken):.2f}" if broken else ""]
        body.append([name, str(len(found)), *cells, f"{max(changes):.2f}" if changes else "", f"{drift:.1f}"])
    return [
        "# Dynamics at 500 K of molecules never seen",
        "",
        "Langevin dynamics, 0.5 fs, from the relaxed molecule; whole: no bond is 0.5 Å longer or shorter than there.",
        "Molecules: `organic_wb97x/dynamics.smi`. `python benchmarks/general_md.py whole`.",
        "",
        *table(head, body),
        "",
        measured_on(rows.values()),
        "",
    ]


def _minima_page(rows: dict[str, Any]) -> list[str]:
    body = []
    for name, row in rows.items():
        found = list(row["molecules"].values())
        both = [each["rmsd"] for each in found if each["converged"] and each["reference_converged"]]
        converged = sum(each["converged"] for each in found)
        cells = [str(len(found)), str(converged), f"{np.median([each['steps'] for each in found]):.0f}"]
        body.append([name, *cells, f"{np.median(both):.3f}", f"{max(both):.2f}"])
    head = ["", "molecules", "converged", "steps, median", "RMSD to the reference's minimum, median (Å)", "largest"]
    return [
        "# Relaxation from RDKit's conformers",
        "",
        "BFGS; RMSD over all atoms after the best superposition. `python benchmarks/general_md.py minima`.",
        "",
        *table(head, body),
        "",
        measured_on(rows.values()),
        "",
    ]


def _water_page(rows: dict[str, Any]) -> list[str]:
    body = []
    for name, row in rows.items():
        distance, values = np.array(row["distance"]), np.array(row["distribution"])
        first = int(values.argmax())
        lowest = first + int(values[first : first + 30].argmin())
        second = lowest + int(values[lowest:].argmax())
        places = [f"{distance[k]:.2f}: {values[k]:.2f}" for k in (first, lowest, second)]
        body.append([name, f"{row['ps']:g}", "yes" if row["whole"] else "no", *places])
    body.append(["X-rays, 295 K", "", "", *(f"{r:.2f}: {g:.2f}" for r, g in MEASURED_WATER)])
    return [
        "# A box of 64 water molecules at 300 K",
        "",
        "At 0.997 g/cm³; O–O pair distribution: distance (Å) and height of the first maximum, the minimum behind it",
        "and the second maximum. X-rays: Skinner et al. 2013, doi:10.1063/1.4790861.",
        "`python benchmarks/general_md.py water`.",
        "",
        "![O–O distribution](general_md_water.png)",
        "",
        *table(["", "ps", "whole", "first maximum", "minimum", "second maximum"], body),
        "",
        measured_on(rows.values()),
        "",
    ]


def _speed_page(rows: dict[str, Any]) -> list[str]:
    systems = [name for name in TIMED if all(name in row for row in rows.values())]
    atoms = next(iter(rows.values()))
    body = [[label, *(f"{row[name]['ms']:.1f}" for name in systems)] for label, row in rows.items()]
    return [
        "# Time of energy and forces through ASE",
        "",
        "Milliseconds, median of rounds in which contenders take turns. `python benchmarks/general_md.py speed`.",
        "",
        *table(["", *(f"{name}, {atoms[name]['atoms']} atoms" for name in systems)], body),
        "",
        measured_on(rows.values()),
        "",
    ]


if __name__ == "__main__":
    main()
