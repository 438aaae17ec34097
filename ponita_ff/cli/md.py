"""``ponita-ff md``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

if TYPE_CHECKING:
    from ponita_ff.simulate.md import MdResult, MdSettings

_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("md", cls=Command, stopped="stopped; the same command goes on from the last saved state")
@click.argument("potential")
@click.argument("structure", required=False)
@options.out_folder("md-out", "the run, new or stopped")
@click.option(
    "--ensemble",
    type=click.Choice(["nve", "nvt", "npt"]),
    default="nvt",
    show_default=True,
    help="Keep energy, temperature, or temperature and pressure (cells).",
)
@click.option(
    "--thermostat",
    type=click.Choice(["langevin", "bussi"]),
    default="langevin",
    show_default=True,
    help="Thermostat of nvt: Langevin, or Bussi (stochastic velocity rescaling).",
)
@click.option(
    "--temperature",
    type=_POSITIVE,
    default=300.0,
    show_default=True,
    help="Temperature, K; nve: of the initial velocities (about half if started at a minimum).",
)
@click.option("--timestep", type=_POSITIVE, default=0.5, show_default=True, help="fs.")
@click.option("--ps", type=_POSITIVE, help="Length of the run, ps.  [default: 10]")
@click.option("--steps", type=click.IntRange(min=1), help="Length of the run in steps, instead of --ps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of velocities and thermostat.")
@click.option("--keep-velocities", is_flag=True, help="Start with the velocities of STRUCTURE.")
@click.option(
    "--thermostat-time", type=_POSITIVE, default=100.0, show_default=True, help="Time constant, fs (1/friction)."
)
@click.option("--pressure", type=float, default=1e-4, show_default=True, help="Of npt, GPa.")
@click.option("--barostat-time", type=_POSITIVE, default=1000.0, show_default=True, help="Time constant, fs.")
@click.option("--flexible-cell", is_flag=True, help="Of npt: change lengths and angles, not only the volume.")
@click.option("--log-every", type=_POSITIVE, default=5.0, show_default=True, help="fs between rows of the log.")
@click.option("--frame-every", type=_POSITIVE, default=10.0, show_default=True, help="fs between frames.")
@click.option("--state-every", type=_POSITIVE, default=250.0, show_default=True, help="fs between saved states.")
@click.option(
    "--trajectory", type=click.Choice(["traj", "xyz"]), default="traj", show_default=True, help="Format of the frames."
)
@click.option("--bond-limit", type=_POSITIVE, default=0.5, show_default=True, help="Å; beyond, a bond is broken.")
@click.option("--allow-broken", is_flag=True, help="Go on when a bond breaks.")
@click.option("--calibration", type=options.PATH, help="Of a committee, as ponita-ff calibrate writes it.")
@click.option(
    "--warn-above",
    type=_POSITIVE,
    default=0.2,
    show_default=True,
    help="Warn at this uncertainty of a committee, eV/Å.",
)
@click.option("--stop-above", type=_POSITIVE, help="End the run at this uncertainty of a committee, eV/Å.")
@options.strict
@options.device()
@options.dtype()
@options.backend()
@options.threads
@options.force
@options.progress
@options.common
def command(
    potential: str,
    structure: str | None,
    out: Path,
    ensemble: str,
    thermostat: str,
    temperature: float,
    timestep: float,
    ps: float | None,
    steps: int | None,
    seed: int,
    keep_velocities: bool,
    thermostat_time: float,
    pressure: float,
    barostat_time: float,
    flexible_cell: bool,
    log_every: float,
    frame_every: float,
    state_every: float,
    trajectory: str,
    bond_limit: float,
    allow_broken: bool,
    calibration: Path | None,
    warn_above: float,
    stop_above: float | None,
    strict: bool,
    device: str,
    dtype: str | None,
    backend: str,
    force: bool,
    progress: bool,
) -> None:
    """Run molecular dynamics of STRUCTURE and keep trajectory, log (CSV) and a picture of the run.

    STRUCTURE is a file that ASE reads, or a molecule such as CH3CH2OH; without it, the one that a shipped potential
    comes with. A run that was stopped or killed goes on from its last state when the same command is given again, to
    the same last bit on the same machine; with a larger --ps or --steps it is made longer.

    \b
    ponita-ff md ethanol-rmd17 --ps 5
    ponita-ff md mine.safetensors crystal.cif --ensemble npt --pressure 0.1 --out npt
    ponita-ff md a.safetensors,b.safetensors molecule.xyz --calibration committee.json
    """
    from ponita_ff.calculator import PonitaCalculator
    from ponita_ff.outputs import check_outputs
    from ponita_ff.simulate.md import MdSettings, is_started, run_files, run_md, steps_of
    from ponita_ff.simulate.structures import read_structure

    if ps is not None and steps is not None:
        raise click.UsageError("give --ps or --steps, not both")
    settings = MdSettings.model_validate(
        {
            "ensemble": ensemble,
            "thermostat": thermostat,
            "temperature": temperature,
            "timestep": timestep,
            "steps": steps or steps_of(ps or 10.0, timestep),
            "seed": seed,
            "velocities": "keep" if keep_velocities else "thermal",
            "thermostat_time": thermostat_time,
            "pressure": pressure,
            "barostat_time": barostat_time,
            "flexible_cell": flexible_cell,
            "log_every": log_every,
            "frame_every": frame_every,
            "state_every": state_every,
            "trajectory": trajectory,
            "bond_limit": None if allow_broken else bond_limit,
            "uncertainty_warning": warn_above,
            "uncertainty_limit": stop_above,
        }
    )
    inputs = options.input_files(structure, potential, calibration)
    check_outputs([out / name for name in run_files(settings)], inputs, force or is_started(out))
    atoms = read_structure(structure, potential)
    atoms.calc = PonitaCalculator(
        potential,
        device=device,
        dtype=dtype,
        backend=backend,
        calibration=calibration,
        strict=strict,
    )
    result = run_md(atoms, settings, out, progress=progress)
    _print_result(result, settings, len(atoms))
    if result.steps_per_second is not None:
        click.echo(f"training data     {atoms.calc.domain_watch.report()}")


def _print_result(result: MdResult, settings: MdSettings, num_atoms: int) -> None:
    log = result.log
    if result.steps_per_second is None:
        click.echo(
            f"finished before: {result.out} holds {result.steps} steps; a larger --ps or --steps makes it longer"
        )
    elif result.continued_from:
        click.echo(f"continued         from step {result.continued_from}")
    click.echo(f"length            {log['time_ps'][-1]:g} ps, {result.steps} steps")
    temperature = log["temperature_K"]
    click.echo(f"temperature       {temperature.mean():.1f} K, standard deviation {temperature.std():.1f} K")
    if result.drift is not None:
        drift = result.drift
        click.echo(f"energy drift      {drift.slope:.3g} ± {drift.error:.2g} meV/atom/ns")
        click.echo(f"  fluctuation     {drift.rms / num_atoms:.3g} meV/atom, root mean square")
    click.echo(f"bonds             changed by at most {log['bond_change_A'].max():.2f} Å")
    if "pressure_GPa" in log:
        click.echo(f"pressure          {log['pressure_GPa'].mean():.3g} GPa")
        click.echo(f"volume            {log['volume_A3'].mean():.2f} Å³")
    if "forces_std_eV_per_A" in log:
        click.echo(f"uncertainty       {log['forces_std_eV_per_A'].max():.3g} eV/Å at most, of an atom's force")
    if result.steps_per_second is not None:
        speed = result.steps_per_second
        click.echo(f"speed             {speed:.1f} steps/s, {speed * settings.timestep * 1e-6 * 86_400:.3g} ns/day")
    click.echo(f"results           {result.out}/: trajectory.{settings.trajectory}, log.csv, md.png, final.xyz")
