"""Find the settings that reach the lowest validation error in a given time: one change at a time against a base.

    python benchmarks/recipe.py --data FOLDER --molecule ethanol --minutes 6 --jobs 2

FOLDER holds the files that ``ponita-ff download rmd17 MOLECULE --out FOLDER`` writes. Every variant trains on one
thread for the given minutes of CPU time (little affected by other load on the machine), on the 950 frames of the
official split; errors are those of its 50 validation frames at the end of the learning-rate schedule. "Turned" is the
root mean square change of energies and forces of these frames under rotation: the error of the orientation grid. Test
frames are never read. Results gather in ``benchmarks/results/recipe.json``, a variant that is
already there is not run again, and ``benchmarks/recipe.md`` is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pages import read_results, table, write_results

from ponita_ff.files import write_text
from ponita_ff.training.config import OptimiserConfig

#: Rotations of each validation frame.
TURNS = 4

ROOT = Path(__file__).resolve().parent
RESULTS, REPORT = ROOT / "results" / "recipe.json", ROOT / "recipe.md"

#: Settings of all variants; everything else has the package's defaults.
BASE: dict[str, Any] = {
    "model.cutoff": 5.0,
    "optimiser.warmup_steps": 500,
    "optimiser.validate_every": 1000,
    "optimiser.checkpoint_every": 1000000,
}

#: Settings for starting from a base that was trained on the same 950 frames and those of nine other molecules.
FROM_BASE: dict[str, Any] = {
    "potential.start": str(ROOT.parent / "potentials" / "organic-rmd17" / "potential.safetensors"),
    "potential.reference_energies": "keep",
    "potential.zbl_cutoff": 1.0,
}

#: The package's learning rate, for its batches of 5.
RATE = OptimiserConfig().learning_rate

#: A batch for a GPU, as many frames in all, so that the steps are fewer.
BATCH_64: dict[str, Any] = {"optimiser.batch_size": 64, "optimiser.warmup_steps": 100}

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "batch size 2": {"optimiser.batch_size": 2},
    "batch size 10": {"optimiser.batch_size": 10},
    **{
        f"batch size 64, learning rate times {name}": {**BATCH_64, "optimiser.learning_rate": factor * RATE}
        for name, factor in {"1": 1.0, "√12.8": 12.8**0.5, "12.8": 12.8}.items()
    },
    "Adam": {"optimiser.kind": "adam"},
    "learning rate 5e-4": {"optimiser.learning_rate": 5e-4},
    "learning rate 2e-3": {"optimiser.learning_rate": 2e-3},
    "Muon's rate times 1": {"optimiser.muon_lr_multiplier": 1.0},
    "Muon's rate times 2": {"optimiser.muon_lr_multiplier": 2.0},
    "Muon's rate times 8": {"optimiser.muon_lr_multiplier": 8.0},
    "Muon's rate times 16": {"optimiser.muon_lr_multiplier": 16.0},
    "32 channels": {"model.channels": 32},
    "96 channels": {"model.channels": 96},
    "128 channels": {"model.channels": 128},
    "2 layers": {"model.num_layers": 2},
    "3 layers": {"model.num_layers": 3},
    "5 layers": {"model.num_layers": 5},
    "6 orientations": {"model.num_ori": 6},
    "20 orientations": {"model.num_ori": 20},
    "no orientations": {"model.num_ori": 0},
    "l_max 2": {"model.l_max": 2},
    "l_max 3": {"model.l_max": 3},
    "l_max 1": {"model.l_max": 1},
    "l_max 2, 3 layers": {"model.l_max": 2, "model.num_layers": 3},
    "l_max 2, 5 layers": {"model.l_max": 2, "model.num_layers": 5},
    "l_max 2, 20 orientations": {"model.l_max": 2, "model.num_ori": 20},
    "l_max 2, 6 orientations": {"model.l_max": 2, "model.num_ori": 6},
    "l_max 2, 96 channels": {"model.l_max": 2, "model.channels": 96},
    "32 channels, 32 orientations": {"model.channels": 32, "model.num_ori": 32},
    "48 channels, 20 orientations": {"model.channels": 48, "model.num_ori": 20},
    "96 channels, 3 layers": {"model.channels": 96, "model.num_layers": 3},
    "96 channels, widening 2": {"model.channels": 96, "model.widening": 2},
    "96 channels, 6 orientations, l_max 2": {"model.channels": 96, "model.num_ori": 6, "model.l_max": 2},
    "l_max 6": {"model.l_max": 6},
    "widening 2": {"model.widening": 2},
    "16 radial functions": {"model.radial_basis": 16},
    "5 Bessel functions": {"model.num_bessel": 5},
    "16 Bessel functions": {"model.num_bessel": 16},
    "cutoff 4": {"model.cutoff": 4.0},
    "EMA 0.95": {"optimiser.ema_decay": 0.95},
    "EMA 0.999": {"optimiser.ema_decay": 0.999},
    "energy weight 0.1": {"loss.energy": 0.1},
    "energy weight 10": {"loss.energy": 10.0},
    "mean square loss": {"loss.kind": "mse", "loss.forces": 100.0},
    "no rotation of the frames": {"rotate": False},
    "weight decay 0.01": {"optimiser.weight_decay": 0.01},
    "weight decay 0.1": {"optimiser.weight_decay": 0.1},
    "from organic-rmd17": {"model.num_bessel": 5, **FROM_BASE},
    "from organic-rmd17, learning rate 5e-4": {
        "model.num_bessel": 5,
        "optimiser.learning_rate": 5e-4,
        **FROM_BASE,
    },
}


def rotation_error(potential: Any, frames: Any) -> dict[str, float]:
    """Return the change of energies (meV) and forces (meV/Å) under rotation, root mean square over frames."""
    import numpy as np

    from ponita_ff.network.orientations import random_rotations

    rotations = random_rotations(TURNS * len(frames), (2026,)).reshape(len(frames), TURNS, 3, 3)
    structures = []
    for frame, turns in zip(frames, rotations, strict=True):
        atoms = frame.to_atoms()
        structures.append(atoms)
        for turn in turns:
            structures.append(atoms.copy())
            structures[-1].positions = atoms.positions @ turn.T
    found = potential.evaluate(structures)
    energies = found.energies.reshape(len(frames), TURNS + 1)
    forces = [np.stack(found.forces[k : k + TURNS + 1]) for k in range(0, len(structures), TURNS + 1)]
    wrong = [f[1:] - np.einsum("tij,aj->tai", turns, f[0]) for f, turns in zip(forces, rotations, strict=True)]
    return {
        "rotation_energy": float(1e3 * np.sqrt(np.square(energies[:, 1:] - energies[:, :1]).mean())),
        "rotation_force": float(1e3 * np.sqrt(np.mean([np.square(w).mean() for w in wrong]))),
    }


def train_one(job: dict[str, Any]) -> dict[str, Any]:
    """Run one variant in this process; return its last validation errors, steps and seconds."""
    import torch

    from ponita_ff.training import trainer
    from ponita_ff.training.build import build_potential
    from ponita_ff.training.config import TrainConfig
    from ponita_ff.training.evaluate import evaluate
    from ponita_ff.training.run import prepare_data

    torch.set_num_threads(1)
    trainer.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"data": {"path": job["file"], "protocol": "rmd17"}, "optimiser": {"time": job["time"]}}
    for name, value in (BASE | job["changes"]).items():
        *parents, leaf = name.split(".")
        target = settings
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    config = TrainConfig.from_mapping(settings)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(config.data, Path(folder))
        potential = build_potential(config, data.train)
        run = trainer.Trainer(potential, config, data.train, data.validation, Path(folder), progress=False)
        run.run()
    last = run.state.history[-1]
    sample = data.train[:: max(1, len(data.train) // 100)]
    return {
        "force_mae": 1e3 * last["validation_forces_mae"],
        "energy_mae": 1e3 * last["validation_energy_mae"],
        "steps": run.state.step,
        "seconds": last["seconds"],
        "training_force_mae": 1e3 * evaluate(run.ema_potential, sample).errors.forces_mae,
        "parameters": sum(p.numel() for p in potential.parameters()),
        "backend": run.training_step.backend,
    } | rotation_error(run.ema_potential, data.validation)


def run_variant(name: str, changes: dict[str, Any], file: Path, minutes: float) -> dict[str, Any]:
    """Run one variant in a process of its own; return its result."""
    job = {"changes": changes, "file": str(file), "time": f"{minutes:g}m"}
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"changes": changes, "minutes": minutes}


#: Heads of the columns, and the figures in them.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "force MAE (meV/Å)": lambda r: f"{r['force_mae']:.2f}",
    "in training": lambda r: optional(r, "training_force_mae"),
    "energy MAE (meV)": lambda r: f"{r['energy_mae']:.2f}",
    "turned: forces (meV/Å)": lambda r: optional(r, "rotation_force"),
    "turned: energy (meV)": lambda r: optional(r, "rotation_energy"),
    "steps": lambda r: f"{r['steps']:,}",
    "ms per step": lambda r: f"{1e3 * r['seconds'] / r['steps']:.1f}",
    "parameters": lambda r: f"{r['parameters']:,}",
}


def optional(result: dict[str, Any], name: str) -> str:
    """Return a figure that results of older versions do not have."""
    return f"{result[name]:.2f}" if name in result else ""


def report(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the page."""
    lines = [
        "# Recipe",
        "",
        "*Written by `python benchmarks/recipe.py`; every number comes from `results/recipe.json`. Validation errors, "
        "one seed each: small differences mean little.*",
    ]
    for title, variants in results.items():
        ordered = sorted(variants.items(), key=lambda item: item[1]["force_mae"])
        rows = [[name, *(figure(result) for figure in COLUMNS.values())] for name, result in ordered]
        lines += ["", f"## {title}", "", *table(["variant", *COLUMNS], rows)]
    return "\n".join(lines) + "\n"


def save(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write results and page."""
    write_results(RESULTS, results)
    write_text(REPORT, report(results))


def main() -> None:
    """Run the variants that have no result yet, and write all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the rMD17 files")
    parser.add_argument("--molecule", default="ethanol")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--jobs", type=int, default=1, help="variants at a time")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(train_one(json.loads(arguments.worker))))
        return
    if arguments.data is None:
        parser.error("--data is needed: the folder that 'ponita-ff download rmd17 MOLECULE' wrote into")
    file = arguments.data / f"rmd17_{arguments.molecule}_train_01.npz"
    if not file.is_file():
        parser.error(f"there is no {file}")
    results = read_results(RESULTS)
    table = results.setdefault(f"{arguments.molecule}, {arguments.minutes:g} minutes", {})
    missing = [name for name in arguments.only if name not in table]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {n: pool.submit(run_variant, n, VARIANTS[n], file, arguments.minutes) for n in missing}
        for name, future in futures.items():
            table[name] = future.result()
            print(f"{name}: {table[name]['force_mae']:.2f} meV/Å, {table[name]['energy_mae']:.2f} meV", flush=True)
            save(results)
    save(results)


if __name__ == "__main__":
    main()
