"""Training on a GPU that is there for minutes: packed frames and a job go there, potentials and checkpoints come back.

    # here: frames in fixed point, a few MB (gpu_pack.py)
    python benchmarks/gpu_train.py pack --out organic.npz data/{teacher,teacher_validation,dft,tests}.h5
    # there: the runs of the job, one after the other, within the minutes
    python benchmarks/gpu_train.py run organic.npz benchmarks/gpu_jobs/organic-wb97x.yaml --minutes 6 --out gpu-out

A job is a YAML file with a list of runs, in the order in which they are made (``gpu_jobs``). A run has settings of
``ponita-ff train``, which trains, with paths that start at the folder --work: frames are ``data/NAME.h5`` there, a
potential of an earlier run is ``RUN/potential.safetensors``. OUT gets, again after every run and every half minute,
``potentials.tar`` (potentials, settings, errors, curves, logs) and ``checkpoints.tar`` (of the last runs, as many as
fit). With --continue FOLDER the runs go on from the checkpoints of an earlier OUT; --work must be the same path,
because a checkpoint holds the paths of its data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click
import yaml
from gpu_pack import POSITION_BITS, pack, unpack
from pydantic import Field, ValidationError

from ponita_ff.data import DataError
from ponita_ff.files import write_atomically, write_text
from ponita_ff.settings import Section, SettingsError, read_yaml, wrong_fields
from ponita_ff.training.config import CHECKPOINT_FILE, FIRST_STAGE_FOLDER, POTENTIAL_FILE, TrainConfig

#: Largest archive, MB.
ARCHIVE_MB = 15.0

#: Seconds between two deliveries, and those in which a run that is stopped writes its checkpoint.
INTERVAL, STOPPING = 30.0, 20.0

#: What is delivered of a run, beside checkpoints.
_RESULTS = (POTENTIAL_FILE, "report.json", "metrics.csv", "config.yaml", "learning_curve.png", "parity.png", "log.txt")


class RunOfJob(Section):
    """One run of a job.

    Attributes:
        name: Name of its folder.
        settings: Those of ``ponita-ff train``, without the length of the run.
        share: Its part of the time, in proportion to those of the other runs.
        reserve: Seconds of its time for reading the data and for errors and plots at the end.
        batch_size: Structures in a batch, with learning rates by the rule of ``optimiser.batch_size``. None: as the
            settings have it.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    settings: dict[str, Any]
    share: Annotated[float, Field(gt=0)] = 1.0
    reserve: Annotated[float, Field(gt=0)] = 30.0
    batch_size: Annotated[int, Field(ge=1)] | None = None


class Job(Section):
    """What is trained.

    Attributes:
        runs: In this order; at least one.
    """

    runs: Annotated[list[RunOfJob], Field(min_length=1)]

    @classmethod
    def from_yaml(cls, path: Path) -> Job:
        """Read a job.

        Raises:
            SettingsError: For a file that is none, naming every wrong field.
        """
        try:
            job = cls.model_validate(read_yaml(path, "runs: [{name: ethanol, settings: {…}}]"))
        except ValidationError as error:
            raise SettingsError(f"{path} is not a job:\n{wrong_fields(error)}") from None
        names = [run.name for run in job.runs]
        if len(set(names)) < len(names):
            raise SettingsError(f"{path}: every run needs a name of its own, got {', '.join(names)}")
        return job


def settings_of(run: RunOfJob, seconds: float, work: Path) -> TrainConfig:
    """Settings for a run of so many seconds.

    Raises:
        SettingsError: For settings that cannot be used, or files that are not there.
    """
    values = {**run.settings, "optimiser": {**run.settings.get("optimiser", {}), "time": f"{seconds:.0f}s"}}
    config = TrainConfig.from_mapping(values, f"the settings of {run.name}")
    if run.batch_size is not None:
        config = config.for_batch_size(run.batch_size)
    if missing := [str(path) for path in config.inputs if not (work / path).exists()]:
        raise SettingsError(f"the settings of {run.name} name files that {work} does not have: {', '.join(missing)}")
    return config


@dataclass(frozen=True)
class Session:
    """Where and until when runs are made.

    Attributes:
        work: Folder of the runs and their data.
        out: Folder of the archives.
        device: Device to train on.
        end: When all must be done, on the monotonic clock.
    """

    work: Path
    out: Path
    device: str
    end: float

    def train(self, run: RunOfJob, seconds: float) -> str:
        """Make a run in so many seconds, all included.

        Returns:
            What became of it.
        """
        folder, stop_at = self.work / run.name, time.monotonic() + seconds
        config = settings_of(run, max(1.0, seconds - run.reserve), self.work)
        settings = self.work / f"{run.name}.yaml"
        write_text(settings, yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ponita_ff", "train", settings.name, "--out", run.name]
        command += ["--device", self.device, "--no-progress"]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=self.work, stdout=log, stderr=subprocess.STDOUT)
            try:
                return self._wait(process, stop_at)
            finally:
                process.kill()
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes], stop_at: float) -> str:
        while (left := stop_at - time.monotonic()) > 0:
            try:
                code = process.wait(min(INTERVAL, left))
                return "finished" if code == 0 else f"failed with exit code {code}: see its log.txt"
            except subprocess.TimeoutExpired:
                self.deliver()
        process.terminate()
        try:
            process.wait(STOPPING)
            return "stopped, its time was over: --continue goes on"
        except subprocess.TimeoutExpired:
            return "ended, its time was over: --continue goes on from its last checkpoint"

    def deliver(self) -> None:
        """Write both archives."""
        folders = sorted((path for path in self.work.iterdir() if (path / "log.txt").exists()), key=_age)
        _archive(self.out / "potentials.tar", self.work, [folder / name for folder in folders for name in _RESULTS])
        checkpoints = [
            folder / part / name
            for folder in folders
            for part in (".", FIRST_STAGE_FOLDER)
            for name in (CHECKPOINT_FILE, "split.json", "config.yaml", "metrics.csv", POTENTIAL_FILE)
        ]
        _archive(self.out / "checkpoints.tar", self.work, checkpoints)


def _age(folder: Path) -> float:
    """For the newest first."""
    return -(folder / "log.txt").stat().st_mtime


def _archive(path: Path, root: Path, files: list[Path]) -> None:
    """Write the files that are there, as many as fit."""
    room = 1e6 * ARCHIVE_MB

    def write(temporary: Path) -> None:
        nonlocal room
        with tarfile.open(temporary, "w") as archive:
            for file in files:
                size = file.stat().st_size + 2048 if file.is_file() else 0
                if size > room:
                    click.echo(f"{path.name} has no room for {file.relative_to(root)}")
                elif size:
                    archive.add(file, str(file.relative_to(root)))
                    room -= size

    write_atomically(path, write)


@click.group(help=__doc__.split("\n\n")[0] if __doc__ else "")
def main() -> None:
    """See the module's docstring."""


@main.command("pack")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The packed file.")
@click.option("--position-bits", type=click.Choice(["16", "24"]), default=str(POSITION_BITS), show_default=True)
def pack_command(files: tuple[Path, ...], out: Path, position_bits: str) -> None:
    """Pack files of labelled frames."""
    try:
        sets = pack(list(files), out, int(position_bits))
    except DataError as error:
        raise click.ClickException(str(error)) from None
    for name, packed in sets.items():
        errors = f"{packed.position_error:.1e} Å, {packed.force_error:.1e} eV/Å"
        click.echo(f"{name}: {packed.frames} frames; largest errors {errors}")
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@main.command("unpack")
@click.argument("packed", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def unpack_command(packed: Path, folder: Path) -> None:
    """Write the files of frames, as HDF5; those that are in the folder already stay."""
    try:
        sets = unpack(packed, folder)
    except (DataError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for name, one in sets.items():
        click.echo(f"{folder / name}.h5: {one.frames} frames")


@main.command("run")
@click.argument("packed", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("job", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), required=True, help="For everything.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the archives.")
@click.option(
    "--work", type=click.Path(path_type=Path), default="gpu-work", show_default=True, help="Folder of the runs."
)
@click.option("--only", "chosen", multiple=True, help="Names of runs; all by default.")
@click.option("--device", default="auto", show_default=True, help="As of ponita-ff train.")
@click.option(
    "--continue", "earlier", type=click.Path(path_type=Path, exists=True), help="Folder OUT of an earlier call."
)
def run_command(
    packed: Path,
    job: Path,
    minutes: float,
    out: Path,
    work: Path,
    chosen: tuple[str, ...],
    device: str,
    earlier: Path | None,
) -> None:
    """Train the runs of a job."""
    end = time.monotonic() + 60.0 * minutes
    try:
        runs = [run for run in Job.from_yaml(job).runs if not chosen or run.name in chosen]
        if unknown := set(chosen) - {run.name for run in runs}:
            raise SettingsError(f"{job} has no run with the name {', '.join(sorted(unknown))}")
        unpack(packed, work / "data")
        if earlier is not None:
            with tarfile.open(earlier / "checkpoints.tar") as archive:
                archive.extractall(work, filter="data")
        _train_all(runs, Session(work, out, device, end))
    except (DataError, SettingsError, OSError, tarfile.TarError) as error:
        raise click.ClickException(str(error)) from None


def _train_all(runs: list[RunOfJob], session: Session) -> None:
    """Make all runs; what one leaves of its time, the others share."""
    failed = False
    for number, run in enumerate(runs):
        left = session.end - time.monotonic() - STOPPING
        seconds = left * run.share / sum(other.share for other in runs[number:])
        if seconds <= 0:
            raise SettingsError(f"no time is left for {run.name}: give more --minutes, or fewer runs by --only")
        began = time.monotonic()
        outcome = session.train(run, seconds)
        session.deliver()
        click.echo(f"{run.name}: {outcome} ({time.monotonic() - began:.0f} of {seconds:.0f} s)")
        failed |= outcome.startswith("failed")
    click.echo(f"in {session.out}: potentials.tar, checkpoints.tar")
    if failed:
        raise SettingsError("not all runs were made")


if __name__ == "__main__":
    main()
