"""LAMMPS over MPI: the same energies and forces on any number of processes, what ghosts cost, and what a crash leaves.

    python benchmarks/lammps_ranks.py compare --copies 5 --ranks 1,2,4
    python benchmarks/lammps_ranks.py crash
    python benchmarks/lammps_ranks.py migrate --ps 10
    python benchmarks/lammps_ranks.py model

Each adds its results to ``benchmarks/results/lammps.json`` and writes the page anew. Ethanol on a lattice, periodic,
with organic-rmd17: a potential of single molecules, so that the box is there for its size, not for its physics. Needs
the extra lammps (``make test-hosts`` installs it). Processes have one thread each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pages
from ase import Atoms
from ase.build import molecule
from ase.io import write

PAGE = Path(__file__).parent / "results" / "lammps"
POTENTIAL = "organic-rmd17"
ELEMENTS = ["H", "C", "O"]
SKIN = 1.0  # Å
TIMESTEP = 0.5  # fs
Array = np.ndarray[Any, np.dtype[np.float64]]

START = """units metal
atom_modify map yes
neighbor {skin} bin
neigh_modify every 1 delay 0 check yes
read_data box.data
plugin load ./ponitaplugin.so
pair_style ponita {dtype}
pair_coeff * * {potential} H C O
timestep {timestep}
thermo_style custom step pe etotal temp press
thermo_modify format float %.12f
"""

COMPARE = """velocity all create 300 1 loop geom
fix move all nve
dump first all custom 1000000 first.txt id fx fy fz
dump_modify first sort id format float %.12e
run 0
print "ENERGY $(pe:%.12f)"
run {steps}
"""

REFERENCE = """
import json, sys, time
from mpi4py import MPI
from lammps import lammps
from ponita_ff.hosts.lammps import attach
potential, dtype, skin, steps = sys.argv[1:]
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.commands_string("units metal\\natom_modify map yes\\nread_data box.data")
evaluation = attach(lmp, potential, ["H", "C", "O"], dtype, float(skin))
lmp.commands_string("thermo_style custom step pe\\nvelocity all create 300 1 loop geom\\nfix move all nve\\nrun 0")
energy, forces = lmp.get_thermo("pe"), lmp.gather_atoms("f", 1, 3)[:]
began = time.perf_counter()
lmp.command(f"run {steps} pre no")
seconds = time.perf_counter() - began
ghosts = MPI.COMM_WORLD.gather(evaluation.ghosts)
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps({"energy": energy, "forces": forces, "ghosts": ghosts, "ms": 1e3 * seconds / int(steps)}))
"""

ASE = """
import json, sys, time
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ponita_ff import PonitaCalculator
potential, dtype, steps, timestep = sys.argv[1:]
atoms = read("box.traj")
atoms.calc = PonitaCalculator(potential, device="cpu", dtype=dtype, backend="native", skin=1.0)
energy, forces = atoms.get_potential_energy(), atoms.get_forces().ravel().tolist()
run = VelocityVerlet(atoms, float(timestep) * units.fs)
began = time.perf_counter()
run.run(int(steps))
print(json.dumps({"energy": energy, "forces": forces, "ms": 1e3 * (time.perf_counter() - began) / int(steps)}))
"""


def box(copies: int, spacing: float) -> Atoms:
    """Ethanol on a lattice, each molecule a little displaced in itself."""
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([spacing + 0.8, spacing, spacing])
    atoms.pbc = True
    atoms = atoms * (copies, copies, copies)
    atoms.rattle(0.03, seed=1)
    atoms.wrap()
    return atoms


@contextmanager
def workplace(atoms: Atoms, plugin: Path | None) -> Iterator[Path]:
    """A folder with the box and the plugin, which is compiled if it is not there."""
    from ponita_ff.hosts.lammps_plugin import build_plugin

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "box.data", atoms, format="lammps-data", specorder=ELEMENTS, units="metal", masses=True)
        write(folder / "box.traj", atoms)
        if plugin is None:
            build_plugin(folder / "ponitaplugin.so")
        else:
            shutil.copy(plugin, folder / "ponitaplugin.so")
        yield folder


def start(ranks: int, folder: Path, *command: str, threads: int = 1) -> subprocess.Popen[str]:
    """Some processes of MPI."""
    beside = Path(sys.executable).parent
    mpiexec = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpiexec is None:
        raise click.ClickException("there is no mpiexec: pip install 'ponita-ff[lammps]'")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        [mpiexec, "-n", str(ranks), *command], cwd=folder, env=environment, text=True, stdout=-1, stderr=-1
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; an error ends the benchmark."""
    out, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{' '.join(map(str, process.args))} failed:\n{out[-2000:]}{errors[-2000:]}")
    return out


def start_lammps(ranks: int, folder: Path, text: str) -> subprocess.Popen[str]:
    """LAMMPS on an input."""
    (folder / "in.txt").write_text(text, encoding="utf-8")
    return start(ranks, folder, str(Path(sys.executable).parent / "lmp"), "-in", "in.txt", "-log", "none")


def head(dtype: str) -> str:
    """The first lines of every input."""
    return START.format(dtype=dtype, potential=POTENTIAL, skin=SKIN, timestep=1e-3 * TIMESTEP)


def by_plugin(ranks: int, folder: Path, dtype: str, steps: int) -> dict[str, Any]:
    """Energy (eV), forces (flat, eV/Å), ghosts of each process, ms a step."""
    out = finish(start_lammps(ranks, folder, head(dtype) + COMPARE.format(steps=steps)))
    lines = (folder / "first.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines[9 : 9 + int(lines[3])]]
    seconds = [float(found) for found in re.findall(r"Loop time of (\S+) on", out)][-1]
    ghosts = re.findall(r"Nghost:\s+(\S+) ave\s+(\S+) max\s+(\S+) min", out)[-1]
    energy = re.findall(r"ENERGY (\S+)", out)[-1]
    return {
        "energy": float(energy),
        "forces": [float(value) for row in rows for value in row[1:4]],
        "ghosts": [float(value) for value in ghosts],
        "ms": 1e3 * seconds / steps,
    }


def by_script(ranks: int, folder: Path, script: str, *arguments: object, threads: int = 1) -> dict[str, Any]:
    """What a script of Python prints, as JSON."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    words = [sys.executable, "-W", "ignore", "script.py", *map(str, arguments)]
    result: dict[str, Any] = json.loads(finish(start(ranks, folder, *words, threads=threads)).splitlines()[-1])
    return result


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Largest differences of energy and forces."""
    forces = np.abs(np.subtract(one["forces"], other["forces"])).max()
    largest = float(np.abs(other["forces"]).max())
    energy = abs(one["energy"] - other["energy"])
    return {"energy_difference": energy, "force_difference": float(forces), "largest_force": largest}


@click.group()
def main() -> None:
    """See the module's docstring."""


page_option = click.option("--page", type=click.Path(path_type=Path), default=PAGE, help="Of the results.")
copies_option = click.option("--copies", default=5, show_default=True, help="Molecules along each axis.")
plugin_option = click.option("--plugin", type=click.Path(path_type=Path), help="Compiled before, else now.")
spacing_option = click.option("--spacing", default=6.0, show_default=True, help="Å between molecules.")


@main.command()
@copies_option
@spacing_option
@plugin_option
@click.option("--ranks", default="1,2,4", show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--reference-ranks", default="2", show_default=True, help="Empty: not at all; it takes gigabytes.")
@click.option("--dtype", "dtypes", default="float32,float64", show_default=True)
@page_option
def compare(
    copies: int,
    spacing: float,
    plugin: Path | None,
    ranks: str,
    steps: int,
    reference_ranks: str,
    dtypes: str,
    page: Path,
) -> None:
    """Energies, forces, ghosts and time of both routes, against ASE with the same engine on two threads."""
    atoms = box(copies, spacing)
    setting = {"atoms": len(atoms), "volume": float(atoms.get_volume()), "steps": steps}
    with workplace(atoms, plugin) as folder:
        for dtype in dtypes.split(","):
            base = by_script(1, folder, ASE, POTENTIAL, dtype, steps, TIMESTEP, threads=2)
            found = {"ms": base["ms"], "ghosts": [0.0], **difference(base, base)}
            pages.add_result(page, report, "compare", f"ASE, 2 threads, {dtype}", setting | found)
            for number in map(int, ranks.split(",")):
                result = by_plugin(number, folder, dtype, steps)
                found = {"ms": result["ms"], "ghosts": result["ghosts"], **difference(result, base)}
                pages.add_result(page, report, "compare", f"pair style, {number} rank(s), {dtype}", setting | found)
        for number in map(int, filter(None, reference_ranks.split(","))):
            result = by_script(number, folder, REFERENCE, POTENTIAL, dtype, SKIN, 1)
            found = {"ms": result["ms"], "ghosts": result["ghosts"], **difference(result, base)}
            key = f"reference route, {number} rank(s), {dtype}"
            pages.add_result(page, report, "compare", key, setting | {"steps": 1} | found)


@main.command()
@copies_option
@spacing_option
@plugin_option
@page_option
def crash(copies: int, spacing: float, plugin: Path | None, page: Path) -> None:
    """Kill one of two processes in the middle of a run; what it leaves must be readable."""
    text = (
        head("float32") + "velocity all create 300 1 loop geom\nfix move all nve\nrestart 2 even.restart odd.restart\n"
    )
    with workplace(box(copies, spacing), plugin) as folder:
        process = start_lammps(2, folder, text + "run 100000\n")
        while not (folder / "odd.restart").exists() and process.poll() is None:
            time.sleep(0.2)
        killed = kill_rank(1, folder)
        out, errors = process.communicate(timeout=60)
        said = next((line for line in (errors + out).splitlines() if "TERMINATED" in line or "KILLED" in line), "")
        values: dict[str, Any] = {"killed": killed, "exit_code": process.returncode, "said": said.strip("= ").strip()}
        for name in ("even", "odd"):
            again = (
                f"read_restart {name}.restart\nplugin load ./ponitaplugin.so\npair_style ponita\n"
                f"pair_coeff * * {POTENTIAL} H C O\nfix move all nve\nrun 1\n"
            )
            values[name] = "Loop time" in start_lammps(2, folder, again).communicate()[0]
    pages.add_result(page, report, "crash", "2 ranks", values)


def kill_rank(rank: int, folder: Path) -> bool:
    """Kill the process of LAMMPS with this number that runs in a folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            here = (path / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        words = command.split(b"\0")
        if here and f"PMI_RANK={rank}".encode() in environment.split(b"\0") and words[0].endswith(b"lammps/lmp"):
            os.kill(int(path.name), signal.SIGKILL)
            return True
    return False


@main.command()
@click.option("--copies", default=3, show_default=True, help="Molecules along each axis.")
@spacing_option
@plugin_option
@click.option("--ps", default=10.0, show_default=True)
@click.option("--temperature", default=300.0, show_default=True, help="K")
@page_option
def migrate(copies: int, spacing: float, plugin: Path | None, ps: float, temperature: float, page: Path) -> None:
    """Atoms that go from one process to another, and how well energy is conserved."""
    steps = round(1e3 * ps / TIMESTEP)
    every = max(1, steps // 100)
    atoms = box(copies, spacing)
    text = head("float32") + (
        f"velocity all create {2 * temperature} 1 loop geom\nfix move all nve\nthermo {every}\n"
        f"dump owners all custom {every} owners.txt id proc\ndump_modify owners sort id\nrun {steps}\n"
    )
    with workplace(atoms, plugin) as folder:
        out = finish(start_lammps(2, folder, text))
        lines = (folder / "owners.txt").read_text(encoding="utf-8").splitlines()
    size = 9 + len(atoms)
    owners = np.array([[row.split()[1] for row in lines[s + 9 : s + size]] for s in range(0, len(lines), size)], int)
    table = re.findall(r"^\s+(\d+)\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)", out, re.M)
    totals, temperatures = np.array([[float(row[2]), float(row[3])] for row in table]).T
    times = 1e-3 * TIMESTEP * np.array([float(row[0]) for row in table])
    slope = float(np.polyfit(times, totals, 1)[0])
    values = {
        "atoms": len(atoms),
        "ps": ps,
        "migrations": int((owners[1:] != owners[:-1]).sum()),
        "migrated": int((owners != owners[0]).any(0).sum()),
        "drift": 1e6 * slope / len(atoms),  # meV/atom/ns
        "rms": 1e3 * float(np.std(totals - slope * times)),
        "temperature": float(temperatures[len(temperatures) // 2 :].mean()),
    }
    pages.add_result(page, report, "migrate", f"{len(atoms)} atoms", values)


@main.command()
@click.option("--atoms", default=1e7, show_default=True)
@click.option("--ranks", default=1000, show_default=True)
@click.option("--density", default=0.1, show_default=True, help="Atoms per Å³; liquids have 0.1.")
@click.option("--bandwidth", default=2.0, show_default=True, help="GB/s of each process, both ways together.")
@click.option("--latency", default=5.0, show_default=True, help="µs of each message.")
@page_option
def model(atoms: float, ranks: int, density: float, bandwidth: float, latency: float, page: Path) -> None:
    """Cost on paper of a large run, from the measured time of an atom."""
    from ponita_ff.potential.header import read_content

    config = read_content(POTENTIAL).config
    assert config.cutoff is not None
    measured = pages.read_results(page.with_suffix(".json")).get("compare", {})
    one = measured.get("pair style, 1 rank(s), float32")
    if one is None:
        raise click.ClickException("measure first: compare --ranks 1 --dtype float32")
    per_atom = one["ms"] / one["atoms"] * density / (one["atoms"] / one["volume"])  # neighbours go with the density
    own = atoms / ranks
    side = (own / density) ** (1 / 3)
    layers, item = config.num_layers, 4
    values: dict[str, Any] = {"atoms": atoms, "ranks": ranks, "density": density, "own": own, "side": side}
    values |= {"bandwidth": bandwidth, "latency": latency, "ms_atom": per_atom, "layers": layers}
    for name, reach in (("pair style", config.cutoff + SKIN), ("reference", layers * config.cutoff + SKIN)):
        ghosts = density * (side + 2 * reach) ** 3 - own
        exchanges = 2 * layers - 1 if name == "pair style" else 0
        row = config.num_ori * config.channels * item
        sent = ghosts * (row * exchanges + 2 * 3 * 8)  # and positions there, forces back
        messages = 6 * (exchanges + 2) * max(1, int(np.ceil(reach / side)))
        compute = per_atom * (own if name == "pair style" else own + ghosts)
        talk = 1e3 * sent / (1e9 * bandwidth) + 1e-3 * latency * messages
        values[name] = {"ghosts": ghosts, "row": row, "exchanges": exchanges, "sent": sent, "compute_ms": compute}
        values[name] |= {"talk_ms": talk, "share": talk / (talk + compute), "messages": messages}
    pages.add_result(page, report, "model", f"{atoms:g} atoms, {ranks} ranks", values)


def report(results: pages.Results) -> str:
    """The page."""
    lines = [
        "# LAMMPS over MPI",
        "",
        "*Written by `python benchmarks/lammps_ranks.py`; all numbers come from `lammps.json`.*",
        "",
        f"Ethanol on a lattice, periodic, with {POTENTIAL}, on the CPU, one thread for each process; skin {SKIN:g} Å.",
        "",
    ]
    if "compare" in results:
        first = next(iter(results["compare"].values()))
        lines += [
            f"## The same on any number of processes: {first['atoms']} atoms",
            "",
            "Differences are from ASE in the same dtype, for the reference route from the last one: of the total "
            f"energy, and the largest of any force, where the largest force is {first['largest_force']:.1f} eV/Å. "
            "Ghosts: the average process.",
            "",
        ]
        rows = [
            (
                name,
                f"{r['ms']:.0f}",
                f"{np.mean(r['ghosts'][:1] if 'pair' in name else r['ghosts']):.0f}",
                f"{r['energy_difference']:.1e}",
                f"{r['force_difference']:.1e}",
            )
            for name, r in results["compare"].items()
        ]
        lines += [*pages.table(("", "ms a step", "ghosts", "energy (eV)", "forces (eV/Å)"), rows), ""]
    for r in results.get("crash", {}).values():
        kept = " and ".join(name for name in ("even", "odd") if r[name]) or "none"
        said = f"“{r['said']}”" if r["said"] else "no message of its own"
        lines += [
            "## A process that dies",
            "",
            f"One of two processes was killed in the middle of a run: mpiexec ended with exit code {r['exit_code']} "
            f"and {said}. Of the two restart files that LAMMPS writes in turn, readable and continued: {kept}.",
            "",
        ]
    for r in results.get("migrate", {}).values():
        lines += [
            "## Atoms that change their process",
            "",
            f"{r['ps']:g} ps at constant energy, {r['atoms']} atoms, two processes, {r['temperature']:.0f} K: "
            f"{r['migrated']} atoms changed their process, {r['migrations']} times in all. Drift of the total energy "
            f"{r['drift']:.3g} meV/atom/ns, fluctuation {r['rms']:.2g} meV.",
            "",
        ]
    for r in results.get("model", {}).values():
        lines += [
            f"## On paper: {r['atoms']:.0e} atoms on {r['ranks']} processes",
            "",
            f"{r['density']:g} atoms per Å³: {r['own']:.0f} atoms in a cube of {r['side']:.0f} Å for each process. "
            f"{r['ms_atom']:.2f} ms an atom and step, as measured above for one process and scaled with the density; "
            f"{r['bandwidth']:g} GB/s for each process, {r['latency']:g} µs a message.",
            "",
        ]
        rows = [
            (
                name,
                f"{v['ghosts']:.0f}",
                f"{v['row']}" if v["exchanges"] else "–",
                str(v["exchanges"]),
                f"{1e-6 * v['ghosts'] * v['row']:.0f}" if v["exchanges"] else "–",
                f"{1e-6 * v['sent']:.0f}",
                f"{1e-3 * v['compute_ms']:.2f}",
                f"{v['talk_ms']:.0f}",
                f"{100 * v['share']:.2g} %",
            )
            for name, v in ((name, r[name]) for name in ("pair style", "reference"))
        ]
        columns = ("route", "ghosts", "bytes of a ghost", "exchanges", "MB a layer's exchange", "MB a step")
        lines += [*pages.table((*columns, "compute (s)", "communicate (ms)", "share"), rows), ""]
    lines.append(pages.measured_on([value for kind in results.values() for value in kind.values()]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
