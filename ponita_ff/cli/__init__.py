"""The command ``ponita-ff``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# On a machine that others use too, OpenMP's spinning threads slow torch many times over, and threads that sleep at once
# cost as much on a quiet one where waking is slow: so they spin for some microseconds (GNU's OpenMP) and then sleep.
# This must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import click

__all__ = ["main"]

PATH = click.Path(path_type=Path)


@contextmanager
def _plain_errors(
    stopped: str = "stopped; a training run goes on from its last checkpoint with --resume",
) -> Iterator[None]:
    """A user's mistake ends in one clear sentence, not in a traceback; anything else is a bug and shows one."""
    from ponita_ff.data.download import DownloadError

    try:
        yield
    except (ValueError, OSError, FloatingPointError, DownloadError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException(stopped) from None


def _set_threads(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None:
        import torch

        torch.set_num_threads(value)


def _threads(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        callback=_set_threads,
        expose_value=False,
        help="CPU threads to use (default: all cores).",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ponita-ff")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
def main(quiet: bool) -> None:
    """PONITA force fields for ASE."""
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s")


def _overrides(settings: tuple[str, ...], duration: str | None) -> dict[str, Any]:
    from ponita_ff.settings import parse_assignments

    overrides = parse_assignments(settings)
    if duration is not None:
        overrides["optimiser.time"] = duration
    return overrides


@main.command()
@click.argument("config", type=PATH, required=False)
@click.option("--out", type=PATH, help="Folder for the run's results.")
@click.option("--resume", type=PATH, help="Folder of a stopped run to continue.")
@click.option("--time", "duration", help="Wall-clock budget that the schedule fits itself to: 30m, 2h, …")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace a setting of the file.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@_threads
def train(
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    duration: str | None,
    settings: tuple[str, ...],
    no_progress: bool,
) -> None:
    """Train a potential as CONFIG, a YAML file, says.

    \b
    ponita-ff train md_examples/quickstart.yaml --out run
    ponita-ff train --resume run
    """
    from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
    from ponita_ff.training.run import train as run_training

    with _plain_errors():
        folder = resume or out
        if folder is None:
            raise click.UsageError("give --out DIR for a new run, or --resume DIR to continue one")
        if resume is not None:
            if not (resume / "config.yaml").is_file():
                raise ValueError(f"nothing to resume: {resume} holds no config.yaml of a run")
            config = resume / "config.yaml"
        if config is None:
            raise click.UsageError("give the CONFIG of a new run")
        values = TrainConfig.from_yaml(config, _overrides(settings, duration))
        run_training(values, folder, resume=resume is not None, progress=not no_progress)
        click.echo(f"potential: {folder / POTENTIAL_FILE}")


@main.command()
@click.argument("base")
@click.argument("data", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Folder for the run's results, or of a stopped run.")
@click.option("--test", type=PATH, multiple=True, help="Labelled frames for the errors; may be given several times.")
@click.option("--replay", type=PATH, multiple=True, help="Frames of what BASE knows; default: those beside its file.")
@click.option("--no-replay", is_flag=True, help="Train on the new frames alone.")
@click.option("--frames", type=click.IntRange(min=1), help="Use only so many of DATA, drawn at random.")
@click.option("--time", "duration", help="Wall-clock budget that the schedule fits itself to: 30m, 2h, …")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace a setting.")
@click.option("--resume", is_flag=True, help="Continue a stopped run in --out.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@_threads
def finetune(
    base: str,
    data: tuple[Path, ...],
    out: Path,
    test: tuple[Path, ...],
    replay: tuple[Path, ...],
    no_replay: bool,
    frames: int | None,
    duration: str | None,
    settings: tuple[str, ...],
    resume: bool,
    no_progress: bool,
) -> None:
    """Go on from the potential BASE with the labelled frames of DATA: a new molecule, element or level of theory.

    \b
    ponita-ff finetune organic-rmd17 new.xyz --out run
    ponita-ff finetune organic-rmd17 new.xyz --out run --set optimiser.trains=low-rank
    """
    from ponita_ff.training.config import POTENTIAL_FILE, TrainConfig
    from ponita_ff.training.finetune import finetune as run_finetuning
    from ponita_ff.training.finetune import finetune_config

    with _plain_errors():
        if no_replay and replay:
            raise click.UsageError("give --replay or --no-replay, not both")
        if resume:
            config = TrainConfig.from_yaml(out / "config.yaml", _overrides(settings, duration))
        else:
            files = replay if replay or no_replay else None
            config = finetune_config(base, data, test, files, frames, _overrides(settings, duration))
        changes = run_finetuning(config, out, resume, progress=not no_progress)
        click.echo(f"{'frames':<24}{'force MAE (meV/Å)':>26}{'energy MAE (meV)':>26}")
        for c in changes:
            forces = f"{1e3 * c.forces_before:.1f} -> {1e3 * c.forces_after:.1f}"
            energy = f"{1e3 * c.energy_before:.1f} -> {1e3 * c.energy_after:.1f}"
            click.echo(f"{f'{c.name} ({c.frames})':<24}{forces:>26}{energy:>26}")
        click.echo(f"potential: {out / POTENTIAL_FILE}")


@main.command()
@click.argument("potential")
@click.option("--json", "as_json", is_flag=True, help="The whole header as JSON.")
def info(potential: str, as_json: bool) -> None:
    """What a potential file is, what it was trained on, how wrong it is."""
    from ponita_ff.potential.file import find_potential, read_header

    with _plain_errors():
        path = find_potential(potential)
        header = read_header(path)
        click.echo(json.dumps(header, indent=2) if as_json else _describe(path, header))


def _describe(path: Path, header: dict[str, Any]) -> str:
    from ase.data import chemical_symbols

    from ponita_ff.potential.file import load_potential

    metadata, network = header["metadata"], header["network"]
    references = load_potential(path).reference_energies.tolist()
    lines = [
        f"file              {path} (version {header['version']})",
        f"name              {metadata.get('name', '-')}",
        f"form              {header['form']}, {header['dtype']}",
        f"network           {', '.join(f'{k}={v}' for k, v in network.items() if k not in ('form', 'cutoff'))}",
        f"cutoff            {header['cutoff'] or 'none'}" + (" Å" if header["cutoff"] else ""),
        f"units             {', '.join(f'{k}: {v}' for k, v in header['units'].items())}",
        "reference (eV)    "
        + ", ".join(f"{chemical_symbols[z]} {e:.6f}" for z, e in zip(header["species"], references, strict=True)),
        f"  from            {metadata.get('reference_energies_from', '-')}",
    ]
    for key, value in metadata.get("data", {}).items():
        lines.append(f"data {key:<13}{value}")
    for part, errors in metadata.get("errors", {}).items():
        lines.append(
            f"errors {part:<11}energy MAE {1e3 * errors['energy_mae']:.3f} meV, "
            f"force MAE {1e3 * errors['forces_mae']:.3f} meV/Å ({errors['frames']} frames)"
        )
    lines += [
        f"made with         {', '.join(f'{k} {v}' for k, v in header['versions'].items())}",
        f"weights SHA-256   {header['weights_sha256']}",
        f"file SHA-256      {header['sha256']} (header and weights)",
    ]
    return "\n".join(lines)


@main.command()
@click.argument("structures", type=PATH)
@click.option("--method", required=True, help="What labels: gfn2-xtb, pbe/def2-svp, package.module:Calculator, …")
@click.option("--budget", type=click.IntRange(min=1), required=True, help="Labels in all.")
@click.option("--out", type=PATH, required=True, help="Folder of the exploration, new or stopped.")
@click.option("--base", required=True, help="The potential that committees start from.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="That label.")
@click.option("--charge", type=int, help="Of every frame (0).")
@click.option("--multiplicity", type=click.IntRange(min=1), help="2S + 1 of every frame (1).")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace a setting of the exploration.")
@click.option("--no-progress", is_flag=True, help="No progress bars.")
@_threads
def explore(
    structures: Path,
    method: str,
    budget: int,
    out: Path,
    base: str,
    processes: int,
    charge: int | None,
    multiplicity: int | None,
    settings: tuple[str, ...],
    no_progress: bool,
) -> None:
    """Learn STRUCTURES (a file) by active learning: dynamics, labels where a committee disagrees, training, again.

    \b
    ponita-ff explore molecule.xyz --base organic-rmd17 --method gfn2-xtb --budget 100 --out explored
    The same command goes on where a stopped one was; ponita_ff/explore/settings.py has all settings.
    """
    from ponita_ff.explore import ExploreSettings
    from ponita_ff.explore import explore as run_exploration
    from ponita_ff.labels.structures import read_structures

    with _plain_errors():
        values = {"method": method, "budget": budget, "processes": processes, **_overrides(settings, None)}
        values |= {"charge": charge, "multiplicity": multiplicity}
        wanted = ExploreSettings.from_mapping(values)
        found = run_exploration(read_structures(structures)[1], base, wanted, out, progress=not no_progress)
        click.echo(f"ended: {found.outcome} ({found.labels} labels, {len(found.rounds)} rounds)")
        click.echo(f"report: {out / 'report.json'}, {out / 'report.png'}")
        click.echo(f"committee: {' '.join(str(member) for member in found.members)}")


@main.command()
@click.argument("members", nargs=-1, required=True)
@click.option("--data", type=PATH, required=True, help="Labelled frames that no member was trained on.")
@click.option("--out", type=PATH, required=True, help="The calibration, a JSON file.")
@_threads
def calibrate(members: tuple[str, ...], data: Path, out: Path) -> None:
    """How a committee's spread compares with its errors: factors that PonitaCalculator(calibration=…) applies."""
    from ponita_ff.data import read_frames
    from ponita_ff.potential.file import load_potential
    from ponita_ff.uncertainty import NORMAL_SHARES
    from ponita_ff.uncertainty import calibrate as run_calibration

    with _plain_errors():
        found = run_calibration([load_potential(member) for member in members], read_frames(data))
        found.save(out)
        (one, two), (normal_one, normal_two) = found.forces_within, NORMAL_SHARES
        click.echo(
            f"factors: energy {found.energy:.2f}, forces {found.forces:.2f} ({found.frames} frames)\n"
            f"force errors within 1 and 2 deviations: {one:.1%}, {two:.1%} (normal: {normal_one:.1%}, "
            f"{normal_two:.1%})\n"
            f"rank correlation of an atom's force error and deviation: {found.forces_rank_correlation:.2f}\n"
            f"calibration: {out}"
        )


@main.command()
@click.argument("potential")
@click.argument("data", type=PATH)
@click.option("--out", type=PATH, help="Folder for errors.json and parity.png.")
@click.option("--energy-unit", help="Where the file does not say: eV, kcal/mol, Hartree, …")
@click.option("--length-unit", help="Where the file does not say: Angstrom, Bohr, …")
@click.option("--batch-size", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--backend", default="auto", show_default=True, help="auto, native, compiled or eager.")
@_threads
def evaluate(
    potential: str,
    data: Path,
    out: Path | None,
    energy_unit: str | None,
    length_unit: str | None,
    batch_size: int,
    backend: str,
) -> None:
    """Errors of a potential on labelled frames."""
    from tqdm import tqdm

    from ponita_ff.data import Units, read_frames
    from ponita_ff.files import write_json
    from ponita_ff.potential.file import load_potential
    from ponita_ff.training.evaluate import evaluate as run_evaluation
    from ponita_ff.training.plots import plot_parity

    with _plain_errors():
        if (energy_unit is None) != (length_unit is None):
            raise click.UsageError("give --energy-unit and --length-unit together")
        units = Units(energy_unit, length_unit) if energy_unit and length_unit else None
        model = load_potential(potential)
        frames = read_frames(data, units=units)
        with tqdm(total=len(frames), unit="frame", desc="evaluating") as bar:

            def progress(done: int) -> None:
                bar.update(done - bar.n)

            result = run_evaluation(model, frames, batch_size, progress, backend)
        errors = result.errors.as_dict()
        click.echo(f"frames                {result.errors.frames}")
        click.echo(f"energy MAE            {1e3 * result.errors.energy_mae:.3f} meV")
        click.echo(f"energy RMSE           {1e3 * result.errors.energy_rmse:.3f} meV")
        click.echo(f"energy MAE per atom   {1e3 * result.errors.energy_mae_per_atom:.4f} meV")
        click.echo(f"force MAE             {1e3 * result.errors.forces_mae:.3f} meV/Å")
        click.echo(f"force RMSE            {1e3 * result.errors.forces_rmse:.3f} meV/Å")
        for symbol, value in result.errors.forces_mae_by_element.items():
            click.echo(f"force MAE of {symbol:<8} {1e3 * value:.3f} meV/Å")
        for formula, found in result.errors.by_formula.items():
            click.echo(
                f"{formula:<21} energy MAE {1e3 * found.energy_mae:.3f} meV, force MAE {1e3 * found.forces_mae:.3f} "
                f"meV/Å ({found.frames} frames)"
            )
        if result.errors.stress_mae is not None:
            click.echo(f"stress MAE            {1e3 * result.errors.stress_mae:.4f} meV/Å³")
        if out is not None:
            write_json(out / "errors.json", errors)
            plot_parity(result, f"{potential} on {data.name}", out / "parity.png")


@main.command()
@click.argument("potential")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Instead of the file's own.")
def package(potential: str, dtype: str | None) -> None:
    """Compile POTENTIAL ahead of time for this machine and systems of any size: takes a minute or two.

    Leaves a package (.pt2) beside the potential's file, where the calculator's backend "compiled" finds it. It must be
    made anew after an update of torch and on another machine.
    """
    import torch

    from ponita_ff.backends.ahead_of_time import compile_ahead_of_time, compiled_path
    from ponita_ff.potential.file import find_potential, load_potential

    with _plain_errors():
        path = find_potential(potential)
        loaded = load_potential(path)
        compile_ahead_of_time(loaded if dtype is None else loaded.to(getattr(torch, dtype)), compiled_path(path))
        click.echo(f"package: {compiled_path(path)}")


class _Mistake(click.ClickException):
    exit_code = 2


@contextmanager
def _mistakes_exit_with_2() -> Iterator[None]:
    """For commands whose exit code 1 is a finding: a user's mistake is 2."""
    try:
        with _plain_errors():
            yield
    except click.UsageError:
        raise
    except click.ClickException as error:
        raise _Mistake(error.message) from error


@main.command()
@click.argument("potentials", nargs=-1, required=True, metavar="POTENTIAL...")
@click.option("--data", type=PATH, help="Labelled frames, as for evaluate.")
@click.option("--structure", help="File that ASE reads, or a molecule such as CH3CH2OH. Default: of the frames.")
@click.option("--out", type=PATH, default=Path("audit-out"), show_default=True, help="For audit.html, audit.json.")
@click.option("--settings", "settings_file", type=PATH, help="YAML file; ponita_ff/audit/settings.py has all fields.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Replace a setting, e.g. nve.limit=1.")
@click.option("--quick", is_flag=True, help="Short runs, fewer points: under a minute for a small molecule.")
@click.option("--only", help="Only these checks, joined by commas, e.g. rotations,nve.")
@click.option("--temperature", type=float, help="Of the training data, K. [default: 300]")
@click.option("--nve-ps", type=float, help="Length of each NVE run, ps. [default: 20]")
@click.option("--nvt-ps", type=float, help="Length of each NVT run, ps. [default: 20]")
@click.option("--strict", is_flag=True, help="A check that cannot be done counts as failed.")
@click.option("--energy-unit", help="Of the data, where the file does not say: eV, kcal/mol, Hartree, …")
@click.option("--length-unit", help="Of the data, where the file does not say: Angstrom, Bohr, …")
@click.option("--device", default="auto", show_default=True, help="Of our own potentials.")
@click.option("--dtype", help="Of our own potentials: float32, float64. [default: the file's own]")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@_threads
@click.pass_context
def audit(
    context: click.Context,
    potentials: tuple[str, ...],
    data: Path | None,
    structure: str | None,
    out: Path,
    settings_file: Path | None,
    changes: tuple[str, ...],
    quick: bool,
    only: str | None,
    temperature: float | None,
    nve_ps: float | None,
    nvt_ps: float | None,
    strict: bool,
    energy_unit: str | None,
    length_unit: str | None,
    device: str,
    dtype: str | None,
    no_progress: bool,
) -> None:
    """Physical health of potentials, side by side on one page.

    A POTENTIAL is a shipped name, a file, several of these joined by commas (a committee), or the Python path of any
    other ASE calculator, with keyword arguments if need be. Exit code: 0 if all limits hold, 1 if one is broken, 2 for
    a mistake in the call.

    \b
    ponita-ff audit ethanol-rmd17 --structure CH3CH2OH --quick
    ponita-ff audit mine.safetensors ase.calculators.emt:EMT --data frames.xyz
    ponita-ff audit 'ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}' --structure argon.xyz
    """
    from ponita_ff.audit import QUICK, AuditSettings, write_report
    from ponita_ff.audit import audit as run_audit
    from ponita_ff.audit.calculators import choose_structure, make_calculators
    from ponita_ff.audit.settings import read_settings
    from ponita_ff.data import Units, read_frames
    from ponita_ff.settings import with_changes

    with _mistakes_exit_with_2():
        if (energy_unit is None) != (length_unit is None):
            raise click.UsageError("give --energy-unit and --length-unit together")
        named = {"temperature": temperature, "nve.picoseconds": nve_ps, "nvt.picoseconds": nvt_ps}
        values = {name: value for name, value in named.items() if value is not None} | _overrides(changes, None)
        layers = [
            QUICK if quick else {},
            read_settings(settings_file) if settings_file else {},
            with_changes({}, values),
        ]
        settings = AuditSettings.make(*layers, source=str(settings_file or "command line"))
        units = Units(energy_unit, length_unit) if energy_unit and length_unit else None
        frames = None if data is None else read_frames(data, units=units)
        atoms = choose_structure(structure, frames)
        calculators = make_calculators(potentials, device, dtype)
        checks = None if only is None else [check.strip() for check in only.split(",")]
        report = run_audit(calculators, atoms, frames, settings, checks, progress=not no_progress)
        page, numbers = write_report(report, out)
    for line in report.inconclusive:
        click.echo(f"inconclusive  {line}")
    for line in report.failures:
        click.echo(f"FAILED        {line}")
    click.echo(f"page: {page}\nnumbers: {numbers}")
    context.exit(1 if report.failures or (strict and report.inconclusive) else 0)


@main.command()
@click.argument("frames", type=PATH)
@click.option("--method", required=True, help="gfn2-xtb, FUNCTIONAL/BASIS, or package.module:Calculator.")
@click.option("--out", type=PATH, required=True, help="Labelled file, .xyz; its journal goes beside it.")
@click.option("--charge", type=int, help="Of every frame. [default: 0]")
@click.option("--multiplicity", type=click.IntRange(min=1), help="2S + 1 of every frame. [default: 1]")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Frames at a time.")
@click.option("--threads-per-process", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--retry-failed", is_flag=True, help="Try the frames again that failed before.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def label(
    frames: Path,
    method: str,
    out: Path,
    charge: int | None,
    multiplicity: int | None,
    processes: int,
    threads_per_process: int,
    retry_failed: bool,
    no_progress: bool,
) -> None:
    """Label FRAMES, any file that ASE reads, with energies and forces.

    Methods: gfn2-xtb, gfn1-xtb, ipea1-xtb (tblite; crystals at the Γ point), FUNCTIONAL/BASIS (PySCF, molecules), or
    the Python path of any ASE calculator. If it was stopped, the same command goes on. Exit code: 0 if at least one
    frame has labels.

    \b
    ponita-ff label frames.xyz --method gfn2-xtb --out labelled.xyz --processes 4
    ponita-ff label frames.xyz --method pbe/def2-svp --charge -1 --out labelled.xyz
    ponita-ff label frames.xyz --method ase.calculators.emt:EMT --out labelled.xyz
    """
    from ponita_ff.labels import journal_path, label_frames

    kept = f"stopped; the labels so far are in {journal_path(out)}, and the same command goes on from there"
    with _plain_errors(kept):
        result = label_frames(
            frames,
            method,
            out,
            charge=charge,
            multiplicity=multiplicity,
            processes=processes,
            threads_per_process=threads_per_process,
            retry_failed=retry_failed,
            progress=not no_progress,
        )
        if result.failures:
            _tell_failures(list(result.failures.values()), result.frames, result.journal)
        if result.path is None:
            raise ValueError("no frame could be labelled")
        click.echo(f"labelled: {result.labelled} of {result.frames} frames in {result.path}")


def _tell_failures(reasons: list[str], frames: int, journal: Path) -> None:
    shown = 3
    click.echo(f"Warning: {len(reasons)} of {frames} frames have no labels:", err=True)
    for reason in reasons[:shown]:
        click.echo(f"  {reason}", err=True)
    if len(reasons) > shown:
        click.echo(f"  … and {len(reasons) - shown} more", err=True)
    click.echo(f'All reasons are in {journal} ("failed"); --retry-failed tries these frames again.', err=True)


@main.command("import")
@click.argument("checkpoint", type=PATH)
@click.argument("potential", type=PATH)
@click.option("--ori-grid", type=PATH, help="Grid of the training run (.npy or .npz) where the file holds none.")
@click.option("--radius", type=float, help="Cutoff in Å where the file does not tell it.")
@click.option("--species", help="Chemical symbols that the network was trained on, e.g. H,C,O (default: Z = 1 to 8).")
@click.option("--scale", default=1.0, show_default=True, help="eV per unit of the network's output.")
@click.option("--energy-per-atom", default=0.0, show_default=True, help="eV added for every atom.")
def import_(
    checkpoint: Path,
    potential: Path,
    ori_grid: Path | None,
    radius: float | None,
    species: str | None,
    scale: float,
    energy_per_atom: float,
) -> None:
    """Make a POTENTIAL file (.safetensors) of a CHECKPOINT of the published PONITA code.

    No code in the checkpoint is run. The authors save neither grid nor scale with the weights: give them here.
    """
    from ase.data import atomic_numbers

    from ponita_ff.potential.file import save_potential
    from ponita_ff.potential.import_published import import_checkpoint

    with _plain_errors():
        symbols = [symbol.strip() for symbol in species.split(",")] if species else None
        unknown = [symbol for symbol in symbols or () if symbol not in atomic_numbers]
        if unknown:
            raise click.UsageError(f"--species: {', '.join(unknown)} is no chemical symbol; give e.g. H,C,O")
        imported = import_checkpoint(
            checkpoint,
            None if radius is None else {"radius": radius},
            ori_grid=ori_grid,
            species=None if symbols is None else sorted(atomic_numbers[symbol] for symbol in symbols),
            scale=scale,
            energy_per_atom=energy_per_atom,
        )
        save_potential(imported, potential)
        click.echo(f"potential: {potential}")


@main.command()
@click.argument("dataset", type=click.Choice(["rmd17", "md22"]))
@click.argument("molecule")
@click.option("--out", type=PATH, default=Path("data"), show_default=True, help="Folder for the files.")
def download(dataset: str, molecule: str, out: Path) -> None:
    """Fetch a public data set; continues a broken download and verifies it."""
    from ponita_ff.data.download import download as fetch

    with _plain_errors():
        click.echo(f"ready: {fetch(dataset, molecule, out)}")
