"""``ponita-ff audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command, UserErrorExit2

if TYPE_CHECKING:
    from ponita_ff.units import Units


@click.command("audit", cls=Command, mistake=UserErrorExit2)
@click.argument("potentials", nargs=-1, required=True, metavar="POTENTIAL...")
@click.option("--data", type=options.PATH, help="Labelled frames, as for evaluate.")
@click.option("--structure", help="A file that ASE reads, or a molecule such as CH3CH2OH.  [default: of the frames]")
@options.out_folder("audit-out", "audit.html and audit.json")
@options.settings_file
@options.set_values
@click.option("--quick", is_flag=True, help="Do short runs, fewer points: under a minute for a small molecule.")
@click.option("--only", help="Do only these checks, joined by commas, e.g. rotations,nve.")
@click.option("--temperature", type=float, help="Temperature of the training data, K.  [default: 300]")
@click.option("--nve-ps", type=float, help="Length of each NVE run, ps.  [default: 20]")
@click.option("--nvt-ps", type=float, help="Length of each NVT run, ps.  [default: 20]")
@click.option("--strict", is_flag=True, help="Count what was not judged, or skipped, as failed.")
@options.units
@options.device()
@options.dtype()
@options.threads
@options.force
@options.progress
@options.common
@click.pass_context
def command(
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
    units: Units | None,
    device: str,
    dtype: str | None,
    force: bool,
    progress: bool,
) -> None:
    """Check the physics of potentials and write one page with all of them side by side, and its numbers as JSON.

    A POTENTIAL is a shipped name, a file, several of these joined by commas (a committee), or the Python path of any
    other ASE calculator, with keyword arguments if need be. Exit code: 0 if no limit is broken, 1 if one is, 2 for a
    mistake in the call. What could not be judged, such as the energy drift of a run as short as that of --quick, is
    listed as "not judged" on the page and here, and does not change the exit code; with --strict it counts as broken.

    \b
    ponita-ff audit ethanol-rmd17 --structure CH3CH2OH --quick
    ponita-ff audit mine.safetensors ase.calculators.emt:EMT --data frames.xyz
    ponita-ff audit 'ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}' --structure argon.xyz
    """
    from ponita_ff.audit import QUICK, AuditSettings, write_report
    from ponita_ff.audit import audit as run_audit
    from ponita_ff.audit.calculators import choose_structure, make_calculators
    from ponita_ff.audit.page import FILES
    from ponita_ff.data import read_frames
    from ponita_ff.outputs import check_outputs
    from ponita_ff.settings import with_changes

    inputs = options.input_files(*potentials, data, structure, settings_file)
    check_outputs([out / name for name in FILES], inputs, force)
    values = options.read_overrides(changes, temperature=temperature, nve__picoseconds=nve_ps, nvt__picoseconds=nvt_ps)
    layers = [
        QUICK if quick else {},
        options.read_settings_file(settings_file),
        with_changes({}, values),
    ]
    settings = AuditSettings.make(*layers, source=str(settings_file or "command line"))
    frames = None if data is None else read_frames(data, units=units)
    atoms = choose_structure(structure, frames)
    calculators = make_calculators(potentials, device, dtype)
    checks = None if only is None else [check.strip() for check in only.split(",")]
    report = run_audit(calculators, atoms, frames, settings, checks, progress=progress)
    page, numbers = write_report(report, out)
    for line in report.inconclusive:
        click.echo(f"{'not judged' if line in report.not_judged else 'skipped':<12}  {line}")
    for line in report.failures:
        click.echo(f"FAILED        {line}")
    click.echo(f"page: {page}\nnumbers: {numbers}")
    context.exit(1 if report.failures or (strict and report.inconclusive) else 0)
