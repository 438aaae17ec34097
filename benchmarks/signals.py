"""Stop train, label, sample, explore and md at random moments, and compare what comes out with uninterrupted runs.

    python benchmarks/signals.py
    python benchmarks/signals.py --moments 2 --only label --only md

Each command runs to its end once. Then it is begun, stopped by SIGINT (to its whole process group, as Ctrl-C does) or
SIGTERM in turn, label and sample by SIGKILL as well, and begun again with the same command, until it ends; and so on in
a new folder until it has been stopped often enough. Prints a row for each command: how many stops, their exit codes,
stops after which a file was damaged or work of before was lost, and whether all results are those of the uninterrupted
run, bit for bit.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: processes are forked

import hashlib
import importlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import ponita_ff.explore
import ponita_ff.labels
import ponita_ff.sample.run
import ponita_ff.training.run  # noqa: F401 - loaded before processes are forked
from ponita_ff.cli import main as main_command
from ponita_ff.potential.file import read_header
from ponita_ff.simulate.restart import State
from ponita_ff.training.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))  # calculators that count
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS)])  # in processes that label

import explore_calculators  # noqa: E402
import label_calculators  # noqa: E402
import sample_calculators  # noqa: E402, F401 - loaded before processes are forked

#: Exit codes of a command that was stopped; a negative one is that of a process that had no handler yet.
EXPECTED = {
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (143, -signal.SIGTERM),
    signal.SIGKILL: (-signal.SIGKILL,),
}

POTENTIAL = "potential.safetensors"

STEPS = {"train": 400, "md": 1500}


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        arguments: Of ``ponita-ff``, for a folder to work in.
        progress: Work that is safe in the folder, as a number that must never fall; reads, and so checks, its files.
        wasted: Finished work that was done again: labels that were calculated twice.
        result: What must be the same as in an uninterrupted run.
        signals: That it is stopped by, in turn.
    """

    arguments: Callable[[Path], list[str]]
    progress: Callable[[Path], int]
    wasted: Callable[[Path], int]
    result: Callable[[Path], str]
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Outcome:
    """What the stops of a command did."""

    codes: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    lost: int = 0
    equal: bool = True
    notes: list[str] = field(default_factory=list)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def nothing(_: Path) -> int:
    return 0


def journal_lines(folder: Path) -> int:
    """Labels in all journals of a folder; each whole line must be JSON."""
    lines = 0
    for path in folder.rglob("*.journal.jsonl"):
        *whole, _ = path.read_bytes().split(b"\n")
        lines += sum("energy" in json.loads(line) for line in whole)
    return lines


def train_case(shared: Path) -> Case:
    frames = []
    for seed in range(20):
        atoms = molecule("CH3OH")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    write(shared / "frames.xyz", frames, format="extxyz")
    settings: dict[str, Any] = {
        "data": {"path": "frames.xyz", "train": 16, "validation": 4},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {"steps": STEPS["train"], "batch_size": 4, "validate_every": 100, "learning_rate": 0.003},
    }
    (shared / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def progress(folder: Path) -> int:
        path = folder / "run" / "checkpoint.pt"
        return read_checkpoint(path, torch.device("cpu"))["state"]["step"] if path.exists() else 0

    def result(folder: Path) -> str:
        steps = (folder / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
        return digest(read_header(folder / "run" / POTENTIAL)["weights_sha256"], [row.split(",")[0] for row in steps])

    return Case(
        lambda folder: ["train", str(shared / "train.yaml"), "--out", str(folder / "run")], progress, nothing, result
    )


def label_case(shared: Path) -> Case:
    count = 30
    write(shared / "h2.xyz", label_calculators.make_frames(count), format="extxyz")

    def arguments(folder: Path) -> list[str]:
        traces = folder / "traces"
        traces.mkdir(exist_ok=True)
        method = f"label_calculators:Spring{{folder: {traces}, seconds: 0.05}}"
        command = ["label", str(shared / "h2.xyz"), "--method", method, "--out", str(folder / "out.xyz")]
        return [*command, "--processes", "2"]

    def result(folder: Path) -> str:
        return digest([(a.positions.tolist(), a.get_potential_energy()) for a in read(folder / "out.xyz", ":")])

    def wasted(folder: Path) -> int:
        # A calculation that was under way when the process ended is done again; one in the journal is not.
        calls = label_calculators.calls(folder / "traces")
        return max(0, sum(calls.values()) - count - 4 * stops_in(folder))

    return Case(arguments, journal_lines, wasted, result, (*EXPECTED,))


def sample_case(shared: Path) -> Case:
    names = ("H2O", "NH3", "CH4", "CH3OH", "C2H6", "HCN", "H2CO", "C2H4", "C2H2", "CO2")
    write(shared / "molecules.xyz", [molecule(name) for name in names], format="extxyz")
    tasks = 2 * len(names)  # and as many clusters

    def arguments(folder: Path) -> list[str]:
        traces = folder / "traces"
        traces.mkdir(exist_ok=True)
        method = f"sample_calculators:ForceField{{folder: {traces}, seconds: 0.1}}"
        command = ["sample", str(shared / "molecules.xyz"), "--method", method, "--out", str(folder / "out")]
        return [*command, "--kinds", "minimum,bonds,contacts", "--set", "selection.distance=0", "--processes", "2"]

    def progress(folder: Path) -> int:
        path = folder / "out" / "journal.jsonl"
        *whole, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        return sum("frames" in json.loads(line) for line in whole)

    def result(folder: Path) -> str:
        frames: Any = read(folder / "out" / "frames.xyz", ":")  # their method names the folder of the traces
        return digest([(a.positions.tolist(), a.info["source"], a.info["kind"]) for a in frames])

    def wasted(folder: Path) -> int:
        # A calculator is made for each task, and one to see whether it can be. At a stop two tasks are under way, and
        # two may be done and not yet in the journal.
        stops = stops_in(folder)
        return max(0, len(list((folder / "traces").iterdir())) - tasks - (stops + 1) - 4 * stops)

    return Case(arguments, progress, wasted, result, (*EXPECTED,))


def stops_in(folder: Path) -> int:
    """How often the command was stopped in a folder."""
    path = folder / "stops"
    return int(path.read_text(encoding="utf-8")) if path.exists() else 0


def explore_case(shared: Path) -> Case:
    write(shared / "water.xyz", molecule("H2O"), format="extxyz")
    settings = {
        "initial_labels": 6,
        "labels_per_round": 2,
        "members": 2,
        "simulation_time": 0.04,
        "trajectories": 2,
        "sample_interval": 2,
        "threshold": 1e-4,
        "training": {"optimiser.steps": 60, "optimiser.checkpoint_every": 20},
    }
    (shared / "explore.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def arguments(folder: Path) -> list[str]:
        calls = folder / "calls"
        calls.mkdir(exist_ok=True)
        method = f"explore_calculators:CountedEMT{{folder: {calls}}}"
        command = ["explore", str(shared / "base" / POTENTIAL), str(shared / "water.xyz"), "--method", method]
        return [*command, "--budget", "8", "--settings", str(shared / "explore.yaml"), "--out", str(folder / "out")]

    def result(folder: Path) -> str:
        report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
        members = sorted((folder / "out").glob("committee-*.safetensors"))
        return digest(report, [read_header(path)["weights_sha256"] for path in members])

    def wasted(folder: Path) -> int:
        calls = explore_calculators.calls(folder / "calls")
        return max(0, sum(calls.values()) - len(calls) - 2 * stops_in(folder))

    return Case(arguments, journal_lines, wasted, result)


def md_case(shared: Path) -> Case:
    def arguments(folder: Path) -> list[str]:
        command = ["md", str(shared / "base" / POTENTIAL), "CH3OH", "--steps", str(STEPS["md"]), "--allow-broken"]
        return [*command, "--timestep", "0.1", "--state-every", "10", "--out", str(folder / "md")]

    def progress(folder: Path) -> int:
        path = folder / "md" / "state.npz"
        return State.load(path).step if path.exists() else 0

    def result(folder: Path) -> str:
        frames: Any = read(folder / "md" / "trajectory.traj", ":")
        positions = [(a.positions.tolist(), a.get_momenta().tolist()) for a in frames]
        return digest((folder / "md" / "log.csv").read_bytes(), positions)

    return Case(arguments, progress, nothing, result)


CASES: dict[str, Callable[[Path], Case]] = {
    "train": train_case,
    "label": label_case,
    "sample": sample_case,
    "explore": explore_case,
    "md": md_case,
}


def run_command(arguments: list[str], output: Path) -> None:
    """What a new process does: a command, as ``python -m ponita_ff`` runs it."""
    os.setsid()  # a process group of its own
    # Where this script itself runs in the background, Ctrl-C is ignored, and that is handed on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.modules["__main__"] = importlib.import_module("ponita_ff.__main__")  # what processes that label import
    main_command([*arguments], prog_name="ponita-ff")


def start(arguments: list[str], output: Path) -> ForkProcess:
    """A command in a process with everything loaded, since loading torch would take most of the time."""
    process = get_context("fork").Process(target=run_command, args=(arguments, output))
    process.start()
    return process


def finish(arguments: list[str], output: Path) -> float:
    """Run a command to its end: seconds."""
    began = time.monotonic()
    process = start(arguments, output)
    process.join()
    check_ended(process, arguments, output)
    return time.monotonic() - began


def check_ended(process: ForkProcess, arguments: list[str], output: Path) -> None:
    if process.exitcode != 0:
        text = output.read_text(encoding="utf-8")
        raise click.ClickException(f"{' '.join(arguments)} ended with {process.exitcode}:\n{text}")


def stop_after(arguments: list[str], output: Path, seconds: float, number: signal.Signals) -> int | None:
    """Begin a command and stop it: its exit code; None if it had ended before."""
    process = start(arguments, output)
    process.join(seconds)
    if process.exitcode is None and process.pid is not None:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        process.join(120)
        if process.exitcode != 0:
            return process.exitcode if process.exitcode is not None else sys.maxsize
    check_ended(process, arguments, output)
    return None


def measure(case: Case, work: Path, moments: int, generator: random.Random) -> Outcome:
    """Stop a command so many times, in as many folders as it takes."""
    whole = work / "whole"
    whole.mkdir()
    longest = finish(case.arguments(whole), work / "output")
    expected, outcome = case.result(whole), Outcome()
    attempt = 0
    while outcome.stops < moments:
        attempt += 1
        folder = work / f"stopped-{attempt}"
        folder.mkdir()
        run_stopped(case, folder, moments, longest, generator, outcome)
        if case.result(folder) != expected:
            outcome.equal = False
            outcome.notes.append(f"{folder.name}: another result")
        if case.wasted(folder):
            outcome.lost += case.wasted(folder)
            outcome.notes.append(f"{folder.name}: finished work was done again")
    return outcome


def run_stopped(
    case: Case, folder: Path, moments: int, longest: float, generator: random.Random, outcome: Outcome
) -> None:
    """Begin a command again and again until it ends."""
    before, ended = 0, False
    while not ended:
        if outcome.stops >= moments:
            finish(case.arguments(folder), folder / "output")
            return
        number = case.signals[outcome.stops % len(case.signals)]
        code = stop_after(case.arguments(folder), folder / "output", generator.uniform(0.05, longest), number)
        if code is None:
            ended = True
            continue
        output = (folder / "output").read_text(encoding="utf-8")
        outcome.stops += 1
        (folder / "stops").write_text(str(stops_in(folder) + 1), encoding="utf-8")
        outcome.codes[f"{number.name} {code}"] += 1
        if code not in EXPECTED[number] or "Traceback" in output:
            outcome.notes.append(f"{number.name}: exit code {code}: {output[-500:]}")
        after = case.progress(folder)
        if after < before:
            outcome.lost += 1
            outcome.notes.append(f"{number.name}: from {before} back to {after}")
        before = after


@click.command()
@click.option("--moments", default=20, show_default=True, type=click.IntRange(min=1), help="Stops of each command.")
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Only these commands.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(moments: int, only: tuple[str, ...], seed: int) -> None:
    """Print the table; the exit code is 1 if anything was lost or differs."""
    bad = False
    with tempfile.TemporaryDirectory(prefix="signals-") as name:
        shared = Path(name)
        finish([*train_case(shared).arguments(shared), "--set", "optimiser.steps=100"], shared / "output")
        (shared / "run").rename(shared / "base")
        click.echo("| command | stops | exit codes | lost | equal to uninterrupted |\n|---|---|---|---|---|")
        for command in only or tuple(CASES):
            work = shared / command
            work.mkdir()
            found = measure(CASES[command](shared), work, moments, random.Random(f"{seed} {command}"))
            codes = ", ".join(f"{code}: {count}" for code, count in sorted(found.codes.items()))
            equal = "yes" if found.equal else "NO"
            click.echo(f"| {command} | {found.stops} | {codes} | {found.lost} | {equal} |")
            for note in found.notes:
                click.echo(f"  {note}", err=True)
            bad = bad or bool(found.notes)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
