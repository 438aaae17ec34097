"""A molecule that no potential knows, from its structure to dynamics that watch their own uncertainty.

    pip install '.[label]'
    python md_examples/new_molecule.py
    python md_examples/new_molecule.py --structure mine.xyz --method pbe/def2-svp --budget 100

The base potential is fine-tuned by active learning: dynamics with a committee, labels where its
members disagree, training, again. Frames of new dynamics, labelled as well but never trained on,
then tell how far off the committee is and what its deviations are worth, and a last run watches
them. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.io import read, write

from ponita_ff.progress import progress_bar
from ponita_ff.simulate.md import draw_momenta, hold_centre, steps_of
from ponita_ff.structure.bonds import find_bonds

#: Of the dynamics whose frames test the committee: independent of one another, unlike neighbouring steps.
FS_BETWEEN_TESTS = 100.0

#: eV/Å of uncertainty (norm of an atom's force, calibrated) from which the last run is stopped.
STOP = 1.0


def structure(name: str) -> Atoms:
    """A molecule by its name in ASE's collection, or the first structure of a file."""
    if name in g2.names:
        atoms = g2[name]
    elif Path(name).is_file():
        atoms = read(name, index=0)
    else:
        raise SystemExit(f"--structure {name}: neither a file nor a molecule of ase.build.molecule")
    assert isinstance(atoms, Atoms)
    return Atoms(atoms.numbers, atoms.positions)


def sample(start: Atoms, calculator: Any, number: int, args: Any) -> list[Atoms]:
    """Frames of Langevin dynamics."""
    atoms = start.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(common.SEED)
    hold_centre(atoms)
    draw_momenta(atoms, args.temperature, rng)
    dynamics = common.langevin(atoms, args.timestep, args.temperature, rng)
    every = steps_of((0.002 if args.fast else 1e-3 * FS_BETWEEN_TESTS), args.timestep)
    frames = []
    for _ in progress_bar(True, iterable=range(number), desc="frames to test on"):
        dynamics.run(every)
        frames.append(Atoms(atoms.numbers, atoms.positions))
    return frames


def watched_run(start: Atoms, calculator: Any, args: Any) -> tuple[common.Record | None, list[float]]:
    """Langevin dynamics that stop where the committee no longer knows; what it did and the uncertainty on the way."""
    from ponita_ff.uncertainty import UncertainForces, UncertaintyMonitor

    atoms = start.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(common.SEED + 1)
    hold_centre(atoms)
    draw_momenta(atoms, args.temperature, rng)
    dynamics = common.langevin(atoms, args.timestep, args.temperature, rng)
    monitor = UncertaintyMonitor(atoms, stop=args.stop)
    dynamics.attach(monitor, interval=1 if args.fast else 20)
    steps = steps_of(0.005 if args.fast else args.ps, args.timestep)
    try:
        record = common.run(dynamics, steps, args.out / "dynamics.traj", "dynamics", find_bonds(atoms))
    except UncertainForces as error:
        print(f"The run was stopped: {error}")
        return None, monitor.history
    return record, monitor.history


def plot(errors: common.Array, deviations: common.Array, history: list[float], path: Path) -> None:
    """Errors beside the deviations that foretell them, and the uncertainty during the run."""
    with common.picture(path, columns=2, size=(10, 4.2)) as (left, right):
        left.loglog(deviations, errors, ".", markersize=3)
        ends = [deviations.min(), deviations.max()]
        left.loglog(ends, ends, color="black", linewidth=1, label="error = deviation")
        left.set(xlabel="calibrated deviation of an atom's force (eV/Å)", ylabel="its error (eV/Å)")
        left.legend(loc="upper left")
        right.plot(history, linewidth=1)
        right.set(xlabel="look at the run", ylabel="largest uncertainty of an atom's force (eV/Å)", ylim=(0, None))


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, test, calibrate, run, report."""
    parser = common.dynamics_options(__doc__, "new_molecule")
    parser.set_defaults(potential="organic-rmd17", temperature=500.0)
    parser.add_argument("--structure", default="CH3CONH2", help="file, or name in ase.build.molecule (acetamide)")
    parser.add_argument("--method", default="gfn2-xtb", help="what labels, as in 'ponita-ff label' (gfn2-xtb)")
    parser.add_argument("--budget", type=int, default=60, help="labels to train on (60)")
    parser.add_argument("--tests", type=int, default=30, help="labels to test on (30)")
    parser.add_argument("--processes", type=int, default=2, help="that label side by side (2)")
    parser.add_argument("--ps", type=common.positive, default=5.0, help="length of the last run in ps (5)")
    parser.add_argument("--stop", type=common.positive, default=STOP, help=f"uncertainty that ends it, eV/Å ({STOP:g})")
    args = parser.parse_args(argv)

    from ponita_ff import PonitaCalculator, load_potential
    from ponita_ff.data import read_frames
    from ponita_ff.explore import ExploreSettings, explore
    from ponita_ff.labels import label_frames
    from ponita_ff.uncertainty import calibrate, committee_spread

    start = structure(args.structure)
    print(f"{start.get_chemical_formula()} from the potential {args.potential}; results go to {args.out}/")
    labels = min(20, max(4, args.budget // 3))
    settings = {"method": args.method, "budget": args.budget, "members": 2}
    settings |= {"initial_labels": labels, "labels_per_round": labels}
    settings |= {"processes": args.processes, "temperature": args.temperature, "timestep": args.timestep}
    if args.fast:
        settings |= {"simulation_time": 0.01, "sample_interval": 1.0, "trajectories": 1, "processes": 1}
        settings |= {"threshold": 1e-9, "stop_threshold": 1e6}
        settings["training"] = {"optimiser.steps": 5, "optimiser.warmup_steps": 1}
    try:
        found = explore([start], args.potential, ExploreSettings.from_mapping(settings), args.out / "explored")
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot explore: {error}") from None

    members = [load_potential(path) for path in found.members]
    candidates, labelled = args.out / "tests.xyz", args.out / "tests-labelled.xyz"
    if not candidates.is_file():
        committee = PonitaCalculator(members, device=args.device)
        write(candidates, sample(start, committee, args.tests, args), format="extxyz")
    try:
        told = label_frames(candidates, args.method, labelled, processes=settings["processes"])
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot label the frames to test on: {error}") from None
    if told.path is None:
        raise SystemExit(f"none of the frames to test on could be labelled: {next(iter(told.failures.values()))}")
    frames = list(read_frames(told.path))
    calibration = calibrate(members, frames)
    calibration.save(args.out / "calibration.json")
    _, forces, _, deviations = committee_spread(members, [frame.to_atoms() for frame in frames])
    errors = np.concatenate([mean - frame.forces for mean, frame in zip(forces, frames, strict=True)])

    calculator = PonitaCalculator(members, device=args.device, calibration=calibration)
    record, history = watched_run(start, calculator, args)

    print(f"Results ({found.outcome}):")
    common.say("labels trained on", f"{found.labels}, by {args.method}")
    common.say("labels tested on", f"{len(frames)}, from dynamics at {args.temperature:g} K")
    common.say("force MAE on these", f"{1e3 * np.abs(errors).mean():.1f} meV/Å")
    size = np.sqrt(np.mean(np.square(np.concatenate([frame.forces for frame in frames]))))
    common.say("forces are", f"{1e3 * size:.0f} meV/Å, root mean square")
    common.say("calibration", f"deviations times {calibration.forces:.2f} have the size of the errors")
    common.say("largest uncertainty", f"{max(history):.3f} eV/Å during the run")
    intact = True
    if record is not None:
        common.say_temperature("temperature", record)
        intact = common.say_intact(record)
    spread = calibration.forces * np.linalg.norm(np.concatenate(deviations), axis=1)
    plot(np.linalg.norm(errors, axis=1), spread, history, args.out / "new_molecule.png")
    print(f"Potentials: {' '.join(str(path) for path in found.members)}")
    print(f"Pictures: {args.out / 'new_molecule.png'}, {args.out / 'explored' / 'report.png'}")
    common.require_intact(args, intact)


if __name__ == "__main__":
    main()
