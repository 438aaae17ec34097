"""``ponita-ff label``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

#: Reasons of failed frames that are shown.
_SHOWN = 3


@click.command(
    "label",
    cls=Command,
    stopped="stopped; the labels so far are in {out}.journal.jsonl, and the same command goes on from there",
)
@click.argument("frames", type=options.PATH)
@click.option("--method", required=True, help="gfn2-xtb, FUNCTIONAL/BASIS, ani-2x, so3lr, package.module:Calculator.")
@click.option(
    "--weights",
    type=options.PATH,
    help="Folder of ani-2x's weights in NeuroChem's format, from somebody whom you trust: torchani evaluates text of "
    "its .nnf files as Python.  [default: torchani downloads them]",
)
@click.option("--out", type=options.PATH, required=True, help="Labelled file, .xyz; its journal goes beside it.")
@click.option("--charge", type=int, help="Of every frame.  [default: 0]")
@click.option("--multiplicity", type=click.IntRange(min=1), help="2S + 1 of every frame.  [default: 1]")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Frames at a time.")
@click.option(
    "--threads-per-process", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads of each."
)
@click.option(
    "--max-spread",
    type=click.FloatRange(min=0, min_open=True),
    help="eV/Å, for ensembles: frames with an atom whose force differs more between the members go, without labels, to "
    "a file of their own, OUT with .disagreed before its ending.",
)
@click.option("--retry-failed", is_flag=True, help="Try the frames again that failed before.")
@options.force
@options.progress
@options.common
def command(
    frames: Path,
    method: str,
    weights: Path | None,
    out: Path,
    charge: int | None,
    multiplicity: int | None,
    processes: int,
    threads_per_process: int,
    max_spread: float | None,
    retry_failed: bool,
    force: bool,
    progress: bool,
) -> None:
    """Compute energies and forces of FRAMES, any file that ASE reads, by a reference method.

    Writes extended XYZ. Methods: gfn2-xtb, gfn1-xtb, ipea1-xtb (tblite; crystals at the Γ point), FUNCTIONAL/BASIS
    (PySCF, molecules; append /cartesian or /density-fitting), ani-2x (torchani) and so3lr (so3krates-torch) for neutral
    closed-shell organic molecules, or the Python path of any ASE calculator. ani-2x is an ensemble of eight networks:
    the file has the spread over them, energy_spread (eV) and forces_spread (eV/Å, for each atom). If it was stopped,
    the same command goes on. Exit code: 0 if at least one frame has labels.

    \b
    ponita-ff label frames.xyz --method gfn2-xtb --out labelled.xyz --processes 4
    ponita-ff label frames.xyz --method pbe/def2-svp --charge -1 --out labelled.xyz
    ponita-ff label frames.xyz --method ase.calculators.emt:EMT --out labelled.xyz
    ponita-ff label frames.xyz --method ani-2x --max-spread 0.3 --out labelled.xyz
    ponita-ff label labelled.disagreed.xyz --method wb97x/6-31g* --out dft.xyz
    """
    from ponita_ff.labels import label_frames, with_weights

    if weights is not None:
        method = with_weights(method, weights)
    result = label_frames(
        frames,
        method,
        out,
        charge=charge,
        multiplicity=multiplicity,
        processes=processes,
        threads_per_process=threads_per_process,
        max_spread=max_spread,
        retry_failed=retry_failed,
        force=force,
        progress=progress,
    )
    if result.failures:
        _print_failures(list(result.failures.values()), result.frames, result.journal)
    if result.path is None and not result.disagreed:
        raise ValueError("no frame could be labelled")
    where = f" in {result.path}" if result.path else ""
    click.echo(f"labelled: {result.labelled} of {result.frames} frames{where}")
    if result.disagreed:
        click.echo(
            f"disagreed: {result.disagreed} of {result.frames} frames have a force with a spread above {max_spread:g} "
            f"eV/Å; they are in {result.disagreed_path}, without labels"
        )


def _print_failures(reasons: list[str], frames: int, journal: Path) -> None:
    click.echo(f"Warning: {len(reasons)} of {frames} frames have no labels:", err=True)
    for reason in reasons[:_SHOWN]:
        click.echo(f"  {reason}", err=True)
    if len(reasons) > _SHOWN:
        click.echo(f"  … and {len(reasons) - _SHOWN} more", err=True)
    click.echo(f'All reasons are in {journal} ("failed"); --retry-failed tries these frames again.', err=True)
