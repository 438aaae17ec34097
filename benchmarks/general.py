"""Potentials on molecules that they were never trained on, beside cheap methods.

    python benchmarks/general.py zero-shot --data FOLDER --work WORK --contender organic-wb97x --contender gfn2-xtb \\
        --contender 'ani-2x{weights: FOLDER}'

    python benchmarks/general.py few-frames --base organic-wb97x --train rmd17_ethanol_train_01.npz --frames 50 \\
        --test rmd17_ethanol_test_01.npz --teacher gfn2-xtb --name ethanol --work WORK

``zero-shot``: FOLDER holds ``3bpa/train_300K.xyz`` and ``s66x8/s66x8_wb97x_631gd.xyz`` (ωB97X/6-31G(d)) and
``qm22/n_methylacetamide.xyz`` (B3LYP; another level of theory, so that only the shape of the surface counts), all in eV
and Å. ``--holdout NAME=FILE`` adds frames of scaffolds that were held out, in the format of
``benchmarks/organic_wb97x`` (.npz) or extended XYZ; energies of one ``smiles`` are compared. A contender is a potential
of this package, by name or file (several joined by commas are a committee), or a method of ``ponita-ff label``. WORK
keeps what the methods calculated.

``few-frames``: fine-tunes the base on frames drawn at random, a tenth of them to validate, and measures errors on test
frames. With a teacher it learns cheap labels of frames around those first; no other frame of the file is used.
Where the same file is tested on, the frames that were drawn are left out. ``--taught FILE`` takes what an earlier run's
teacher taught, ``WORK/…/run/teacher/training/potential.safetensors``.

Results gather in ``results/general.json``; ``results/general.md`` is written from them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms
from ase.io import read, write
from pages import add_result, measured_on, table

from ponita_ff.cli import main as ponita_ff
from ponita_ff.data import Units, read_frames
from ponita_ff.files import is_file, write_atomically
from ponita_ff.labels import label_frames
from ponita_ff.potential.file import find_potential, load_potential, read_header
from ponita_ff.potential.header import shipped_potentials
from ponita_ff.potential.potential import Potential
from ponita_ff.teaching import TEACHER_FOLDER
from ponita_ff.training.config import POTENTIAL_FILE

sys.path.insert(0, str(Path(__file__).resolve().parent / "organic_wb97x"))

RESULTS = Path(__file__).resolve().parent / "results"

#: Force MAE of MACE from random weights on 50 frames of rMD17, meV/Å (arXiv:2206.07697, table 2).
MACE_50 = {
    "aspirin": 43.9,
    "azobenzene": 17.7,
    "benzene": 2.7,
    "ethanol": 32.6,
    "malonaldehyde": 43.3,
    "naphthalene": 9.2,
    "paracetamol": 31.5,
    "salicylic": 28.4,
    "toluene": 12.1,
    "uracil": 25.9,
}

#: What the page calls sets of frames.
TITLES = {
    "3bpa": "3BPA at 300 K",
    "s66x8": "S66x8",
    "n-methylacetamide": "N-methylacetamide",
    "scaffolds": "other scaffolds, by ANI-2x",
    "scaffolds-dft": "other scaffolds, by PySCF",
    "conformers": "conformers, by PySCF",
}

#: Places along a curve of S66x8: at the equilibrium distance and at twice this distance.
NEAR, FAR = 2, 7


@dataclass(frozen=True)
class Frames:
    """Labelled frames to test on.

    Attributes:
        name: Of the set.
        atoms: Elements and positions.
        energies: eV, shape (frames,).
        forces: eV/Å, shape (n, 3) each.
        keys: What a frame is; frames of one key are compared with each other where energies are.
    """

    name: str
    atoms: Sequence[Atoms]
    energies: np.ndarray
    forces: Sequence[np.ndarray]
    keys: Sequence[str]


def from_ase(name: str, path: Path, every: int = 1) -> Frames:
    """Read labelled frames of extended XYZ; periodicity and cell are left out, which stand for nothing there."""
    found = read(path, f"::{every}")
    bare = [Atoms(atoms.numbers, atoms.positions) for atoms in found]
    energies = np.array([atoms.get_potential_energy() for atoms in found])
    keys = [str(atoms.info.get("complex") or atoms.info.get("smiles", "")) for atoms in found]
    return Frames(name, bare, energies, [atoms.get_forces() for atoms in found], keys)


def from_npz(name: str, path: Path) -> Frames:
    """Read frames in the format of ``benchmarks/organic_wb97x``."""
    from dataset import frames_of

    frames = list(frames_of(path, lambda smiles: True, np.inf))
    bare = [Atoms(frame.numbers, frame.positions) for frame in frames]
    with np.load(path) as file:
        keys = [str(smiles) for smiles in file["smiles"]]
    return Frames(name, bare, np.array([frame.energy for frame in frames]), [frame.forces for frame in frames], keys)


def predicted(contender: str, frames: Frames, work: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (eV) and forces (eV/Å) of a contender; those of a method are kept in a journal."""
    members = [contender] if is_file(Path(contender)) else contender.split(",")
    if all(is_file(Path(member)) or member in shipped_potentials() for member in members):
        predictions = [load_potential(member).evaluate(list(frames.atoms)) for member in members]
        energies = np.mean([prediction.energies for prediction in predictions], axis=0)
        each = zip(*(prediction.forces for prediction in predictions), strict=True)
        return energies, [np.mean(forces, axis=0) for forces in each]
    folder = work / "".join(letter if letter.isalnum() else "-" for letter in contender.partition("{")[0])
    result = label_frames(list(frames.atoms), contender, folder / f"{frames.name}.xyz", progress=True)
    if result.failures or result.path is None:
        raise click.ClickException(f"{contender} failed on {len(result.failures)} frames of {frames.name}")
    labelled = read(result.path, ":")
    return np.array([a.get_potential_energy() for a in labelled]), [a.get_forces() for a in labelled]


def force_error(forces: Sequence[np.ndarray], frames: Frames) -> float:
    """Mean absolute error of force components, meV/Å."""
    errors = [np.abs(one - other).ravel() for one, other in zip(forces, frames.forces, strict=True)]
    return float(1e3 * np.concatenate(errors).mean())


def relative_error(energies: np.ndarray, frames: Frames) -> float:
    """Mean absolute error of energies after the best shift for each key, meV."""
    error = energies - frames.energies
    keys = np.array(frames.keys)
    for key in set(frames.keys):
        error[keys == key] -= np.median(error[keys == key])
    return float(1e3 * np.abs(error).mean())


def interaction_error(energies: np.ndarray, frames: Frames, distances: Sequence[int]) -> float:
    """Mean absolute error of E(1.0) − E(2.0) over the dimers, meV."""
    place = {(key, distance): row for row, (key, distance) in enumerate(zip(frames.keys, distances, strict=True))}
    near = [place[key, NEAR] for key in dict.fromkeys(frames.keys)]
    far = [place[key, FAR] for key in dict.fromkeys(frames.keys)]
    error = (energies - frames.energies)[near] - (energies - frames.energies)[far]
    return float(1e3 * np.abs(error).mean())


@click.group()
def main() -> None:
    """Measure potentials on molecules that they were never trained on."""


@main.command("zero-shot")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--contender", "contenders", multiple=True, required=True)
@click.option("--holdout", "holdouts", multiple=True, metavar="NAME=FILE")
def zero_shot(data: Path, work: Path, contenders: tuple[str, ...], holdouts: tuple[str, ...]) -> None:
    """Measure errors without any training on the molecules."""
    s66 = data / "s66x8" / "s66x8_wb97x_631gd.xyz"
    distances = [int(atoms.info["distance"]) for atoms in read(s66, ":")]
    sets = [
        from_ase("3bpa", data / "3bpa" / "train_300K.xyz"),
        from_ase("s66x8", s66),
        from_ase("n-methylacetamide", data / "qm22" / "n_methylacetamide.xyz", every=5),
    ]
    for name, _, file in (text.partition("=") for text in holdouts):
        sets.append(from_npz(name, Path(file)) if file.endswith(".npz") else from_ase(name, Path(file)))
    for contender in contenders:
        values: dict[str, Any] = {}
        for frames in sets:
            energies, forces = predicted(contender, frames, work)
            values[frames.name] = {
                "frames": len(frames.atoms),
                "forces": force_error(forces, frames),
                "energies": relative_error(energies, frames),
            }
            if frames.name == "s66x8":
                values[frames.name]["interaction"] = interaction_error(energies, frames, distances)
        add_result(RESULTS / "general", report, "zero-shot", contender.partition("{")[0], values)


@main.command("few-frames")
@click.option("--name", required=True, help="Of the molecule in the results.")
@click.option("--base", default="organic-wb97x", show_default=True)
@click.option("--train", "file", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--frames", "number", type=click.IntRange(min=4), required=True)
@click.option("--test", "tests", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--teacher", help="Method whose labels are learned first.")
@click.option("--teacher-frames", type=click.IntRange(min=20), default=2000, show_default=True)
@click.option("--taught", type=click.Path(path_type=Path, exists=True), help="What an earlier run's teacher taught.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the choice of frames.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Setting; part of the result's name.")
def few_frames(
    name: str,
    base: str,
    file: Path,
    number: int,
    tests: tuple[Path, ...],
    teacher: str | None,
    teacher_frames: int,
    taught: Path | None,
    processes: int,
    seed: int,
    work: Path,
    changes: tuple[str, ...],
) -> None:
    """Fine-tune a base on a few frames, with or without a teacher."""
    if taught and teacher is None:
        raise click.UsageError("--taught needs --teacher, the name of who taught it")
    key = f"{name}, {number} frames, {Path(base).stem}" + (f", {teacher.partition('{')[0]}" if teacher else "")
    key += " before" if taught else ""
    key += "".join(f", {change}" for change in changes) + (f", seed {seed}" if seed else "")
    folder = work / "".join(letter if letter.isalnum() else "-" for letter in key)
    folder.mkdir(parents=True, exist_ok=True)
    every = read_frames(file, units=_units(file))
    drawn = np.random.default_rng(seed).choice(len(every), number, replace=False)
    few = folder / "few.xyz"
    write_atomically(few, lambda path: write(path, [every[int(k)].to_atoms() for k in drawn], format="extxyz"))
    command = ["finetune", str(taught or base), str(few), "--out", str(folder / "run"), "--no-replay"]
    if teacher is not None and taught is None:
        command += ["--teacher", teacher, "--teacher-frames", str(teacher_frames), "--processes", str(processes)]
    ponita_ff(args=[*command, *(part for change in changes for part in ("--set", change))], standalone_mode=False)
    values: dict[str, Any] = {"seconds": 0.0, "tests": {}}
    values["weights"] = read_header(find_potential(base))["weights_sha256"]
    stages = {"base": base, "taught": taught or folder / "run" / TEACHER_FOLDER / "training" / POTENTIAL_FILE}
    for stage, path in (stages | {"after": folder / "run" / POTENTIAL_FILE}).items():
        if stage == "base" or Path(path).is_file():
            potential = load_potential(path)
            values["tests"][stage] = {
                test.stem: _errors(potential, test, set(drawn.tolist()) if test == file else set()) for test in tests
            }
            if stage != "base":
                values["seconds"] += potential.metadata.get("training", {}).get("seconds", 0.0)
    add_result(RESULTS / "general", report, "few-frames", key, values)


def _units(path: Path) -> Units | None:
    """Extended XYZ without units is in eV and Å here."""
    return Units("eV", "Angstrom") if path.suffix == ".xyz" else None


def _errors(potential: Potential, path: Path, without: set[int]) -> dict[str, float]:
    """Errors on test frames, meV/Å and meV; energies after the best shift, since levels of theory differ."""
    frames = [frame for index, frame in enumerate(read_frames(path, units=_units(path))) if index not in without]
    predictions = potential.evaluate([Atoms(frame.numbers, frame.positions) for frame in frames])
    assert predictions.forces is not None
    errors = [np.abs(one - frame.forces).ravel() for one, frame in zip(predictions.forces, frames, strict=True)]
    energy = predictions.energies - np.array([frame.energy for frame in frames])
    return {
        "forces": float(1e3 * np.concatenate(errors).mean()),
        "energies": float(1e3 * np.abs(energy - np.median(energy)).mean()),
    }


def report(results: dict[str, Any]) -> str:
    """Write the page."""
    return "\n".join([*_zero_shot_page(results.get("zero-shot", {})), *_few_frames_page(results.get("few-frames", {}))])


def _few_frames_page(rows: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    stages = ["base", "after the teacher", "after the labels"]
    head = ["", *stages, "energies after", "MACE, published", "minutes", "of base"]
    body = []
    for key, row in sorted(rows.items(), key=_place):
        name, frames, base, *others = key.split(", ")
        mace = f"{MACE_50[name]:.1f}" if name in MACE_50 and frames == "50 frames" else ""
        of_base = " ".join([base, row.get("weights", "")[:8]])
        for test in row["tests"]["after"]:
            errors = [row["tests"].get(stage, {}).get(test) for stage in ("base", "taught", "after")]
            cells = [f"{error['forces']:.1f}" if error else "" for error in errors]
            cells.append(f"{row['tests']['after'][test]['energies']:.1f}")
            on = [f"on {test}"] if len(row["tests"]["after"]) > 1 else []
            body.append([", ".join([name, frames, *others, *on]), *cells, mace, f"{row['seconds'] / 60:.0f}", of_base])
    return [
        "# A few labels",
        "",
        "Mean absolute errors of force components in meV/Å, of energies after the best shift in meV; of rMD17 on the",
        "official test frames. After the number of labelled frames: the teacher whose labels were learned first,",
        "2,000 around these frames, or (before) what an earlier run was taught around 50 frames of the molecule. MACE:",
        "from random weights, 50 frames (arXiv:2206.07697, table 2). `python benchmarks/general.py few-frames`. Rows",
        "compare only where the weights of the base are the same. Settings that are not the present defaults are",
        "named; learning rate: of the last stage. Minutes of training by the clock; other work ran beside, or halted",
        "it.",
        "",
        *table(head, body),
        "",
        measured_on(rows.values()),
        "",
    ]


def _place(item: tuple[str, Any]) -> tuple[str, int, str]:
    """Molecules together, few frames first."""
    name, frames, *others = item[0].split(", ")
    return name, int(frames.split()[0]), ", ".join(others)


def _zero_shot_page(rows: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    frames = {name: values["frames"] for row in rows.values() for name, values in row.items() if name != "hardware"}
    body = []
    for name, number in frames.items():
        for kind, title in (("forces", "forces"), ("energies", "energies"), ("interaction", "E(1) − E(2)")):
            values = [row.get(name, {}).get(kind) for row in rows.values()]
            if any(value is not None for value in values):
                cells = ["" if value is None else f"{value:.1f}" for value in values]
                body.append([f"{TITLES.get(name, name)}, {number} frames: {title}", *cells])
    return [
        "# General potentials, without training on the molecules",
        "",
        "Mean absolute errors: force components in meV/Å; energies in meV, relative to each other for each molecule or",
        "dimer; interaction energies of S66x8, from the equilibrium distance to twice this, in meV. 3BPA and S66x8 are",
        "at ωB97X/6-31G(d), N-methylacetamide at B3LYP. Scaffolds were held out of all data: many frames with labels",
        "of ANI-2x, some of PySCF; conformers: relaxed by GFN2-xTB, five of each molecule, labels of PySCF (both by",
        "`organic_wb97x/holdout.py`). `python benchmarks/general.py zero-shot`.",
        "",
        *table(["", *rows], body),
        "",
        measured_on(rows.values()),
        "",
    ]


if __name__ == "__main__":
    main()
