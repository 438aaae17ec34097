"""Compiles this folder's C++ for the machine at hand, once, and keeps the libraries in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - its OpenMP library must be the process's one before a kernel asks for one

__all__ = ["KernelError", "cache_folder", "compiler", "load"]

logger = logging.getLogger(__name__)

#: For this machine's vector units. No -ffast-math: its start-up code would change rounding in the whole process.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

#: With threads where the compiler can, else on one.
_THREADS: tuple[tuple[str, ...], ...] = (("-fopenmp",), ())

#: Seconds after which a compiler is taken to hang.
_PATIENCE = 300.0

_FOLDER = Path(__file__).parent


class KernelError(RuntimeError):
    """The kernels cannot be had here; the message says why."""


def cache_folder() -> Path:
    """Folder of compiled kernels: ``$PONITA_FF_CACHE``, else ``ponita_ff`` in the user's cache folder."""
    named = os.environ.get("PONITA_FF_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ponita_ff"


def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else the first usual name on the path; None where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(program: str, source: Path, target: Path) -> None:
    """Compile into a file of its own first: a library under its final name is always whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        for threads in _THREADS:
            command = [program, *_FLAGS, *threads, str(source), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise KernelError(f"{program} could not be run ({error})") from None
            if done.returncode == 0:
                if not threads:
                    logger.warning("%s knows no OpenMP: the kernels run on one thread", program)
                library.replace(target)
                return
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
        raise KernelError(f"{program} could not compile {source.name}: {reason.strip()}")


def _target(name: str, program: str) -> Path:
    """Where the library is kept: its name tells everything that it depends on."""
    parts = [path.read_bytes() for path in (_FOLDER / f"{name}.cpp", *sorted(_FOLDER.glob("*.h")))]
    try:
        parts.append(subprocess.run([program, "--version"], capture_output=True, timeout=_PATIENCE, check=False).stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{program} could not be run ({error})") from None
    parts += [text.encode() for text in (program, _processor(), platform.machine(), *_FLAGS)]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return cache_folder() / f"{name}-{digest}.so"


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The library of ``<name>.cpp``, compiled at first use (seconds), then taken from the cache.

    Raises:
        KernelError: Where there is no compiler, it fails, or the cache cannot be written or read.
    """
    program = compiler()
    if program is None:
        raise KernelError("there is no C++ compiler (g++ or clang++; $CXX names another)")
    target = _target(name, program)
    try:
        if not target.is_file():
            # Libraries are loaded from here: nobody else may write into it.
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            logger.info("compiling %s for this machine, once", f"{name}.cpp")
            _compile(program, _FOLDER / f"{name}.cpp", target)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise KernelError(
            f"the compiled kernels in {target.parent} cannot be written or read ({error}): remove the folder, or name "
            "another by PONITA_FF_CACHE"
        ) from None
