"""``ponita-ff relax``."""

from __future__ import annotations

from pathlib import Path

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("relax", cls=Command)
@click.argument("potential")
@click.argument("structure", required=False)
@options.out_folder("relax-out", "the relaxed structure, trajectory, log and picture")
@click.option("--fmax", type=_POSITIVE, default=0.01, show_default=True, help="Largest force to reach, eV/Å.")
@click.option("--steps", type=click.IntRange(min=1), default=500, show_default=True, help="Largest number of steps.")
@click.option(
    "--optimiser", type=click.Choice(["BFGS", "LBFGS", "FIRE2"]), default="BFGS", show_default=True, help="Of ASE."
)
@click.option("--cell", is_flag=True, help="Relax the cell, too.")
@click.option("--allow-broken", is_flag=True, help="Accept a molecule whose bonds break.")
@click.option("--pressure", type=float, default=0.0, show_default=True, help="On the cell, GPa.")
@options.strict
@options.device()
@options.dtype("float64")
@options.backend()
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    structure: str | None,
    out: Path,
    fmax: float,
    steps: int,
    optimiser: str,
    cell: bool,
    allow_broken: bool,
    pressure: float,
    strict: bool,
    device: str,
    dtype: str,
    backend: str,
    force: bool,
    progress: bool,
) -> None:
    """Relax STRUCTURE and write the relaxed one (relaxed.xyz), with trajectory, log (CSV) and a picture.

    STRUCTURE is a file that ASE reads, or a molecule such as CH3CH2OH; without it, the one that a shipped potential
    comes with. A molecule without constraints neither moves nor turns as a whole meanwhile. Exit code: 0 if the forces
    came below --fmax and no bond of a molecule changed by more than 0.5 Å, else 1; the files are written all the same.

    \b
    ponita-ff relax ethanol-rmd17 CH3CH2OH --fmax 0.001
    ponita-ff relax mine.safetensors crystal.cif --cell --out relaxed
    """
    from ponita_ff.calculator import PonitaCalculator
    from ponita_ff.outputs import check_outputs
    from ponita_ff.simulate.relax import FILES, relax_structure
    from ponita_ff.simulate.structures import read_structure

    if pressure and not cell:
        raise click.UsageError("--pressure acts on the cell only: give --cell, too")
    check_outputs([out / name for name in FILES], options.input_files(structure, potential), force)
    atoms = read_structure(structure, potential)
    atoms.calc = PonitaCalculator(potential, device=device, dtype=dtype, backend=backend, strict=strict)
    found = relax_structure(atoms, out, optimiser, fmax, steps, cell, pressure, progress=progress)
    click.echo(f"energy            {found.energy[-1]:.6f} eV ({found.energy[-1] - found.energy[0]:+.6f} eV)")
    click.echo(f"largest force     {found.fmax[-1]:.6f} eV/Å after {found.steps} steps")
    if found.unprojected_fmax is not None and found.unprojected_fmax > 1.1 * found.fmax[-1]:
        click.echo(f"with net torque   {found.unprojected_fmax:.6f} eV/Å: the energy depends a little on orientation")
    if cell:
        click.echo(f"volume            {found.volume[-1]:.3f} Å³ (before: {found.volume[0]:.3f} Å³)")
    click.echo(f"training data     {atoms.calc.domain_watch.report()}")
    click.echo(f"results           {out}/: relaxed.xyz, relax.traj, log.csv, relax.png")
    if found.broken and not allow_broken:
        raise ValueError(
            f"broken: {found.broken}, so that this is another molecule than before; check the structure that it began "
            "from, and whether the potential knows such molecules; --allow-broken accepts it"
        )
    if not found.converged:
        raise ValueError(
            f"not converged: after {found.steps} steps the largest force is {found.fmax[-1]:.4f} eV/Å, not {fmax:g}; "
            "give more --steps, a larger --fmax, or another --optimiser"
        )
