"""Measure whether frame averaging (network/frame_averaging.py) is continuous where frames degenerate.

    python benchmarks/frames.py

Ammonia is deformed along paths that pass a symmetric top, a shape with two equal moments, at a distance; in between
the principal axes turn by 90°. Energy and forces of a frame-averaging network with random weights are measured on both
sides and along the paths, beside a form whose energy is invariant by construction and smooth. Then NVE dynamics is run
from near the top. Float64 throughout: what jumps is the function, not its rounding. Weights are scaled so that the
largest force far from the top is 1 eV/Å for both. Writes ``results/frames.json`` and ``results/frames.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from pages import add_result, measured_on, table

from ponita_ff import PonitaCalculator
from ponita_ff.audit.dynamics import run_nve, thermal_momenta
from ponita_ff.network.config import form_config
from ponita_ff.network.forms import make_network
from ponita_ff.potential.potential import Potential

RESULTS = Path(__file__).resolve().parent / "results"

FORMS: dict[str, dict[str, Any]] = {
    "frame averaging": {"form": "frame-averaging"},
    "oriented points": {"form": "oriented-points"},
}

#: Distances of the paths from the symmetric top, as a relative difference of lengths.
DISTANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

#: Length of an NVE run, ps, and time steps, fs.
PICOSECONDS, TIMESTEPS = 0.2, (0.5, 0.25)


def random_potential(settings: dict[str, Any]) -> Potential:
    """Return a potential with random weights whose largest force far from the top is 1 eV/Å."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(form_config({**settings, "channels": 8, "num_layers": 1}), 2).double()
    potential = Potential(network, [1, 7], {1: 0.0, 7: 0.0}).eval().requires_grad_(False)
    potential.scale = 1.0 / largest_force(potential, [top(0.3, 0.2)])
    return potential


def top(stretch: float, shear: float) -> Atoms:
    """Return ammonia deformed across its axis.

    Args:
        stretch: Relative difference of the lengths along x and y; it changes sign with the order of the moments.
        shear: Relative shear in the plane of x and y, which keeps the moments apart where ``stretch`` is 0.
    """
    atoms = molecule("NH3")
    half = 0.5 * np.array([[stretch, shear, 0.0], [shear, -stretch, 0.0], [0.0, 0.0, 0.0]])
    atoms.positions = atoms.positions @ (np.eye(3) + half)
    return atoms


def largest_force(potential: Potential, structures: Sequence[Atoms]) -> float:
    """Return the largest force component of some structures, eV/Å."""
    forces = potential.evaluate(structures, backend="eager").forces
    return max(float(np.abs(force).max()) for force in forces)


def jump(potential: Potential) -> float:
    """Return the difference of the energies, meV, of structures 10⁻⁶ Å apart, one on each side of the top."""
    energies = potential.evaluate([top(-5e-7, 0.0), top(5e-7, 0.0)], forces=False, backend="eager").energies
    return 1e3 * float(abs(energies[1] - energies[0]))


def energy_range(potential: Potential, timestep: float, picoseconds: float) -> float:
    """Return the range of the total energy, meV/atom, of an NVE run that starts close to the top."""
    atoms = top(0.01, 0.01)
    atoms.calc = PonitaCalculator(potential, backend="eager")
    thermal_momenta(atoms, 100.0, np.random.default_rng(0))
    return float(np.ptp(run_nve(atoms, timestep, picoseconds, every=1).energy))


def far_parts(potential: Potential) -> float:
    """Return |E(A + B) − E(A) − E(B)|, meV, of two molecules 20 Å apart."""
    first, second = top(0.3, 0.2), top(-0.2, 0.1)
    second.rotate(50, "x")
    second.positions += [20.0, 3.0, 1.0]
    both, *parts = potential.evaluate([first + second, first, second], forces=False, backend="eager").energies
    return 1e3 * float(abs(both - sum(parts)))


def measure(settings: dict[str, Any], picoseconds: float) -> dict[str, Any]:
    """Return all numbers of a form."""
    potential = random_potential(settings)
    steps = np.linspace(-3.0, 3.0, 25)
    return {
        "jump_mev": jump(potential),
        "largest_forces": {f"{d:g}": largest_force(potential, [top(step * d, d) for step in steps]) for d in DISTANCES},
        "energy_ranges": {f"{step:g}": energy_range(potential, step, picoseconds) for step in TIMESTEPS},
        "far_parts_mev": far_parts(potential),
    }


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    forms = results["forms"]
    lines = [
        "# Is frame averaging continuous?",
        "",
        "*Written by `python benchmarks/frames.py`; all numbers come from `frames.json`. Ammonia through a symmetric "
        "top, where two moments are equal; networks with random weights, in float64, scaled to a largest force of "
        "1 eV/Å far from the top.*",
        "",
        measured_on(forms.values()),
        "",
        "## Across the symmetric top",
        "",
        "The jump is the difference of the energies of two structures whose atoms are 10⁻⁶ Å apart, one on each side. "
        "A path passes the top at a distance, given as a relative difference of lengths.",
        "",
    ]
    head = ["form", "jump of the energy, meV", *(f"largest force at {d:g}, eV/Å" for d in DISTANCES)]
    rows = [
        [f"{r['jump_mev']:.2g}", *(f"{force:.3g}" for force in r["largest_forces"].values())] for r in forms.values()
    ]
    lines += table(head, [[name, *row] for name, row in zip(forms, rows, strict=True)])
    lines += ["", "## Dynamics from near the top, and parts far from each other", ""]
    head = ["form", *(f"range of the energy at {t:g} fs, meV/atom" for t in TIMESTEPS), "E(A+B) − E(A) − E(B), meV"]
    rows = [
        [*(f"{value:.3g}" for value in r["energy_ranges"].values()), f"{r['far_parts_mev']:.2g}"]
        for r in forms.values()
    ]
    lines += table(head, [[name, *row] for name, row in zip(forms, rows, strict=True)])
    return "\n".join([*lines, "", *conclusion(forms["frame averaging"]), ""])


def conclusion(result: dict[str, Any]) -> list[str]:
    """Return what the numbers of frame averaging say, as lines of the page."""
    forces = result["largest_forces"]
    wide, narrow = list(forces)[2], list(forces)[-1]
    return [
        f"**It is not continuous.** The energy jumps by {result['jump_mev']:.2g} meV at the symmetric top, and next to "
        f"it the forces, which are the exact gradient, grow as one over the distance: {forces[wide]:.3g} eV/Å at "
        f"{wide}, {forces[narrow]:.3g} at {narrow}. Shapes with two equal moments are of codimension two, so that "
        "trajectories seldom come that close: in these short runs the range of the energy falls with the square of the "
        "time step, "
        "as on a smooth surface. Longer runs were not measured. What rules the form out for dynamics of more than one "
        "molecule is that the frame is that of the whole structure: two molecules 20 Å apart change each other's "
        f"energy by {result['far_parts_mev']:.2g} meV. It is for comparison; nothing bounds its forces.",
    ]


@click.command()
@click.option("--picoseconds", type=click.FloatRange(min=0.001), default=PICOSECONDS, help="Length of each NVE run.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(picoseconds: float, out: Path) -> None:
    """Measure the forms and write the page."""
    for name, settings in FORMS.items():
        add_result(out / "frames", report, "forms", name, measure(settings, picoseconds))


if __name__ == "__main__":
    main()
