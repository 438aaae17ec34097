"""Measure a potential and write its model card: errors, rotations, frequencies, NVE, NVT, speed.

    python benchmarks/model_card.py potentials/ethanol-rmd17 --geometry CH3CH2OH

Every number in the card's README.md comes from ``card.json``, which this script writes beside it, and from the files of
the potential, its companions and their calibration. ``structure.xyz``, in the same folder, is the relaxed molecule that
the numbers belong to. ``about.md``, if it is there, says where the data come from and how to make the potential again;
else it is one of rMD17. Run it on a quiet machine; the dynamics take most of the time.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.collections import g2
from ase.io import read
from ase.io import write as write_structure
from ase.optimize import BFGS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pages import read_results
from tqdm import tqdm

from ponita_ff import PonitaCalculator
from ponita_ff.audit.dynamics import NveRun, energy_drift, run_nve, run_nvt, thermal_momenta
from ponita_ff.audit.normal_modes import frequencies, rigid_motions
from ponita_ff.audit.rotational_invariance import rotation_scan
from ponita_ff.audit.settings import AuditSettings
from ponita_ff.audit.target import AuditTarget
from ponita_ff.data import read_frames
from ponita_ff.files import write_json, write_text
from ponita_ff.network.orientations import random_rotations
from ponita_ff.potential.companions import CALIBRATION_FILE, companions_of
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.provenance import describe_hardware
from ponita_ff.structure.bonds import find_bonds
from ponita_ff.training.finetune import REPLAY_FILE
from ponita_ff.training.legacy import rename_metadata
from ponita_ff.uncertainty import NORMAL_SHARES, Calibration

logger = logging.getLogger(__name__)

FILE, STRUCTURE, ABOUT = "potential.safetensors", "structure.xyz", "about.md"
#: Molecules whose errors are listed, at most.
MAX_FORMULAS = 20
NUM_ROTATIONS = 200
#: Largest number of saddle points to leave downhill; part of the largest curvature below which curvature is zero.
MAX_SADDLES, CURVATURE_TOLERANCE = 4, 1e-8
PARTS = ("forces", "rotations", "nve", "nvt")

#: Names of the settings files of runs before the last one; that of the last one is ``config.yaml``.
STAGES = ("first", "second", "third")

#: Grid and number of averaged rotations of each row of the rotation table; None for the setting of the file.
ROTATION_SETTINGS: tuple[tuple[int | None, int | None], ...] = (
    (None, None),
    (None, 2),
    (None, 4),
    (None, 6),
    (12, None),
    (20, None),
    (32, None),
    (62, None),
)


def perturbed(atoms: Atoms, seed: int = 0) -> Atoms:
    """Return the geometry with Gaussian noise of 0.05 Å."""
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


def milliseconds(calculator: PonitaCalculator, atoms: Atoms, repeats: int = 60) -> float:
    """Return the median time of one evaluation of energy and forces through the calculator, ms."""
    atoms = atoms.copy()
    atoms.calc = calculator
    times = []
    for step in range(repeats):
        atoms.positions[0, 0] += 1e-4 * (-1) ** step
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    return float(1e3 * np.median(times[5:]))


def rotation_table(path: Path, atoms: Atoms) -> list[dict[str, Any]]:
    """Return spread of the energy, net force and torque under random rotations of one frame, for each setting."""
    rows, shipped = [], None
    own = len(load_potential(path).network.orientations)
    for num_ori, rotations in tqdm([each for each in ROTATION_SETTINGS if each[0] != own], desc="rotations"):
        grid: dict[str, Any] = {"num_ori": num_ori, "rotations": rotations}
        calculator = PonitaCalculator(path, device="cpu", dtype="float64", backend="native", **grid)
        frame = atoms.copy()
        frame.calc = calculator
        found = rotation_scan(frame, random_rotations(NUM_ROTATIONS, (2026,)))
        energies = 1e3 * found.energies[1:]
        timed = PonitaCalculator(path, device="cpu", **grid)
        force = calculator.get_property("forces", atoms)
        shipped = force if shipped is None else shipped
        rows.append(
            {
                "force_change_meV_per_A": float(1e3 * np.abs(force - shipped).mean()),
                "num_ori": len(calculator.potential.network.orientations),
                "rotations": len(calculator.potential.rotations),
                "shift_meV": float(np.mean(energies)),
                "std_meV": float(np.std(energies)),
                "peak_to_peak_meV": float(np.ptp(energies)),
                "max_net_force_meV_per_A": float(1e3 * found.net_forces.max()),
                "max_torque_meV": float(1e3 * found.torques.max()),
                "ms_per_evaluation": milliseconds(timed, atoms),
            }
        )
    for row in rows[::-1]:
        row["shift_meV"] -= rows[0]["shift_meV"]
    return rows


def nve(path: Path, atoms: Atoms, picoseconds: float, figure: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """Run NVE dynamics at 300 K; measure the drift of the total energy and the largest change of a bond.

    ``save`` is called with the figures so far every 10 ps, so that an interrupted run leaves a result.
    """
    atoms = atoms.copy()
    atoms.calc = PonitaCalculator(path, device="cpu")
    atoms.get_forces()
    # Twice the temperature: half of the kinetic energy becomes potential energy of the relaxed molecule.
    thermal_momenta(atoms, 600.0, np.random.default_rng(7))
    timestep, every = 0.5, 20
    began = time.perf_counter()

    def report(run: NveRun) -> dict[str, Any]:
        steps_per_second = 1000 * run.time[-1] / timestep / (time.perf_counter() - began)
        drift = energy_drift(run)
        energy = np.array(run.energy)
        plot_nve(np.array(run.time), energy - energy[0], np.array(run.temperature), figure)
        return {
            "picoseconds": run.time[-1],
            "timestep_fs": timestep,
            "mean_temperature_K": float(np.mean(run.temperature)),
            "drift_meV_per_atom_per_ns": drift.slope,
            "drift_standard_error": drift.standard_error,
            "rms_fluctuation_meV_per_atom": drift.fluctuation,
            "largest_bond_change_A": float(np.max(run.bond_change)),
            "steps_per_second": steps_per_second,
        }

    with tqdm(total=round(1000 * picoseconds), desc="NVE", unit="fs") as bar:

        def progress(run: NveRun) -> None:
            bar.update(round(1000 * run.time[-1]) - bar.n)
            if len(run.time) % round(10_000 / timestep / every) == 0:
                save(report(run))

        save(report(run_nve(atoms, timestep, picoseconds, find_bonds(atoms), every, progress)))


def nvt(path: Path, atoms: Atoms, picoseconds: float, temperature: float = 500.0) -> dict[str, Any]:
    """Run Langevin dynamics from the relaxed molecule, as in the audit, and return whether a bond broke."""
    settings = AuditSettings.make({"nvt": {"picoseconds": picoseconds}})
    run = run_nvt(AuditTarget(PonitaCalculator(path, device="cpu"), atoms, None, settings, progress=True), temperature)
    if not run.time:
        raise click.ClickException(f"the NVT run ended at once: {run.error}")
    return {
        "picoseconds": run.time[-1],
        "broken_at_ps": run.broken_at,
        "timestep_fs": settings.nvt.timestep,
        "friction_fs": settings.nvt.relaxation_time,
        "temperature_K": temperature,
        "mean_temperature_K": float(np.mean(run.temperature)),
        "largest_bond_change_A": float(np.max(run.bond_change)),
        "allowed_bond_change_A": settings.nvt.bond_change_limit,
    }


def starting_geometry(folder: Path, geometry: str | None) -> Atoms:
    """Return the molecule to relax: from ASE's collection, the first frame of a file, or that of the last card."""
    if geometry is None:
        geometry = str(folder / STRUCTURE)
    if geometry in g2.names:
        return molecule(geometry)
    if not Path(geometry).is_file():
        raise click.BadParameter(f"{geometry} is neither a molecule of ase.build nor a file", param_hint="--geometry")
    frames = read_frames(Path(geometry)) if geometry.endswith(".npz") else None
    atoms = frames[0].to_atoms() if frames is not None else read(geometry, index=0)
    assert isinstance(atoms, Atoms)
    return Atoms(atoms.numbers, atoms.positions)


def relax(atoms: Atoms) -> None:
    """Relax in place to a minimum; from a saddle point (of a methyl group's rotation), follow the imaginary mode."""
    for _ in range(MAX_SADDLES):
        BFGS(atoms, logfile=None).run(fmax=1e-3, steps=1000)
        weights = np.repeat(atoms.get_masses(), 3) ** -0.5
        rigid = rigid_motions(atoms)
        vibrations = np.eye(len(rigid)) - rigid @ rigid.T
        weighted = atoms.calc.get_hessian(atoms) * np.outer(weights, weights)
        curvatures, modes = np.linalg.eigh(vibrations @ weighted @ vibrations)
        if curvatures[0] > -CURVATURE_TOLERANCE * curvatures[-1]:
            return
        step = modes[:, 0] * weights
        atoms.positions += 0.1 * (step / np.abs(step).max()).reshape(-1, 3)
    raise click.ClickException(f"no minimum was found after {MAX_SADDLES} saddle points: give another --geometry")


def plot_nve(picoseconds: np.ndarray, energy: np.ndarray, temperature: np.ndarray, path: Path) -> None:
    """Plot total energy and temperature against time."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(picoseconds, energy, linewidth=0.6)
    upper.set_ylabel("total energy\n(meV/atom)")
    lower.plot(picoseconds, temperature, linewidth=0.3, color="tab:red")
    lower.set_ylabel("temperature (K)")
    lower.set_xlabel("time (ps)")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--geometry", help="Molecule to measure on: its name in ase.build or a file [FOLDER/structure.xyz].")
@click.option("--nve-ps", default=100.0, show_default=True, help="Length of the NVE run in ps.")
@click.option("--nvt-ps", default=50.0, show_default=True, help="Length of the NVT run at 500 K in ps.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Measure only these.")
def main(folder: Path, geometry: str | None, nve_ps: float, nvt_ps: float, only: tuple[str, ...]) -> None:
    """Measure the potential in FOLDER and write FOLDER/card.json."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path, card_path = folder / FILE, folder / "card.json"
    header = read_header(path)
    card = read_results(card_path)
    if card.get("weights_sha256") != header["weights_sha256"]:
        card = {"weights_sha256": header["weights_sha256"]}
    card["settings"] = [*(stage for stage in STAGES if (folder / f"{stage}.yaml").exists()), "config"]
    parts = only or PARTS

    def write(**figures: Any) -> None:
        card.update(figures)
        write_json(card_path, card)
        write_text(folder / "README.md", render(folder, header, card))

    relaxed = starting_geometry(folder, geometry)
    relaxed.calc = PonitaCalculator(path, device="cpu", dtype="float64")
    relax(relaxed)
    write_structure(folder / STRUCTURE, Atoms(relaxed.numbers, relaxed.positions), format="xyz", comment=folder.name)
    frame = perturbed(relaxed)
    card |= {"formula": relaxed.get_chemical_formula(), "replay": (folder / REPLAY_FILE).is_file()}
    if "forces" in parts:
        frame.calc = relaxed.calc
        difference = frame.get_forces() - calculate_numerical_forces(frame, eps=1e-4)
        card["forces_against_central_differences_eV_per_A"] = float(np.abs(difference).max())
        hessian = relaxed.calc.get_hessian(relaxed)
        card["frequencies_invcm"] = frequencies(hessian, relaxed.get_masses()).tolist()
    if "rotations" in parts:
        card["rotations"] = rotation_table(path, frame)
    if "nve" in parts:
        nve(path, relaxed, nve_ps, folder / "nve.png", lambda figures: write(nve=figures))
    if "nvt" in parts:
        card["nvt"] = nvt(path, relaxed, nvt_ps)
    # With --only, other parts keep their results, which may be from another machine: keep its name, too.
    before = card.get("hardware", "").split("; ") if only else []
    machines = filter(None, [*before, describe_hardware(torch.device("cpu"))])
    write(hardware="; ".join(dict.fromkeys(machines)))
    logger.info("wrote %s and %s", card_path, folder / "README.md")


def render(folder: Path, header: dict[str, Any], card: dict[str, Any]) -> str:
    """Return the card as Markdown; all numbers are from the potential's files and from ``card.json``."""
    name, about = folder.name, folder / ABOUT
    metadata, network = rename_metadata(header["metadata"]), header["network"]
    lines = [
        f"# {name}",
        "",
        f"*Written by `python benchmarks/model_card.py potentials/{name}{_lengths(card)}`; numbers from the "
        "potential's own file and from `card.json`.*",
        "",
        f"PONITA in its force-field form: {network['num_layers']} layers, {network['channels']} channels, "
        f"{network['num_ori']} orientations, l ≤ {network['l_max']}, cutoff {header['cutoff']} Å, {header['dtype']}"
        + (f"; ZBL repulsion within {header['zbl_cutoff']} Å." if header["zbl_cutoff"] else "."),
        "",
        *_render_data(name, metadata, network),
        *_render_errors(name, metadata),
        *(_render_rotations(card["rotations"]) if "rotations" in card else []),
        *_render_committee(folder),
        *_render_physics(card),
        "",
        f"Measured on {card.get('hardware', '-')}.",
        "",
        *([about.read_text(encoding="utf-8").rstrip()] if about.is_file() else _of_rmd17(name, metadata, card)),
    ]
    return "\n".join(lines) + "\n"


def _render_data(name: str, metadata: dict[str, Any], network: dict[str, Any]) -> list[str]:
    """Return the section on data and training."""
    data, training = metadata.get("data", {}), metadata.get("training", {})
    return [
        "## Data and training",
        "",
        "| | |",
        "|---|---|",
        f"| training frames | {data.get('train')} of `{data.get('file')}` (SHA-256 `{data.get('sha256')}`) |",
        *_render_extra_train(data),
        *_render_replay(data),
        f"| validation frames | {data.get('validation')} of the same files, split seed {data.get('split_seed')} |",
        f"| test frames | {data.get('test')} of `{data.get('test_file')}` (SHA-256 `{data.get('test_sha256')}`) |",
        f"| reference energies | {metadata.get('reference_energies_from')}{_caveat(metadata)} |",
        *_render_stages(name, metadata, network),
        *_render_average(metadata),
        f"| hardware | {training.get('hardware', '-')} |",
        "",
    ]


def _render_errors(name: str, metadata: dict[str, Any]) -> list[str]:
    """Return the section on errors."""
    lines = [
        "## Errors",
        "",
        "| frames | energy MAE (meV) | force MAE (meV/Å) | force RMSE (meV/Å) |",
        "|---|---|---|---|",
    ]
    first = metadata.get("started_from") or {}
    own = first.get("name") in (None, name)
    for stage, found in (("", metadata), (", before the last stage", first if own else {})):
        for part, errors in (found.get("errors") or {}).items():
            lines.append(
                f"| {part} ({errors['frames']}){stage} | {1e3 * errors['energy_mae']:.2f} "
                f"| {1e3 * errors['forces_mae']:.2f} | {1e3 * errors['forces_rmse']:.2f} |"
            )
    lines += _render_formulas(metadata)
    return [*lines, "", "![Parity on the test frames](parity.png)", "", "![Learning curve](learning_curve.png)", ""]


def _render_physics(card: dict[str, Any]) -> list[str]:
    """Return the section on forces, frequencies and dynamics."""
    lines = ["## Physics", "", f"Of {card.get('formula', 'the molecule')}, the structure in `{STRUCTURE}`:", ""]
    if "forces_against_central_differences_eV_per_A" in card:
        frequencies = card["frequencies_invcm"]
        lines += [
            "- Forces against central differences (float64): largest difference "
            f"{card['forces_against_central_differences_eV_per_A']:.1e} eV/Å.",
            "- Harmonic frequencies of the relaxed molecule (cm⁻¹; the six lowest belong to translation and rotation): "
            + ", ".join(f"{value:.0f}" for value in frequencies)
            + ".",
        ]
    if "nve" in card:
        run = card["nve"]
        lines += [
            f"- NVE, {run['timestep_fs']} fs, {run['picoseconds']:.0f} ps at a mean {run['mean_temperature_K']:.0f} K: "
            f"drift {run['drift_meV_per_atom_per_ns']:.2f} ± {run['drift_standard_error']:.2f} meV/atom/ns, "
            f"fluctuation {run['rms_fluctuation_meV_per_atom']:.3f} meV/atom, no bond moved by more than "
            f"{run['largest_bond_change_A']:.2f} Å; {run['steps_per_second']:.0f} steps/s.",
        ]
    if "nvt" in card:
        run = card["nvt"]
        outcome = (
            f"no bond moved by more than {run['largest_bond_change_A']:.2f} Å (allowed: "
            f"{run['allowed_bond_change_A']:g} Å, the criterion of arXiv:2210.07237)"
            if run["broken_at_ps"] is None
            else f"a bond moved by more than {run['allowed_bond_change_A']:g} Å after {run['broken_at_ps']:.2f} ps"
        )
        lines.append(
            f"- NVT (Langevin) at {run['temperature_K']:.0f} K, {run['timestep_fs']} fs, {run['picoseconds']:.0f} ps "
            f"from the relaxed molecule: {outcome}; mean {run['mean_temperature_K']:.0f} K."
        )
    lines += ["", "![Total energy and temperature in the NVE run](nve.png)"] if "nve" in card else []
    return lines


def _render_committee(folder: Path) -> list[str]:
    """Return the section on the companions and the calibration of their spread."""
    companions, calibration = companions_of(folder / FILE), folder / CALIBRATION_FILE
    if not companions or not calibration.is_file():
        return []
    found = Calibration.load(calibration)
    (one, two), (normal_one, normal_two) = found.forces_within, NORMAL_SHARES
    return [
        "## Uncertainty",
        "",
        f"`{folder.name}@committee` is the potential with {len(companions)} companions; `energy_std` and "
        "`forces_std` are then the spread of its members, scaled to the size of their errors on "
        f"{found.frames} frames that none was trained on (factors {found.energy:.2f} and {found.forces:.2f}). There "
        f"{one:.0%} and {two:.0%} of the force errors are within one and two standard deviations (normal distribution: "
        f"{normal_one:.0%} and {normal_two:.0%}), and the rank correlation of an atom's error and standard deviation "
        f"is {found.forces_rank_correlation:.2f}. Alone, the potential asks its companions about each new system, and "
        f"warns where the force on an atom is uncertain by more than {found.forces_limit:.2f} eV/Å: 99 of 100 of those "
        "frames are below.",
        "",
    ]


def _of_rmd17(name: str, metadata: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """Return the section on how to repeat the training, of a potential of rMD17."""
    files = metadata.get("data", {}).get("file", "").split(", ")
    molecules = [file.removeprefix("rmd17_").removesuffix("_train_01.npz") for file in files]
    # Several names in a line of their own: formatters of code blocks break longer lines.
    several = [f'molecules = "{" ".join(molecules)}"'] if molecules[1:] else []
    listed = "molecules.split()" if several else json.dumps(molecules)
    return [
        "## How to make it again",
        "",
        f"`ponita-ff download rmd17 {molecules[0]}` fetches the 100,000 frames, `ponita-ff download "
        "rmd17 index_train_01` (and `index_test_01`) the official split; cut the two files out, then train:",
        "",
        "```python",
        "import numpy as np",
        "",
        *several,
        f"for molecule in {listed}:",
        '    full = np.load(f"rmd17_{molecule}.npz")',
        '    for part in ("train", "test"):',
        '        rows = np.loadtxt(f"index_{part}_01.csv", dtype=int)',
        '        picked = {k: v if k == "nuclear_charges" else v[rows] for k, v in full.items()}',
        '        np.savez(f"rmd17_{molecule}_{part}_01.npz", **picked)',
        "```",
        "",
        "```",
        *_commands(name, metadata, card["settings"]),
        *_replay_command(name, card, molecules),
        f"python benchmarks/model_card.py potentials/{name}{_lengths(card)}",
        "```",
        "",
        "A schedule bound to the wall clock (`optimiser.time`) takes more steps on a faster machine or with a longer "
        "`--time`. This run ended with its budget.",
        "",
        "The data are rMD17 (Christensen and von Lilienfeld 2020, arXiv:2007.09593, CC0): PBE/def2-SVP.",
    ]


def _caveat(metadata: dict[str, Any]) -> str:
    """Return a remark on reference energies fitted to one molecule."""
    if any(errors.get("by_formula") for errors in metadata.get("errors", {}).values()):
        return ""
    return "; one molecule cannot tell its elements' energies apart, so only totals of this molecule mean anything"


def _render_extra_train(data: dict[str, Any]) -> list[str]:
    """Return the row of training frames that are not part of the split."""
    if "extra_train" not in data:
        return []
    digest = data["extra_train_sha256"]
    return [
        f"| of these from other files | {data['extra_train']} of `{data['extra_train_file']}` (SHA-256 `{digest}`) |"
    ]


def _render_replay(data: dict[str, Any]) -> list[str]:
    """Return the row of frames of earlier training that were trained on again."""
    if not data.get("replay"):
        return []
    digest = data["replay_sha256"]
    return [f"| beside them, replayed | {data['replay']} of `{data['replay_file']}` (SHA-256 `{digest}`) |"]


def _render_average(metadata: dict[str, Any]) -> list[str]:
    """Return the row of the potentials whose weights were averaged."""
    parts = [f"{one['share']:.0%} `{one['weights_sha256'][:12]}`" for one in metadata.get("average_of", [])]
    return [f"| average of weights | {', '.join(parts)} |"] if parts else []


def _render_formulas(metadata: dict[str, Any]) -> list[str]:
    """Return the errors of every molecule, if there are several."""
    errors = metadata.get("errors") or {}
    part = "test" if "test" in errors else "validation"
    found = errors.get(part, {}).get("by_formula")
    if not found or len(found) > MAX_FORMULAS:
        return []
    lines = ["", f"| {part} frames of | energy MAE (meV) | force MAE (meV/Å) |", "|---|---|---|"]
    for formula, each in found.items():
        name = f"{formula} ({each['frames']})"
        lines.append(f"| {name} | {1e3 * each['energy_mae']:.2f} | {1e3 * each['forces_mae']:.2f} |")
    return lines


def _stages(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all runs that led to the weights, in order of time."""
    stages, stage = [], metadata
    while stage:
        stages.insert(0, stage)
        stage = stage.get("started_from") or {}
    return stages


def _render_stages(name: str, metadata: dict[str, Any], network: dict[str, Any]) -> list[str]:
    """Return the row of the runs that led to the weights."""
    runs = []
    for stage in _stages(metadata):
        training, num_ori = stage.get("training") or {}, stage.get("num_ori", network["num_ori"])
        of = "" if stage.get("name") in (None, name) else f" (`{stage['name']}`)"
        hours = training.get("seconds", 0) / 3600
        runs.append(f"{training.get('steps')} steps in {hours:.2f} hours on {num_ori} orientations{of}")
    return [f"| training | {', then '.join(runs)} |"]


def _commands(name: str, metadata: dict[str, Any], settings: list[str]) -> list[str]:
    """Return the commands that repeat the training, one for each settings file (given without suffix)."""
    data = metadata.get("data", {})
    files = f"--set data.path={data.get('file')} --set data.test={data.get('test_file')}"
    if ", " in data.get("file", ""):
        files = ""  # the settings list them
    commands, start = [], ""
    for stage in _stages(metadata):
        if stage.get("name") not in (None, name):
            start = f"--set potential.start=potentials/{stage['name']}/{FILE}"
    for label in settings:
        out = "run" if label == settings[-1] else label
        words = ["ponita-ff train", f"potentials/{name}/{label}.yaml", files, start, f"--out {out}"]
        commands.append(" ".join(word for word in words if word))
        start = f"--set potential.start={out}/{FILE}"
    return commands


def _replay_command(name: str, card: dict[str, Any], molecules: list[str]) -> list[str]:
    """Return the command that writes the replay frames of a base."""
    if not card.get("replay"):
        return []
    structures = " ".join(f"potentials/{molecule}-rmd17/{STRUCTURE}" for molecule in molecules)
    return [f"python benchmarks/replay_frames.py potentials/{name} {structures}"]


def _lengths(card: dict[str, Any]) -> str:
    """Return the options for runs as long as those of the card."""
    return "".join(f" --{run}-ps {card[run]['picoseconds']:.0f}" for run in ("nve", "nvt") if run in card)


def _render_rotations(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## How much the energy depends on how the molecule is turned",
        "",
        f"One distorted frame of the molecule, {NUM_ROTATIONS} random rotations; `num_ori` and `rotations` are options "
        "of the calculator, the first row is the shipped setting. Energy shift and mean force change are against that "
        "row: a network knows the grid that it was trained on, so a setting with a large force change must not be used "
        "with it as it is, however small its spread.",
        "",
        "| num_ori | rotations | peak to peak (meV) | std (meV) | energy shift (meV) | force change (meV/Å) "
        "| max net force (meV/Å) | max torque (meV) | ms per evaluation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['num_ori']} | {row['rotations']} | {row['peak_to_peak_meV']:.2f} | {row['std_meV']:.2f} "
            f"| {row['shift_meV']:.2f} | {row['force_change_meV_per_A']:.2f} "
            f"| {row['max_net_force_meV_per_A']:.2g} | {row['max_torque_meV']:.2f} "
            f"| {row['ms_per_evaluation']:.1f} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
