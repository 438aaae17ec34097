"""How often the warning about unknown structures is raised where it should not be, and where it should.

    python benchmarks/domain_warning.py DATA [--results benchmarks/results/domain_warning]

DATA is a folder with rmd17/ (official test frames), acac/train_300K.xyz and 3bpa/train_300K.xyz. Frames of glycine and
water are made here: GFN2-xTB, Langevin dynamics at 300 K (needs the extra ``label``). A frame counts as a hit if the
potential refuses it or would warn: an element that it does not know, or a distance above 1. Cost: time of a look over
that of the MD steps of the potential's molecule from one look to the next.
"""

from __future__ import annotations

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from ponita_ff import PonitaCalculator
from ponita_ff.data import read_frames
from ponita_ff.files import write_json, write_text
from ponita_ff.potential.domain_watch import DomainWatch, domain_distances
from ponita_ff.potential.file import load_potential, shipped_potentials
from ponita_ff.potential.potential import Potential
from ponita_ff.simulate.md import draw_momenta, hold_centre, langevin
from ponita_ff.structure.graph import graphs_of


def dynamics_frames(atoms: Atoms, number: int) -> list[Atoms]:
    """Frames at 300 K by GFN2-xTB, 10 fs apart."""
    from tblite.ase import TBLite

    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    generator = np.random.default_rng(0)
    hold_centre(atoms)
    draw_momenta(atoms, 300, generator)
    dynamics = langevin(atoms, 0.5, 300, generator, 50)
    frames = []
    for _ in range(number):
        dynamics.run(20)
        frames.append(Atoms(atoms.numbers, atoms.positions))
    return frames


def share_outside(potential: Potential, frames: Sequence[Atoms]) -> tuple[float, float | str]:
    """Share of frames that are refused or warned of, and the smallest distance or why there is none."""
    if not np.isin(frames[0].numbers, potential.species).all():
        return 1.0, "element"
    distances = domain_distances([potential], frames)
    assert distances is not None
    smallest = float(distances.min())
    return float((distances > 1).mean()), smallest if np.isfinite(smallest) else "pair"


def cost(potential: Potential, atoms: Atoms, rounds: int, steps: int) -> dict[str, float]:
    """Time of a look at a structure beside that of the MD steps from one look to the next.

    Steps with and without looks differ by less than one round differs from the next on a machine that others use, too.
    """
    moving = atoms.copy()
    moving.calc = PonitaCalculator(potential)
    draw_momenta(moving, 500, np.random.default_rng(0))
    dynamics = VelocityVerlet(moving, 0.5 * units.fs)
    dynamics.run(20)
    ((_, graph),) = graphs_of([moving], potential.cutoff, len(moving))
    step_times, look_times, before = [], [], moving.calc.domain_watch.looks
    for _ in range(rounds):
        began = time.perf_counter()
        dynamics.run(steps)
        step_times.append((time.perf_counter() - began) / steps)
        for _ in range(20):
            began = time.perf_counter()
            DomainWatch([potential]).see(graph)
            look_times.append(time.perf_counter() - began)
    per_look = rounds * steps / (moving.calc.domain_watch.looks - before)
    look, step = float(np.median(look_times)), float(np.median(step_times))
    return {"look_ms": 1e3 * look, "step_ms": 1e3 * step, "steps_per_look": per_look, "share": look / (per_look * step)}


def table(results: dict) -> str:
    """The results as a page."""
    others = list(next(iter(results.values()))["outside"])
    lines = [
        "# The warning about structures unlike the training data",
        "",
        "*Written by `python benchmarks/domain_warning.py`; all numbers come from `domain_warning.json`.*",
        "",
        "False alarms: share of the official rMD17 test frames of the potential's own molecules that it would warn of; "
        "in brackets the largest distance (1 is the limit).",
        "",
        "Other columns: share of frames of molecules that it was not trained on of which it warns; in brackets the "
        "smallest distance, *element* where it refuses an element, or *pair* where two elements meet that never did in "
        "training.",
        "",
        "Cost: time of a look at the structure (median of 20 in each round), over that of the MD steps (0.5 fs, 500 K) "
        "from one look to the next.",
        "",
        "| potential | false alarms | "
        + " | ".join(others)
        + " | cost | look (ms) | step (ms) | steps between looks |",
        "| --- |" + " --- |" * (len(others) + 5),
    ]
    for name, one in results.items():
        cells = [f"{one['false_alarms']:.2%} ({one['largest']:.2f})"]
        for share, smallest in one["outside"].values():
            cells.append(f"{share:.0%} ({smallest if isinstance(smallest, str) else f'{smallest:.1f}'})")
        spent = one["cost"]
        cells += [f"{spent['share']:.1%}", f"{spent['look_ms']:.2f}", f"{spent['step_ms']:.2f}"]
        cells.append(f"{spent['steps_per_look']:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("benchmarks/results/domain_warning"), show_default=True
)
@click.option("--rounds", default=15, show_default=True, help="Of the measurement of the cost.")
@click.option("--steps", default=400, show_default=True, help="In each round.")
def main(data: Path, results: Path, rounds: int, steps: int) -> None:
    """See the module's docstring."""
    here = Path(__file__).parent
    others = {
        "glycine": dynamics_frames(read(here / "molecules" / "glycine.xyz"), 200),
        "water": dynamics_frames(read(here / "molecules" / "water.xyz"), 200),
        "acetylacetone": list(read(data / "acac" / "train_300K.xyz", ":")),
        "3BPA": list(read(data / "3bpa" / "train_300K.xyz", ":")),
    }
    for frames in others.values():
        for atoms in frames:
            atoms.pbc = False
    found = {}
    for name, path in shipped_potentials().items():
        potential = load_potential(path)
        files = [file.strip() for file in potential.metadata["data"]["test_file"].split(",")]
        own = [frame.to_atoms() for file in files for frame in read_frames(data / "rmd17" / file)]
        distances = domain_distances([potential], own)
        assert distances is not None
        found[name] = {
            "frames": len(own),
            "false_alarms": float((distances > 1).mean()),
            "largest": float(distances.max()),
            "outside": {other: share_outside(potential, frames) for other, frames in others.items()},
            "cost": cost(potential, read(path.parent / "structure.xyz"), rounds, steps),
        }
        click.echo(f"{name}: {json.dumps(found[name])}")
    write_json(results.with_suffix(".json"), found)
    write_text(results.with_suffix(".md"), table(found))


if __name__ == "__main__":
    main()
