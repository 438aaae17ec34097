"""Measure test error against training time: this package's defaults and a peer, with the same minutes and threads.

    python benchmarks/equal_time.py --data FOLDER --molecule ethanol --contender ponita_ff --minutes 60
    python benchmarks/equal_time.py --data FOLDER --molecule ethanol --contender painn --minutes 60

FOLDER holds the files that ``ponita-ff download rmd17 MOLECULE --out FOLDER`` writes. Run one contender at a time, on a
machine that does nothing else. Both train on the 950 frames of the official split and use its 50 validation frames. At
given times their averaged weights are stored; at the end these are tested on the 1,000 test frames. ``painn`` is
SchNetPack's PaiNN with its own rMD17 experiment (``pip install schnetpack``) and its own trainer.
Results gather in ``results/equal_time.json``; ``results/equal_time.md`` and ``.png`` are written from them.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pages import add_result, table

from ponita_ff.data import Frame, read_frames, rmd17_split
from ponita_ff.training import run
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.trainer import Trainer

RESULTS = Path(__file__).resolve().parent / "results"

#: Fractions of the time at which weights are stored; the last is the end.
POINTS = (1 / 60, 2 / 60, 4 / 60, 8 / 60, 15 / 60, 0.5, 0.75, 1.0)

SETTINGS: dict[str, Any] = {"optimiser": {"warmup_steps": 500, "ema_decay": 0.999, "validate_every": 2000}}


class Curve:
    """Stores weights during a run, and tests them at its end.

    Args:
        seconds: Length of the run.
        weights: Returns a copy of the averaged weights.
    """

    def __init__(self, seconds: float, weights: Callable[[], Any]) -> None:
        self.seconds, self.weights = seconds, weights
        self.kept: list[tuple[float, Any]] = []

    def tick(self, elapsed: float) -> None:
        """Store the weights if it is time; called after every step with the seconds so far."""
        if len(self.kept) < len(POINTS) - 1 and elapsed >= POINTS[len(self.kept)] * self.seconds:
            self.kept.append((elapsed, self.weights()))

    def errors(self, end: float, test: Callable[[Any], tuple[float, float]]) -> list[dict[str, float]]:
        """Return force (meV/Å) and energy (meV) errors of all stored weights, and of those at the end."""
        rows = []
        for elapsed, weights in (*self.kept, (end, self.weights())):
            energy, forces = test(weights)
            rows.append({"minutes": elapsed / 60, "force_mae": 1e3 * forces, "energy_mae": 1e3 * energy})
        return rows


def files(data: Path, molecule: str) -> tuple[Path, Path]:
    """Return the files with training and test frames of a molecule.

    Raises:
        click.BadParameter: If one is missing.
    """
    found = data / f"rmd17_{molecule}_train_01.npz", data / f"rmd17_{molecule}_test_01.npz"
    for path in found:
        if not path.is_file():
            raise click.BadParameter(f"there is no {path}", param_hint="--data")
    return found


# ---------------------------------------------------------------------------------------------------- contenders


def ponita_ff(data: Path, molecule: str, minutes: float, out: Path) -> dict[str, Any]:
    """Train this package with its defaults into the folder ``out``."""
    train_file, test_file = files(data, molecule)
    config = TrainConfig.from_mapping(
        SETTINGS
        | {
            "name": f"{molecule}-rmd17",
            "data": {"path": str(train_file), "test": str(test_file), "protocol": "rmd17"},
            "potential": {"zbl_cutoff": 1.0},
            "optimiser": {**SETTINGS["optimiser"], "time": f"{minutes:g}m"},
        }
    )
    trainers: list[Recorded] = []

    class Recorded(Trainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.curve = Curve(60 * minutes, lambda: self.ema_weights.values.clone())
            trainers.append(self)

        def _train_step(self, *arguments: Any) -> Any:
            terms = super()._train_step(*arguments)
            self.curve.tick(self.elapsed_seconds)
            return terms

    with patch.object(run, "Trainer", Recorded):
        run.train(config, out)
    (trainer,) = trainers
    frames, end = read_frames(test_file), trainer.state.history[-1]["seconds"]

    def test(weights: torch.Tensor) -> tuple[float, float]:
        trainer.ema_weights.values.copy_(weights)
        errors = evaluate(trainer.ema_potential, frames).errors
        return errors.energy_mae, errors.forces_mae

    return {"curve": trainer.curve.errors(end, test), "steps": trainer.state.step}


@contextmanager
def working_directory(path: Path) -> Iterator[None]:
    """Change the current folder, which SchNetPack writes into."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def write_database(path: Path, train: Any, test: Any) -> None:
    """Write the frames as a database of SchNetPack, and its split."""
    from schnetpack.data import ASEAtomsData

    frames: list[Frame] = [*train, *test]
    database = ASEAtomsData.create(
        str(path), distance_unit="Ang", property_unit_dict={"energy": "eV", "forces": "eV/Ang"}
    )
    labels = [{"energy": np.array([frame.energy]), "forces": np.asarray(frame.forces)} for frame in frames]
    database.add_systems(labels, [frame.to_atoms() for frame in frames])
    split = rmd17_split(len(train), 0)
    held_out = np.arange(len(train), len(frames))
    np.savez(path.with_name("split.npz"), train_idx=split.train, val_idx=split.validation, test_idx=held_out)


def with_names_of_older_torch() -> None:
    """Add to torch a type variable and an option that SchNetPack 2.1 uses and newer versions do not have."""
    vars(torch.utils.data.dataloader).setdefault("T_co", TypeVar("T_co", covariant=True))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau
    first = scheduler.__init__

    def without_verbose(self: Any, *arguments: Any, verbose: bool = False, **options: Any) -> None:
        first(self, *arguments, **options)

    scheduler.__init__ = without_verbose  # type: ignore[method-assign]


def painn(data: Path, molecule: str, minutes: float, out: Path) -> dict[str, Any]:
    """Train SchNetPack's PaiNN with its published rMD17 experiment, its trainer and its average of the weights."""
    with_names_of_older_torch()
    import hydra
    import pytorch_lightning as lightning
    import schnetpack
    from hydra.core.hydra_config import HydraConfig  # noqa: F401 - registers the resolvers of its configuration
    from schnetpack.utils import str2class

    train_file, test_file = files(data, molecule)
    out.mkdir(parents=True)
    out = out.resolve()
    train, test_frames = read_frames(train_file), read_frames(test_file)
    write_database(out / "frames.db", train, test_frames)
    overrides = [
        "experiment=rmd17",
        "data=custom",
        f"data.datapath={out}/frames.db",
        f"+data.split_file={out}/split.npz",
        "data.batch_size=10",  # as data/rmd17.yaml has it
        "data.num_train=950",
        "data.num_val=50",
        "data.num_workers=0",
        f"run.work_dir={out}",
        "run.id=run",
    ]
    with hydra.initialize_config_module("schnetpack.configs", version_base="1.2"):
        config = hydra.compose("train", overrides=overrides)
    with working_directory(out):
        lightning.seed_everything(0)
        module = hydra.utils.instantiate(config.data, train_sampler_cls=None)
        task = hydra.utils.instantiate(
            config.task,
            model=hydra.utils.instantiate(config.model),
            optimizer_cls=str2class(config.task.optimizer_cls),
            scheduler_cls=str2class(config.task.scheduler_cls),
        )
        callbacks = [hydra.utils.instantiate(c) for name, c in config.callbacks.items() if name != "lr_monitor"]
        average = next(c for c in callbacks if isinstance(c, schnetpack.train.ExponentialMovingAverage))
        curve = Curve(60 * minutes, lambda: [p.clone() for p in average.ema.shadow_params])

        class Recorder(lightning.Callback):
            began = 0.0

            def on_train_start(self, *_: Any) -> None:
                self.began = time.monotonic()

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                elapsed = time.monotonic() - self.began
                curve.tick(elapsed)
                trainer.should_stop = elapsed >= curve.seconds

        recorder = Recorder()
        trainer = hydra.utils.instantiate(
            config.trainer, callbacks=[*callbacks, recorder], logger=False, _convert_="partial"
        )
        trainer.fit(model=task, datamodule=module)
        end = time.monotonic() - recorder.began
    loader = module.test_dataloader()

    def test(weights: list[torch.Tensor]) -> tuple[float, float]:
        for parameter, value in zip(task.model.parameters(), weights, strict=True):
            parameter.data.copy_(value)
        return painn_errors(task.model, loader)

    return {"curve": curve.errors(end, test), "steps": trainer.global_step, "version": schnetpack.__version__}


def painn_errors(model: Any, loader: Any) -> tuple[float, float]:
    """Return energy (eV) and force (eV/Å) errors on the frames of a loader, which are in kcal/mol."""
    from ase.units import kcal, mol

    model.eval()
    model.do_postprocessing = False  # the frames' energies come without the mean, too
    energy, forces = [], []
    for batch in loader:
        # The model writes into its input.
        expected = {name: batch[name].clone() for name in ("energy", "forces")}
        found = model(batch)
        energy.append((found["energy"] - expected["energy"]).detach().abs().double())
        forces.append((found["forces"] - expected["forces"]).detach().abs().double())
    return tuple(float(torch.cat(errors).mean()) * kcal / mol for errors in (energy, forces))  # type: ignore[return-value]


CONTENDERS: dict[str, Callable[[Path, str, float, Path], dict[str, Any]]] = {"ponita_ff": ponita_ff, "painn": painn}


# ---------------------------------------------------------------------------------------------------------- report


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    lines = [
        "# Test error against training time",
        "",
        "*Written by `python benchmarks/equal_time.py`; all numbers come from `equal_time.json`. rMD17, 950 frames to "
        "train on, errors on the 1,000 official test frames. Learning rates come down over the whole time here, and "
        "when validation stops improving in the peer, so that the last row of a run is the one to compare.*",
    ]
    for molecule, contenders in results.items():
        for name, result in contenders.items():
            lines += [
                "",
                f"## {molecule}, {name}",
                "",
                f"{result['steps']:,} steps; {result['hardware']}"
                + (f"; version {result['version']}" if "version" in result else ""),
                "",
            ]
            rows = [[f"{r['minutes']:.1f}", f"{r['force_mae']:.2f}", f"{r['energy_mae']:.2f}"] for r in result["curve"]]
            lines += table(["minutes", "force MAE (meV/Å)", "energy MAE (meV)"], rows)
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot force errors against time, one panel for each molecule."""
    figure = Figure(figsize=(5 * len(results), 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (molecule, contenders) in zip(panels, results.items(), strict=True):
        for name, result in contenders.items():
            curve = result["curve"]
            axes.plot([r["minutes"] for r in curve], [r["force_mae"] for r in curve], marker="o", label=name)
        axes.set(title=molecule, xlabel="minutes of training", ylabel="test force MAE (meV/Å)", xscale="log")
        axes.set_yscale("log")
        axes.legend()
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the rMD17 files.")
@click.option("--molecule", required=True)
@click.option("--contender", type=click.Choice(list(CONTENDERS)), required=True)
@click.option("--minutes", type=click.FloatRange(min=0.1), default=60.0, show_default=True)
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Keep the run's files in this new folder.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(data: Path, molecule: str, contender: str, minutes: float, folder: Path | None, out: Path) -> None:
    """Train one contender on one molecule and add its curve to the results."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files(data, molecule)
    with tempfile.TemporaryDirectory() as temporary:
        found = CONTENDERS[contender](data, molecule, minutes, folder or Path(temporary) / "run")
    plot(add_result(out / "equal_time", report, molecule, contender, found), out / "equal_time.png")


if __name__ == "__main__":
    main()
