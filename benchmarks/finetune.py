"""Compare fine-tuning with training from scratch: a base without a molecule, and a few frames of that molecule.

    python benchmarks/finetune.py base --data FOLDER --work WORK --without ethanol --minutes 30
    python benchmarks/finetune.py tune --data FOLDER --work WORK --molecule ethanol --frames 50
    python benchmarks/finetune.py tune --data FOLDER --work WORK --molecule ethanol --frames 50 --no-replay
    python benchmarks/finetune.py scratch --data FOLDER --work WORK --molecule ethanol --frames 50
    python benchmarks/finetune.py other --data FOLDER --work WORK --train acac/train_300K.xyz --frames 50 \\
        --test acac/test_MD_300K.xyz --test acac/train_600K.xyz

FOLDER holds the files that ``ponita-ff download rmd17 MOLECULE --out FOLDER`` writes; WORK keeps the bases. ``tune``
and ``scratch`` take the same frames of the molecule's 1,000 official training frames, a tenth of them to validate, and
are measured on the 1,000 official test frames. ``tune`` also measures the base's nine molecules before and after, on
their test frames. ``other`` takes a shipped base to another molecule and level of theory, in files of eV and Å.
``base`` and ``tune`` take a base with ``--extra`` frames, e.g. the methanol_train.xyz that
``potentials/organic-rmd17/config.yaml`` describes. Results gather in ``results/finetune.json``; ``results/finetune.md``
and ``results/finetune.png`` are written from them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.optimize import BFGS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pages import add_result, table

from ponita_ff import PonitaCalculator
from ponita_ff.audit.dynamics import run_nvt
from ponita_ff.audit.settings import AuditSettings
from ponita_ff.audit.target import AuditTarget
from ponita_ff.data import Units, read_frames
from ponita_ff.files import write_atomically
from ponita_ff.potential.file import find_potential, load_potential, read_header
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.finetune import finetune, finetune_config
from ponita_ff.training.plots import plain_numbers
from ponita_ff.training.replay import with_reference_energies_of
from ponita_ff.training.run import train

RESULTS = Path(__file__).resolve().parent / "results"

MOLECULES = (
    *("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde"),
    *("naphthalene", "paracetamol", "salicylic", "toluene", "uracil"),
)

#: Force MAE in meV/Å of training from scratch on 50 frames: MACE (arXiv:2206.07697, table 2), NequIP as given there.
PUBLISHED_50 = {
    "ethanol": {"MACE": 32.6, "NequIP": 40.2},
    "aspirin": {"MACE": 43.9, "NequIP": 52.0},
    "naphthalene": {"MACE": 9.2, "NequIP": 10.0},
    "uracil": {"MACE": 25.9, "NequIP": 40.1},
}

#: Numbers of frames that learning curves have.
CURVE = (10, 50, 200, 950)

#: Temperature of the dynamics in which bonds must not break, K.
TEMPERATURE = 500.0

#: Units of the files for ``other``, which do not contain them.
UNITS = Units("eV", "Angstrom")

#: Every tenth test frame of the base's molecules shows what was forgotten.
BASE_FRAME_STEP = 10


def data_file(data: Path, molecule: str, part: str) -> Path:
    """Return the file with the official frames of a molecule.

    Raises:
        click.BadParameter: If there is no such file.
    """
    path = data / f"rmd17_{molecule}_{part}_01.npz"
    if not path.is_file():
        raise click.BadParameter(f"there is no {path}", param_hint="--data")
    return path


def base_name(molecule: str, extra: Path | None) -> str:
    """Return the name of a base that was trained without a molecule, and of its folder."""
    return f"base-without-{molecule}" + (f"-with-{extra.stem}" if extra else "")


def add(kind: str, key: str, values: dict[str, Any]) -> None:
    """Add a result to the JSON file, and write page and plot anew."""
    results = add_result(RESULTS / "finetune", report, kind, key, values)
    draw(results, RESULTS / "finetune.png")


def test_errors(potential: Potential, data: Path, molecule: str) -> dict[str, float]:
    """Return the errors on the 1,000 test frames, meV/Å and meV."""
    errors = evaluate(potential, read_frames(data_file(data, molecule, "test")), backend="auto").errors
    return {"force_mae": 1e3 * errors.forces_mae, "energy_mae": 1e3 * errors.energy_mae}


def errors_on_base_molecules(
    potential: Potential, base: Potential, data: Path, molecule: str | None
) -> dict[str, float]:
    """Return the force MAE on each molecule of the base, at the base's level of theory, meV/Å."""
    found = {}
    for other in MOLECULES:
        if other != molecule:
            frames = read_frames(data_file(data, other, "test"), index=slice(None, None, BASE_FRAME_STEP))
            found[other] = (
                1e3
                * evaluate(
                    potential, with_reference_energies_of(potential, frames, base), backend="auto"
                ).errors.forces_mae
            )
    return found


@click.group()
def main() -> None:
    """Train bases, fine-tune them, train from scratch; every result is added to the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def with_folders(command: Any) -> Any:
    """Add the options that all commands have."""
    command = click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the bases.")(command)
    return click.option("--data", type=click.Path(path_type=Path), required=True, help="rMD17 files.")(command)


def with_extra(command: Any) -> Any:
    """Add the option for frames of the base that are not from rMD17."""
    text = "Additional frames of the base, as methanol's of organic-rmd17; the file must contain its units."
    return click.option("--extra", type=click.Path(path_type=Path, exists=True), help=text)(command)


@main.command()
@with_folders
@with_extra
@click.option("--without", "molecule", type=click.Choice(MOLECULES), required=True)
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--resume", is_flag=True)
def base(data: Path, work: Path, extra: Path | None, molecule: str, minutes: float, resume: bool) -> None:
    """Train a base on the nine other molecules."""
    files = [str(data_file(data, other, "train")) for other in MOLECULES if other != molecule]
    name = base_name(molecule, extra)
    config = TrainConfig.from_mapping(
        {
            "name": name,
            "data": {"path": files, "protocol": "rmd17", "extra_train": [str(extra)] if extra else []},
            "potential": {"zbl_cutoff": 1.0},
            "optimiser": {"time": f"{minutes:g}m", "warmup_steps": 500, "ema_decay": 0.999, "validate_every": 5000},
        }
    )
    potential = train(config, work / name, resume=resume)
    add("base", molecule + with_extra_frames(extra), {**potential.metadata["training"], **validation(potential)})


def with_extra_frames(extra: Path | None) -> str:
    """Return the part of a result's name for extra frames of its base."""
    return f", base with {extra.stem}" if extra else ""


def dynamics(path: Path, start: Atoms, picoseconds: float) -> dict[str, Any]:
    """Run Langevin dynamics from the relaxed molecule, as in the audit, and return whether a bond broke."""
    atoms = Atoms(start.numbers, start.positions, calculator=PonitaCalculator(path, dtype="float64"))
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=1000)
    settings = AuditSettings.make({"nvt": {"picoseconds": picoseconds}})
    run = run_nvt(AuditTarget(PonitaCalculator(path), atoms, None, settings), TEMPERATURE)
    return {
        "temperature": TEMPERATURE,
        "picoseconds": run.time[-1] if run.time else 0.0,
        "broken_at_ps": run.broken_at if run.time else 0.0,
        "largest_bond_change": float(np.max(run.bond_change)) if run.time else None,
    }


def validation(potential: Potential) -> dict[str, float]:
    """Return the validation errors at the end of the training, meV/Å and meV."""
    errors = potential.metadata["errors"]["validation"]
    return {"force_mae": 1e3 * errors["forces_mae"], "energy_mae": 1e3 * errors["energy_mae"]}


@main.command()
@with_folders
@with_extra
@click.option("--molecule", type=click.Choice(MOLECULES), required=True)
@click.option("--frames", type=click.IntRange(min=4), required=True)
@click.option("--no-replay", is_flag=True)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the fine-tuning; becomes part of the result's name.",
)
def tune(
    data: Path,
    work: Path,
    extra: Path | None,
    molecule: str,
    frames: int,
    no_replay: bool,
    settings: tuple[str, ...],
) -> None:
    """Fine-tune the base without a molecule on a few frames of that molecule."""
    path = work / base_name(molecule, extra) / POTENTIAL_FILE
    others = [data_file(data, other, "train") for other in MOLECULES if other != molecule]
    others += [extra] if extra else []
    overrides = parsed(settings)
    replay = [] if no_replay else others
    # Without replay a potential would have only the elements of the new molecule, and forgetting could not be measured.
    overrides["potential.extra_species"] = [chemical_symbols[z] for z in read_header(path)["species"]]
    own = data_file(data, molecule, "train")
    config = finetune_config(path, [own], replay=replay, frames=frames, overrides=overrides)
    out = work / "tuned"
    shutil.rmtree(out, ignore_errors=True)
    changes = finetune(config, out)
    before, potential = load_potential(path), load_potential(out / POTENTIAL_FILE)
    key = f"{molecule}, {frames} frames" + (", no replay" if no_replay else "") + with_extra_frames(extra)
    key += "".join(f", {s}" for s in settings)
    known = {
        "before": errors_on_base_molecules(before, before, data, molecule),
        "after": errors_on_base_molecules(potential, before, data, molecule),
    }
    first = changes[0]
    add(
        "tune",
        key,
        {
            **test_errors(potential, data, molecule),
            "validation_before": 1e3 * first.forces_before,
            "known": known,
            **potential.metadata["training"],
        },
    )


def scratch_config(path: Path, frames: int, steps: int, units: dict[str, str] | None = None) -> TrainConfig:
    """Return settings for training from random weights on a few frames of a file, a tenth of them for validation."""
    validating = max(2, round(0.1 * frames))
    return TrainConfig.from_mapping(
        {
            "data": {"path": str(path), "train": frames - validating, "validation": validating, "units": units},
            "potential": {"zbl_cutoff": 1.0},
            "optimiser": {"steps": steps, "warmup_steps": 200, "validate_every": 1000},
        }
    )


def parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of options NAME=VALUE by dotted name."""
    return {name: json.loads(value) for name, _, value in (setting.partition("=") for setting in settings)}


@main.command()
@with_folders
@click.option("--base", default="organic-rmd17", show_default=True, help="Name or file of the potential to start from.")
@click.option("--train", "file", type=click.Path(path_type=Path, exists=True), required=True, help="Frames, eV and Å.")
@click.option("--test", "tests", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--frames", type=click.IntRange(min=4), required=True)
@click.option("--no-replay", is_flag=True)
@click.option("--scratch", type=click.IntRange(min=1), help="Train so many steps from random weights instead.")
@click.option("--nvt-ps", default=0.0, show_default=True, help="Then run dynamics at 500 K: do all bonds hold?")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the fine-tuning; becomes part of the result's name.",
)
def other(
    data: Path,
    work: Path,
    base: str,
    file: Path,
    tests: tuple[Path, ...],
    frames: int,
    no_replay: bool,
    scratch: int | None,
    nvt_ps: float,
    settings: tuple[str, ...],
) -> None:
    """Fine-tune a base on frames of another molecule and level of theory, and test on several files."""
    out, path = work / "other", find_potential(base)
    shutil.rmtree(out, ignore_errors=True)
    units = {"data.units": {"energy": UNITS.energy, "length": UNITS.length}}
    elements = {"potential.extra_species": [chemical_symbols[z] for z in read_header(path)["species"]]}
    if scratch is None:
        config = finetune_config(
            path, [file], replay=[] if no_replay else None, frames=frames, overrides=units | elements | parsed(settings)
        )
        finetune(config, out)
    else:
        train(scratch_config(file, frames, scratch, units["data.units"]), out)
    potential, before = load_potential(out / POTENTIAL_FILE), load_potential(path)
    values: dict[str, Any] = {**potential.metadata["training"], "base": before.metadata["name"], "tests": {}}
    for test in tests:
        errors = evaluate(potential, read_frames(test, units=UNITS), backend="auto").errors
        found = {"force_mae": 1e3 * errors.forces_mae, "energy_mae": 1e3 * errors.energy_mae, "frames": errors.frames}
        values["tests"][f"{test.parent.name}/{test.name}"] = found
    if scratch is None:
        known = {
            "before": errors_on_base_molecules(before, before, data, None),
            "after": errors_on_base_molecules(potential, before, data, None),
        }
        values["known"] = known
    if nvt_ps:
        values["nvt"] = dynamics(out / POTENTIAL_FILE, read_frames(tests[0], units=UNITS)[0].to_atoms(), nvt_ps)
    how = f", from scratch in {scratch:,} steps" if scratch else ", no replay" if no_replay else ""
    key = f"{file.parent.name}/{file.name}, {frames} frames{how}" + "".join(f", {s}" for s in settings)
    add("other", key, values)


@main.command()
@with_folders
@click.option("--molecule", type=click.Choice(MOLECULES), required=True)
@click.option("--frames", type=click.IntRange(min=4), required=True)
@click.option("--steps", default=6000, show_default=True)
def scratch(data: Path, work: Path, molecule: str, frames: int, steps: int) -> None:
    """Train on the same few frames from random weights."""
    path = data_file(data, molecule, "train")
    out = work / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    potential = train(scratch_config(path, frames, steps), out)
    add(
        "scratch",
        f"{molecule}, {frames} frames",
        {**test_errors(potential, data, molecule), **potential.metadata["training"]},
    )


def cell(run: dict[str, Any] | None, name: str = "force_mae") -> str:
    """Format one number of a run; empty if there is no run."""
    return "" if run is None else f"{run[name]:.1f}"


def unseen_molecules(results: dict[str, Any]) -> list[str]:
    """Return the tables of molecules that are not in their bases."""
    tuned, scratch_runs = results.get("tune", {}), results.get("scratch", {})
    plain = sorted(
        {tuple(key.split(", ")[:2]) for key in (*tuned, *scratch_runs)},
        key=lambda pair: (pair[0], int(pair[1].split()[0])),
    )
    rows, shown = [], set()
    for molecule, frames in plain:
        key = f"{molecule}, {frames}"
        runs = [tuned.get(key), tuned.get(f"{key}, no replay"), scratch_runs.get(key)]
        shown |= {key, f"{key}, no replay"}
        if any(runs):
            rows.append([key, *(text for run in runs for text in (cell(run), cell(run, "energy_mae")))])
    head = ["molecule, frames", "fine-tuned", "energy", "without replay", "energy", "from scratch", "energy"]
    lines = ["", *table(head, rows)]
    published = [molecule for molecule in PUBLISHED_50 if f"{molecule}, 50 frames" in tuned]
    if published:
        lines += ["", "Published, from scratch on 50 frames (arXiv:2206.07697, table 2):", ""]
        rows = []
        for molecule in published:
            run, theirs = tuned[f"{molecule}, 50 frames"], PUBLISHED_50[molecule]
            ratio = run["force_mae"] / theirs["MACE"]
            rows.append([molecule, cell(run), f"{theirs['MACE']:.1f}", f"{theirs['NequIP']:.1f}", f"{ratio:.2f}"])
        lines += table(["molecule, 50 frames", "fine-tuned", "MACE", "NequIP", "fine-tuned / MACE"], rows)
    others = {key: run for key, run in tuned.items() if key not in shown}
    if others:
        lines += ["", "Other bases and settings:", ""]
        rows = [[key, f"{run['steps']:,}", cell(run), cell(run, "energy_mae")] for key, run in others.items()]
        lines += table(["molecule, frames, what differs", "steps", "fine-tuned", "energy"], rows)
    return lines


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw learning curves of molecules that are not in their bases, with training from scratch for comparison."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (molecule, published) in enumerate(PUBLISHED_50.items()):
        runs = {
            kind: {n: run["force_mae"] for n in CURVE if (run := results.get(kind, {}).get(f"{molecule}, {n} frames"))}
            for kind in ("tune", "scratch")
        }
        color = f"C{index}"
        axes.plot(list(runs["tune"]), list(runs["tune"].values()), "o-", color=color, label=molecule)
        axes.plot(list(runs["scratch"]), list(runs["scratch"].values()), "s", color=color, fillstyle="none")
        axes.plot([50], [published["MACE"]], "x", color=color)
    for marker, label in (("s", "from scratch, here"), ("x", "from scratch, MACE (published)")):
        axes.plot([], [], marker, color="0.3", fillstyle="none", label=label)
    axes.set(xlabel="frames", ylabel="force MAE (meV/Å)", xscale="log", yscale="log", xticks=CURVE, xlim=(8, 1200))
    plain_numbers(axes.yaxis)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    figure.legend(title="fine-tuned on few frames", loc="outside right upper")
    FigureCanvasAgg(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def other_levels(results: dict[str, Any]) -> list[str]:
    """Return the table of other molecules and levels of theory, and the results of their dynamics."""
    if "other" not in results:
        return []
    rows = []
    for key, r in results["other"].items():
        start = r["base"] if "known" in r else "random weights"
        for name, found in r["tests"].items():
            rows.append([key, start, f"{name} ({found['frames']:,})", cell(found), cell(found, "energy_mae")])
    lines = ["", "## Another molecule, another level of theory", ""]
    lines += table(["trained on", "from", "tested on", "force MAE", "energy MAE"], rows)
    runs = {key: r["nvt"] for key, r in results["other"].items() if "nvt" in r}
    if runs:
        lines += ["", "Langevin dynamics from the relaxed molecule, 0.5 fs:", ""]
    for key, run in runs.items():
        outcome = (
            f"all bonds held to within {run['largest_bond_change']:.2f} Å"
            if run["broken_at_ps"] is None
            else (f"a bond broke after {run['broken_at_ps']:.2f} ps")
        )
        lines.append(f"- {key}: {run['picoseconds']:.0f} ps at {run['temperature']:.0f} K, {outcome}.")
    return lines


def forgetting(results: dict[str, Any]) -> list[str]:
    """Return the table of errors on the base's molecules before and after fine-tuning."""
    rows = []
    for key, run in {**results.get("tune", {}), **results.get("other", {})}.items():
        if "known" in run:
            before, after = run["known"]["before"], run["known"]["after"]
            each = [f"{before[m]:.1f} → {after[m]:.1f}" if m in before else "" for m in MOLECULES]
            mean = " → ".join(f"{np.mean(list(errors.values())):.1f}" for errors in (before, after))
            rows.append([key, mean, *each])
    lines = ["", "## What the base knew: force MAE on its molecules' test frames, before → after", ""]
    return [*lines, *table(["fine-tuned on", "mean", *MOLECULES], rows)]


def report(results: dict[str, Any]) -> str:
    """Return the page."""
    rows = [
        [molecule, f"{r['steps']:,}", f"{r['seconds'] / 3600:.2f}", f"{r['force_mae']:.1f}"]
        for molecule, r in results.get("base", {}).items()
    ]
    lines = [
        "# Fine-tuning",
        "",
        "*Written by `python benchmarks/finetune.py`; all numbers come from `finetune.json`. Bases are trained on nine "
        "of rMD17's molecules (950 frames each) and fine-tuned on a few frames of the tenth; errors on its 1,000 test "
        "frames. Force MAE in meV/Å, energies in meV. The settings were chosen by ethanol's test errors at 50 frames, "
        "so that those flatter.*",
        "",
        "![Learning curves](finetune.png)",
        "",
        *table(["base without", "steps", "hours", "validation force MAE"], rows),
    ]
    return "\n".join([*lines, *unseen_molecules(results), *other_levels(results), *forgetting(results)]) + "\n"


if __name__ == "__main__":
    main()
