"""Compiles this folder's C++ into shared libraries, for the machine at hand or for a level of processors.

Only the standard library is imported here: ``hatch_build.py`` runs this file by itself while a wheel is built.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "FLAGS",
    "LIBRARIES",
    "NATIVE",
    "PREBUILT",
    "KernelError",
    "Target",
    "buildable_levels",
    "cache_folder",
    "compile_library",
    "compiled_stem",
    "compiler",
    "intact_libraries",
    "prebuilt_stem",
    "processor_features",
    "usable_levels",
]

logger = logging.getLogger(__name__)

#: The libraries, each from the source file of its name.
LIBRARIES = ("activation", "engine", "messages", "training")

#: Of the compiler. No -ffast-math: its start-up code would change rounding in the whole process.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")

#: Seconds after which a compiler counts as hanging.
_TIMEOUT = 300.0

_FOLDER = Path(__file__).parent

#: Where a wheel has the libraries that were compiled when it was built.
PREBUILT = _FOLDER / "prebuilt"


class KernelError(RuntimeError):
    """The kernels cannot be used here, or not for this network; the message says why."""


class Target(NamedTuple):
    """A kind of processor to compile for.

    Attributes:
        name: Stands in the names of prebuilt libraries.
        march: The compiler's ``-march``.
        machines: Values of ``platform.machine()`` that this is for.
        needs: Features that the processor must have, as Linux lists them in ``/proc/cpuinfo``.
    """

    name: str
    march: str
    machines: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()


#: The machine that compiles, and no other.
NATIVE = Target("native", "native")

_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

#: What a wheel carries, the best first: levels of the x86-64 psABI (https://gitlab.com/x86-psABIs/x86-64-ABI), and
#: arm64, all of whose processors have the vector units that the kernels use.
_LEVELS = (
    Target("x86-64-v4", "x86-64-v4", ("x86_64", "AMD64"), _V4),
    Target("x86-64-v3", "x86-64-v3", ("x86_64", "AMD64"), _V3),
    Target("arm64", "armv8-a", ("aarch64", "arm64")),
)


def buildable_levels() -> list[Target]:
    """Levels that a wheel built on this machine shall carry, the best first."""
    levels = [level for level in _LEVELS if platform.machine() in level.machines]
    # Only Linux tells what an x86-64 processor can do without running machine code.
    return [level for level in levels if not level.needs or sys.platform == "linux"]


def usable_levels() -> list[Target]:
    """Levels whose code this machine's processor can run, the best first."""
    features = processor_features()
    return [level for level in buildable_levels() if level.needs <= features]


def processor_features() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty elsewhere."""
    return frozenset(_features_line().partition(":")[2].split())


def _features_line() -> str:
    """The line of ``/proc/cpuinfo`` that lists the features; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


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


def prebuilt_stem(name: str, level: Target) -> str:
    """What the name of a prebuilt library begins with. It changes with the sources and options that it is made of.

    Args:
        name: One of :data:`LIBRARIES`.
        level: Processors that it is for.
    """
    return f"{name}-{level.name}-{_digest(name, level)}"


def compiled_stem(name: str, program: str) -> str:
    """What the name of a library compiled for this very machine begins with. It changes with all it depends on.

    Args:
        name: One of :data:`LIBRARIES`.
        program: The compiler.

    Raises:
        KernelError: Where the compiler cannot be run.
    """
    machine = (_version(program), program, _features_line() or platform.processor(), platform.machine())
    return f"{name}-{_digest(name, NATIVE, machine)}"


def intact_libraries(folder: Path, stem: str) -> Iterator[Path]:
    """Libraries in a folder, by what their names begin with, whose content is still what was compiled.

    A library that has been cut short since ends the whole process (SIGBUS) as soon as it is loaded.

    Raises:
        OSError: Where one cannot be read.
    """
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if path.name == _sealed_name(stem, path):
            yield path
        else:
            logger.warning("%s is damaged: it is not what was compiled, and is not used", path)


def _sealed_name(stem: str, library: Path) -> str:
    """The file name of a library: it ends in a hash of the content, so that file and hash cannot be at odds."""
    return f"{stem}-{hashlib.sha256(library.read_bytes()).hexdigest()[:32]}.so"


def _digest(name: str, target: Target, others: Sequence[str] = ()) -> str:
    """Hash of a library's sources, of the compiler's options, and of other things that it depends on."""
    parts = [path.read_bytes() for path in (_FOLDER / f"{name}.cpp", *sorted(_FOLDER.glob("*.h")))]
    parts += [text.encode() for text in (target.march, *FLAGS, *others)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def compile_library(program: str, name: str, target: Target, folder: Path, stem: str) -> Path:
    """Compile ``<name>.cpp`` into a shared library.

    GCC's OpenMP runtime is used but not named as a needed library: torch brings its own copy, and the symbols are
    found in whichever copy is in the process (see :func:`ponita_ff.kernels.loader.load`). Other compilers' OpenMP is
    linked as they do it, and only for this very machine.

    Args:
        program: The compiler.
        name: One of :data:`LIBRARIES`.
        target: Processors to compile for.
        folder: Where the library appears, only when it is whole.
        stem: What its name begins with; a hash of its content follows.

    Returns:
        The library.

    Raises:
        KernelError: Where the compiler cannot be run or fails.
        OSError: Where the file cannot be written.
    """
    source = _FOLDER / f"{name}.cpp"
    gcc = "Free Software Foundation" in _version(program)
    threads = ("-fopenmp",) if gcc or target == NATIVE else ()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made, library = Path(temporary) / f"{name}.o", Path(temporary) / f"{name}.so"
        compiling = [program, *FLAGS, f"-march={target.march}", "-c", str(source), "-o", str(made)]
        linking = [program, "-shared", str(made), "-o", str(library)]
        error = _run([*compiling, *threads]) or _run(linking if gcc else [*linking, *threads])
        if error and threads:
            threads = ()
            error = _run(compiling) or _run(linking)
        if error:
            raise KernelError(f"{program} could not compile {source.name}: {error}")
        if not threads:
            logger.warning("%s has no OpenMP that could be used: %s runs on one thread", program, name)
        library.chmod(0o644)  # nobody else may write to it, whatever the umask
        return library.replace(folder / _sealed_name(stem, library))


def _version(program: str) -> str:
    """What the compiler says of itself."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{program} could not be run ({error})") from None
    return done.stdout


def _run(command: list[str]) -> str:
    """Run the compiler; returns the first line of its error message, empty where it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{command[0]} could not be run ({error})") from None
    if done.returncode == 0:
        return ""
    reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
    return reason.strip() or f"exit status {done.returncode}"
