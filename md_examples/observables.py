"""Does our molecular dynamics look like the reference's? Distances between atoms, and vibrations.

    python md_examples/observables.py                                              # ours alone
    python md_examples/observables.py --frames rmd17_ethanol_test_01.npz --ps 50   # beside reference frames

Runs ethanol at constant temperature and shows how often two atoms are at which distance, and at which frequencies the
atoms of each element move. Reference frames (labelled with forces, of dynamics at the same temperature: 500 K for
rMD17) need not follow each other in time, so they have no spectrum; but the mean square of the frequencies in it, the
Einstein frequency squared, is that of the forces: F² / m = 3 k T ω² (Hansen and McDonald, Theory of Simple Liquids,
equation 7.2.8). It is compared element by element. (The frames of rMD17 come from dynamics on the surface of MD17, a
little different from the one that labelled them: part of a difference is theirs.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from ase import Atoms, units
from ase.io import read
from scipy.signal import welch
from scipy.spatial.distance import pdist

from ponita_ff.simulate.md import draw_momenta, hold_centre, steps_of
from ponita_ff.simulate.plots import COLOURS
from ponita_ff.structure.bonds import find_bonds

WIDTH = 0.02  # Å of a bin of distances
SAMPLE_FS = 1.0  # between velocities: resolves 16,000 cm⁻¹
FRICTION_FS = 250.0  # of the thermostat: widens bands by 20 cm⁻¹


# ------------------------------------------------------------------------------------ observables


def distance_density(frames: Sequence[Atoms], edges: common.Array) -> common.Array:
    """Probability density (1/Å) of the distance of any two atoms, in each bin of ``edges``."""
    return np.histogram(np.concatenate([pdist(atoms.positions) for atoms in frames]), edges, density=True)[0]


def difference(one: common.Array, other: common.Array) -> float:
    """∫ |h1 − h2| dr of two densities: 0 for equal ones, 2 where nothing overlaps."""
    return float(np.abs(one - other).sum() * WIDTH)


def spectrum(velocities: common.Array, masses: common.Array, interval_fs: float) -> tuple[common.Array, common.Array]:
    """Vibrational density of states: wave numbers (cm⁻¹) and the power of each atom (wave numbers, atoms).

    The Fourier transform of the autocorrelation of mass-weighted velocities (steps, atoms, 3), by Welch's method.
    """
    weighted = np.sqrt(masses)[None, :, None] * velocities
    length = min(len(weighted), round(4000 / interval_fs))
    frequency, power = welch(weighted, fs=1.0 / interval_fs, nperseg=length, axis=0)
    return frequency * 1e15 / (100 * units._c), power.sum(axis=2)


def einstein_frequencies(frames: Sequence[Atoms], temperature: float) -> dict[str, float]:
    """Root mean square of the frequencies (cm⁻¹) at which atoms of each element move, from forces at T in K."""
    symbols = np.array(frames[0].get_chemical_symbols())
    squares = np.mean([np.square(atoms.get_forces(apply_constraint=False)).sum(axis=1) for atoms in frames], axis=0)
    frequency = np.sqrt(squares / frames[0].get_masses() / (3 * units.kB * temperature))
    # From ASE's unit of time to cm⁻¹.
    wave_numbers = frequency * units.s / (2 * np.pi * 100 * units._c)
    return {name: float(np.sqrt(np.square(wave_numbers[symbols == name]).mean())) for name in sorted(set(symbols))}


# ---------------------------------------------------------------------------------------- report


def read_reference(path: Path) -> list[Atoms]:
    """Labelled frames of ethanol."""
    from ponita_ff.data import read_frames

    try:
        frames = [frame.to_atoms() for frame in read_frames(path)]
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot use {path}: {error}") from None
    formula = common.ethanol().get_chemical_formula()
    if any(atoms.get_chemical_formula() != formula for atoms in frames):
        raise SystemExit(f"{path} holds other molecules than {formula}")
    return frames


def say_distances(ours: Sequence[Atoms], reference: Sequence[Atoms], edges: common.Array) -> None:
    """How far the densities differ, and how far two halves of the reference do."""
    halves = [distance_density(reference[k::2], edges) for k in (0, 1)]
    found = difference(distance_density(ours, edges), distance_density(reference, edges))
    common.say("distances differ by", f"{found:.3f} of 2; two halves of the reference by {difference(*halves):.3f}")


def say_frequencies(ours: dict[str, float], reference: dict[str, float]) -> None:
    """Einstein frequencies of each element, where there is a reference beside its own."""
    for name, value in ours.items():
        other = f", reference {reference[name]:.0f}" if reference else ""
        common.say(f"frequency of {name}", f"{value:.0f}{other} cm⁻¹ (root mean square)")


def plot(
    densities: dict[str, common.Array],
    edges: common.Array,
    states: tuple[common.Array, dict[str, common.Array]],
    frequencies: dict[str, float],
    path: Path,
) -> None:
    """Densities of distances; power of the velocities by element, with the reference's Einstein frequencies."""
    with common.picture(path, columns=2, size=(12, 4.5)) as (left, right):
        middle = 0.5 * (edges[1:] + edges[:-1])
        for colour, (name, density) in zip(COLOURS, densities.items(), strict=False):
            left.plot(middle, density, color=colour, label=name)
        left.set_xlabel("distance of two atoms (Å)")
        left.set_ylabel("probability density (1/Å)")
        left.legend()
        wave_numbers, power = states
        inside = wave_numbers < 4200
        for colour, (name, values) in zip(COLOURS, power.items(), strict=False):
            right.plot(wave_numbers[inside], values[inside] / values.max(), color=colour, label=f"{name}, our MD")
            if name in frequencies:
                label = f"{name}, reference, mean"
                right.vlines(frequencies[name], 0, 1.08, color=colour, linestyle="--", label=label)
        right.set_xlabel("wave number (cm⁻¹)")
        right.set_ylabel("density of states (largest: 1)")
        right.set_ylim(0, 1.45)
        right.legend(ncols=2, fontsize=9, loc="upper center")


def main(argv: Sequence[str] | None = None) -> None:
    """Run, compare, plot."""
    parser = common.dynamics_options(__doc__, "observables")
    parser.set_defaults(temperature=500.0)
    parser.add_argument("--frames", type=Path, help="reference frames with forces, at the same temperature")
    parser.add_argument("--ps", type=common.positive, default=20.0, help="length of the run in ps (20)")
    args = parser.parse_args(argv)
    reference = read_reference(args.frames) if args.frames else None
    settle_ps, run_ps = (0.01, 0.1) if args.fast else (2.0, args.ps)

    atoms = common.ethanol()
    atoms.calc = common.make_calculator(args)
    rng = np.random.default_rng(common.SEED)
    hold_centre(atoms)
    draw_momenta(atoms, args.temperature, rng)
    start = find_bonds(atoms)
    print(f"Settling {settle_ps:g} ps at {args.temperature:g} K, then {run_ps:g} ps with a weaker thermostat")
    settle = common.langevin(atoms, args.timestep, args.temperature, rng)
    trajectory = args.out / "observables.traj"
    common.run(settle, steps_of(settle_ps, args.timestep), trajectory, "settling", start)
    slow = common.langevin(atoms, args.timestep, args.temperature, rng, FRICTION_FS)
    velocities: list[common.Array] = []
    every = max(1, round(SAMPLE_FS / args.timestep))
    slow.attach(lambda: velocities.append(atoms.get_velocities()), interval=every)
    record = common.run(slow, steps_of(run_ps, args.timestep), trajectory, "running", start)
    ours: Any = read(trajectory, index=":")

    print("Results:")
    common.say_temperature("temperature", record)
    intact = common.say_intact(record)
    edges = np.arange(0.6, 6.0 + WIDTH, WIDTH)
    densities = {"our MD": distance_density(ours, edges)}
    frequencies = {}
    if reference is not None:
        densities["reference"] = distance_density(reference, edges)
        frequencies = einstein_frequencies(reference, args.temperature)
        say_distances(ours, reference, edges)
    say_frequencies(einstein_frequencies(ours, record.temperature.mean()), frequencies)
    masses, symbols = atoms.get_masses(), np.array(atoms.get_chemical_symbols())
    wave_numbers, power = spectrum(np.array(velocities), masses, every * args.timestep)
    by_element = {name: power[:, symbols == name].sum(axis=1) for name in sorted(set(symbols))}
    plot(densities, edges, (wave_numbers, by_element), frequencies, args.out / "observables.png")
    common.require_intact(args, intact)


if __name__ == "__main__":
    main()
