"""Measure the forms of network against each other: equal weights, and equal steps or equal time of training.

    python benchmarks/forms.py run --data FOLDER --runs RUNS --form PONITA --molecule ethanol --frames 950 --steps 30000
    python benchmarks/forms.py run --data FOLDER --runs RUNS --form PONITA --molecule ethanol --frames 950 --minutes 60
    python benchmarks/forms.py plan --data FOLDER --runs RUNS    # prints the commands of the page that are left
    python benchmarks/forms.py report                                          # page and curves from what is there

FOLDER holds ``rmd17/rmd17_<molecule>_train_01.npz`` and ``_test_01.npz``, and ``3bpa/train_300K.xyz`` (500 frames: 50
of what is neither trained nor validated on are tested on). One ``run`` is one form, molecule and number of frames; it
trains in a folder of RUNS, goes on there if it was stopped, and adds its result to ``results/forms.json``.
``--no-rotate`` trains without rotations of the frames; ``--physics`` measures rotations, drift and jumps too. Run one
for each core, with one thread, on a machine that does nothing else. All forms train with plain torch, so that times
compare mathematics, not kernels; ``--native`` gives PONITA its kernels. Forms are compared by validation errors; test
errors are only reported.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
from ase import Atoms
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pages import add_result, measured_on, read_results, table

from ponita_ff import PonitaCalculator
from ponita_ff.audit.dynamics import nve_drift
from ponita_ff.audit.result import CheckResult
from ponita_ff.audit.rotational_invariance import rotational_invariance
from ponita_ff.audit.settings import AuditSettings
from ponita_ff.audit.smoothness import smoothness
from ponita_ff.audit.target import AuditTarget
from ponita_ff.files import write_text
from ponita_ff.network.config import FormConfig, PonitaConfig, form_config
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.run import is_started, prepare_data, train
from ponita_ff.training.trainer import read_metrics

RESULTS = Path(__file__).resolve().parent / "results"

#: Settings of the models by the name in the table. Channels are chosen so that all have as many weights. Three layers,
#: one less than the default, so that the slowest form gets some thousand steps in the time that there is.
FORMS: dict[str, dict[str, Any]] = {
    "PNITA": {"form": "force-field", "num_ori": 0},
    "PONITA": {"form": "force-field"},
    "oriented points": {"form": "oriented-points"},
    "finite group 12": {"form": "finite-group", "group": "tetrahedral"},
    "finite group 24": {"form": "finite-group", "group": "octahedral"},
    "messages R3": {"form": "message-passing", "num_ori": 0},
    "messages R3xS2": {"form": "message-passing"},
    "moving vectors R3": {"form": "moving-vectors", "num_ori": 0},
    "moving vectors R3xS2": {"form": "moving-vectors"},
    "attention R3": {"form": "attention", "num_ori": 0},
    "attention R3xS2": {"form": "attention"},
    "frame averaging": {"form": "frame-averaging"},
}

#: Forms that are invariant exactly, so that rotated frames teach them nothing.
INVARIANT = {"oriented points", "frame averaging", *(name for name, s in FORMS.items() if s.get("num_ori") == 0)}

#: Training frames by molecule; 3BPA has 500 frames in all.
FRAMES = {"ethanol": (200, 950), "aspirin": (200, 950), "3bpa": (200, 400)}

VALIDATION = 50

#: Settings that all runs share.
SETTINGS: dict[str, Any] = {"warmup_steps": 500, "ema_decay": 0.999}

#: Points of a curve: a run is validated every so many steps, or, by time, every time that as long as this many steps.
POINTS = 20

#: Of every form.
LAYERS = 3

#: Weights of PONITA with three quarters of the default's channels, of H, C and O.
TARGET = PonitaConfig(channels=48, num_layers=LAYERS).num_weights(3)

#: What the page is made of: minutes of training for few and for many frames, and steps where those are equal.
MINUTES, STEPS = (4.0, 8.0), {"ethanol": 4000, "aspirin": 2500}

AUDIT: dict[str, Any] = {"nve": {"timesteps": [0.5], "picoseconds": 2.0}, "scans": {"bonds": 2}}


def sized(settings: Mapping[str, Any], target: int = TARGET, num_species: int = 3) -> FormConfig:
    """Return the config of a form whose number of weights is nearest to the target, by the choice of its channels."""
    every = 4 if settings["form"] == "attention" else 1  # heads divide the channels
    configs = [form_config({"num_layers": LAYERS, **settings, "channels": c}) for c in range(4, 200, every)]
    return min(configs, key=lambda config: abs(config.num_weights(num_species) - target))


def data_settings(data: Path, molecule: str, frames: int) -> dict[str, Any]:
    """Return the settings of the data of a run.

    Raises:
        click.BadParameter: If a file is missing.
    """
    if molecule == "3bpa":
        files = {"path": data / "3bpa" / "train_300K.xyz"}
        rest: dict[str, Any] = {"test_frames": 500 - max(FRAMES["3bpa"]) - VALIDATION}
    else:
        files = {
            "path": data / "rmd17" / f"rmd17_{molecule}_train_01.npz",
            "test": data / "rmd17" / f"rmd17_{molecule}_test_01.npz",
        }
        rest = {}
    for path in files.values():
        if not path.is_file():
            raise click.BadParameter(f"there is no {path}", param_hint="--data")
    return {name: str(path) for name, path in files.items()} | rest | {"train": frames, "validation": VALIDATION}


def run_settings(
    form: str, data: dict[str, Any], minutes: float | None, steps: int | None, rotate: bool, native: bool
) -> TrainConfig:
    """Return the settings of a run."""
    budget = {"steps": steps} if minutes is None else {"time": f"{minutes:g}m"}
    # By time the number of steps is not known; validation is as frequent as suits a step of some 20 ms.
    every = max(1, steps // POINTS) if steps else max(1, round((minutes or 0.0) * 60 / 0.02 / POINTS))
    optimiser = {**SETTINGS, **budget, "validate_every": every, "checkpoint_every": every}
    optimiser["warmup_steps"] = min(SETTINGS["warmup_steps"], every)
    return TrainConfig.from_mapping(
        {
            "name": form,
            "data": data,
            "model": sized(FORMS[form]).model_dump(),
            "potential": {"zbl_cutoff": 1.0},
            "optimiser": optimiser,
            "backend": "native" if native else "eager",
            "rotate": rotate,
            "device": "cpu",
        }
    )


# ------------------------------------------------------------------------------------------------- measurements


def step_time(calculator: PonitaCalculator, atoms: Atoms, repeats: int = 20) -> float:
    """Return the median time of energy and forces, ms, of a structure whose atoms move a little each time."""
    generator, atoms, times = np.random.default_rng(0), atoms.copy(), []
    atoms.calc = calculator
    for _ in range(repeats):
        atoms.positions += 0.001 * generator.normal(size=atoms.positions.shape)
        began = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[len(times) // 4 :]))


def numbers(result: CheckResult) -> dict[str, float]:
    """Return the numbers of a check by name."""
    return {m.name: float(m.value) for m in result.measurements if m.value is not None}


def physics(potential: Potential, atoms: Atoms, backend: str) -> dict[str, float]:
    """Return rotation error, drift, jumps and the time of a step of MD, by the checks of ``ponita-ff audit``."""
    calculator = PonitaCalculator(potential, backend=backend)
    target = AuditTarget(calculator, atoms, None, AuditSettings.model_validate(AUDIT))
    rotations, scans, nve = (numbers(check(target)) for check in (rotational_invariance, smoothness, nve_drift))
    return {
        "md_step_ms": step_time(calculator, atoms),
        "rotation_energy_mev": rotations["energy spread, peak to peak"],
        "rotation_force": 1e3 * rotations["force equivariance error, RMS"],
        "energy_jump_mev": 1e3 * scans["largest jump of the energy"],
        "force_jump": 1e3 * scans["largest jump of a force component"],
        "nve_drift": nve["NVE drift at 0.5 fs"],
    }


def measure(config: TrainConfig, folder: Path, with_physics: bool) -> dict[str, Any]:
    """Train, or go on, in a folder, and measure what came of it."""
    potential = train(config, folder, is_started(folder), progress=False)
    rows, training = read_metrics(folder), potential.metadata["training"]
    errors = potential.metadata["errors"]
    data = prepare_data(config.data, folder)
    found = {
        "weights": sum(weight.numel() for weight in potential.parameters()),
        "channels": potential.network.config.channels,
        "steps": training["steps"],
        "minutes": training["seconds"] / 60,
        "train_step_ms": 1e3 * training["seconds"] / training["steps"],
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "curve": [
            {"step": row["step"], "minutes": row["seconds"] / 60, "force_mae": 1e3 * row["validation_forces_mae"]}
            for row in rows
        ],
    }
    for part in ("validation", "test"):
        found |= {f"{part}_{name}": 1e3 * errors[part][f"{name}_mae"] for name in ("forces", "energy")}
    atoms = data.validation[0].to_atoms()
    if with_physics:
        return found | physics(potential, atoms, config.backend)
    return found | {"md_step_ms": step_time(PonitaCalculator(potential, backend=config.backend), atoms)}


# ------------------------------------------------------------------------------------------------------- report


def optional(result: Mapping[str, float], name: str) -> str:
    """Return a cell of what only some runs measure."""
    return f"{result[name]:.2g}" if name in result else ""


COLUMNS = {
    "form": lambda key, r: key,
    "weights": lambda key, r: f"{r['weights']:,}",
    "steps": lambda key, r: f"{r['steps']:,}",
    "minutes": lambda key, r: f"{r['minutes']:.1f}",
    "force MAE, validation": lambda key, r: f"{r['validation_forces']:.2f}",
    "force MAE, test": lambda key, r: f"{r['test_forces']:.2f}",
    "energy MAE, test": lambda key, r: f"{r['test_energy']:.2f}",
    "ms a training step": lambda key, r: f"{r['train_step_ms']:.1f}",
    "ms an MD step": lambda key, r: f"{r['md_step_ms']:.1f}",
    "peak memory, MB": lambda key, r: f"{r['memory_mb']:.0f}",
    "rotation, meV/atom": lambda key, r: optional(r, "rotation_energy_mev"),
    "rotation, meV/Å": lambda key, r: optional(r, "rotation_force"),
    "NVE drift, meV/atom/ns": lambda key, r: optional(r, "nve_drift"),
    "energy jump, meV": lambda key, r: optional(r, "energy_jump_mev"),
    "force jump, meV/Å": lambda key, r: optional(r, "force_jump"),
}


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    rows = [result for group in results.values() for result in group.values()]
    lines = [
        "# Forms of network",
        "",
        "*Written by `python benchmarks/forms.py`; all numbers come from `forms.json`. Every form has three layers and "
        f"as many weights as PONITA with 48 channels ({TARGET:,}), by the choice of its channels, and trains on "
        'randomly rotated frames unless it says "no rotation". Force errors in meV/Å, energies in meV. Rotation: '
        "peak to peak of the energy, and RMS of R F(x) − F(R x), over 100 random rotations. Jumps: the largest along "
        'scans of bonds, a detached atom and a rotated molecule. All in plain torch unless it says "native". Forms '
        "are compared by validation errors.*",
        "",
        "![Curves](forms.png)",
    ]
    if rows:
        lines += ["", measured_on(rows)]
    for group in sorted(results):
        best = sorted(results[group].items(), key=lambda item: item[1]["validation_forces"])
        lines += ["", f"## {group}", ""]
        lines += table(list(COLUMNS), [[cell(key, result) for cell in COLUMNS.values()] for key, result in best])
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot validation errors against time, or steps where those were equal; one panel for each group."""
    groups = sorted(results)
    columns = min(3, max(1, len(groups)))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, group in zip(panels, groups, strict=False):
        by_time = group.endswith("minutes")
        axes.set_prop_cycle(color=colormaps["tab20"].colors)
        for key, result in results[group].items():
            x = [row["minutes" if by_time else "step"] for row in result["curve"]]
            axes.plot(x, [row["force_mae"] for row in result["curve"]], marker=".", label=key)
        label = "minutes" if by_time else "steps"
        axes.set(title=group, xlabel=label, ylabel="validation force MAE (meV/Å)", yscale="log", xscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=6)
    for axes in panels[len(groups) :]:
        axes.axis("off")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)


def names(form: str, molecule: str, frames: int, minutes: float | None, steps: int | None, *tags: str) -> list[str]:
    """Return the group and the key of a result."""
    budget = f"{minutes:g} minutes" if minutes is not None else f"{steps} steps"
    return [f"{molecule}, {frames} frames, {budget}", ", ".join([form, *tags])]


# ----------------------------------------------------------------------------------------------------- commands

FOLDER = click.Path(path_type=Path)

BUDGET = [
    click.option("--minutes", type=click.FloatRange(min=0.01), help="Time of training."),
    click.option("--steps", type=click.IntRange(min=1), help="Steps of training, in place of a time."),
    click.option("--data", type=FOLDER, required=True, help="Folder of rmd17/ and 3bpa/."),
    click.option("--runs", type=FOLDER, required=True, help="Folder of the runs' own folders."),
    click.option("--out", type=FOLDER, default=RESULTS, help="Folder of the results."),
]


def budget(command: Any) -> Any:
    """Add the options of ``BUDGET``."""
    for option in reversed(BUDGET):
        command = option(command)
    return command


def check_budget(minutes: float | None, steps: int | None) -> None:
    """Refuse both, or none.

    Raises:
        click.UsageError: Saying what to give.
    """
    if (minutes is None) == (steps is None):
        raise click.UsageError("give either --minutes or --steps")


@click.group()
def main() -> None:
    """Compare forms of network."""


@main.command("run")
@click.option("--form", type=click.Choice(list(FORMS)), required=True)
@click.option("--molecule", type=click.Choice(list(FRAMES)), required=True)
@click.option("--frames", type=click.IntRange(min=1), required=True)
@click.option("--rotate/--no-rotate", default=True, help="Rotate training frames at random.")
@click.option("--native", is_flag=True, help="Train and run with the native kernels (PNITA and PONITA).")
@click.option("--physics", "with_physics", is_flag=True, help="Measure rotations, drift and jumps as well.")
@budget
def run_one(
    form: str,
    molecule: str,
    frames: int,
    rotate: bool,
    native: bool,
    with_physics: bool,
    minutes: float | None,
    steps: int | None,
    data: Path,
    runs: Path,
    out: Path,
) -> None:
    """Train one form on one molecule, measure it, and add it to the results."""
    check_budget(minutes, steps)
    if native and FORMS[form]["form"] != "force-field":
        raise click.UsageError(f"--native: {form} has no native kernels, only PNITA and PONITA have")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tags = [tag for tag, given in (("no rotation", not rotate), ("native", native)) if given]
    group, key = names(form, molecule, frames, minutes, steps, *tags)
    config = run_settings(form, data_settings(data, molecule, frames), minutes, steps, rotate, native)
    folder = runs / f"{group}, {key}".replace(", ", "-").replace(" ", "_")
    results = add_result(out / "forms", report, group, key, measure(config, folder, with_physics))
    plot(results, out / "forms.png")


def budgets(molecule: str, frames: int) -> Iterator[tuple[float | None, int | None]]:
    """Yield minutes or steps of the runs of a molecule with so many frames."""
    many = frames == max(FRAMES[molecule])
    yield MINUTES[many], None
    if many and molecule in STEPS:
        yield None, STEPS[molecule]


def commands(data: Path, runs: Path) -> Iterator[tuple[list[str], str]]:
    """Yield group and key of every run of the page, and its command.

    Forms that are not exactly invariant also train without rotations, at equal time with many frames.
    """
    cells = [(molecule, frames) for molecule in FRAMES for frames in FRAMES[molecule]]
    for molecule, frames in cells:
        for minutes, steps in budgets(molecule, frames):
            amount = f"--minutes {minutes:g}" if minutes is not None else f"--steps {steps}"
            by_time_with_many = minutes is not None and frames == max(FRAMES[molecule])
            for form in FORMS:
                for rotate in (True, False) if by_time_with_many and form not in INVARIANT else (True,):
                    options = [*([] if rotate else ["--no-rotate"]), *(["--physics"] if by_time_with_many else [])]
                    yield (
                        names(form, molecule, frames, minutes, steps, *([] if rotate else ["no rotation"])),
                        f'python benchmarks/forms.py run --data {data} --runs {runs} --form "{form}" '
                        f"--molecule {molecule} --frames {frames} {' '.join([amount, *options])}",
                    )


@main.command("plan")
@click.option("--data", type=FOLDER, required=True, help="Folder of rmd17/ and 3bpa/.")
@click.option("--runs", type=FOLDER, required=True, help="Folder of the runs' own folders.")
@click.option("--out", type=FOLDER, default=RESULTS, help="Folder of the results.")
def plan(data: Path, runs: Path, out: Path) -> None:
    """Print the commands of all runs of the page whose results are not there yet, one a line."""
    results = read_results(out / "forms.json")
    for (group, key), command in commands(data, runs):
        if key not in results.get(group, {}):
            click.echo(command)


@main.command("report")
@click.option("--out", type=FOLDER, default=RESULTS, help="Folder of the results.")
def write_report(out: Path) -> None:
    """Write the page and the curves from the results that are there."""
    results = read_results(out / "forms.json")
    write_text(out / "forms.md", report(results))
    plot(results, out / "forms.png")


if __name__ == "__main__":
    main()
