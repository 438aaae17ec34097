"""Finds, checks and loads the shared libraries of the kernels."""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ponita_ff.kernels.build import (
    NATIVE,
    PREBUILT,
    KernelError,
    cache_folder,
    compile_library,
    compiled_stem,
    compiler,
    intact_libraries,
    prebuilt_stem,
    usable_levels,
)
from ponita_ff.kernels.cache import check_private, make_private_folder
from ponita_ff.kernels.structs import STRUCTS

__all__ = ["SUFFIX", "Kernels", "load"]

logger = logging.getLogger(__name__)

#: What the names of the functions for a dtype end in.
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class Kernels:
    """The functions of one library for one dtype.

    Args:
        name: Of the library.
        dtype: float32 or float64.

    Raises:
        KernelError: For another dtype, or where the library cannot be had.

    Attributes:
        width: Elements of a vector register.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        if dtype not in SUFFIX:
            raise KernelError(f"the native kernels compute in float32 and float64, not {dtype}")
        self._library, self._suffix = load(name), SUFFIX[dtype]
        self.width = int(self.function("vector_width", ctypes.c_int64)())

    def function(self, name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
        """The function ``<name>_<dtype>`` with the types of its result and arguments."""
        function = getattr(self._library, f"{name}_{self._suffix}")
        function.restype, function.argtypes = result, arguments
        return function

    def limit(self, name: str) -> int:
        """One of the limits of limits.h, such as ``MAX_LAYERS``.

        Raises:
            KernelError: Where the library knows no such limit.
        """
        return _ask(self._library, "limit", name)


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The library made of ``<name>.cpp``, from the first of these places:

    1. the folder ``prebuilt`` of an installed wheel: for the best level that this processor can run, made of the very
       sources that lie beside it;
    2. the cache folder: compiled for this very machine at an earlier use;
    3. compiled now, which takes seconds, and kept in the cache folder.

    A damaged library is passed over. The cache folder and a library in it must be this user's own, or root's.

    Raises:
        KernelError: Where none of them can be had or the library does not fit to this Python code. The callers then
            go on with torch alone.
    """
    library = next(_prebuilt(name), None) or _compiled(name)
    _check_structs(name, library)
    return library


def _prebuilt(name: str) -> Iterator[ctypes.CDLL]:
    """Prebuilt libraries that this processor can run, the best first."""
    if not PREBUILT.is_dir():
        return
    for level in usable_levels():
        for path in intact_libraries(PREBUILT, prebuilt_stem(name, level)):
            try:
                yield _open(path)
            except OSError as error:
                logger.warning("the prebuilt kernels %s cannot be loaded (%s)", path.name, error)


def _compiled(name: str) -> ctypes.CDLL:
    """The library compiled for this very machine, now or earlier."""
    program = compiler()
    if program is None:
        raise KernelError("there is no C++ compiler (g++ or clang++; $CXX names another)")
    folder, stem = cache_folder(), compiled_stem(name, program)
    try:
        make_private_folder(folder)
        path = next(intact_libraries(folder, stem), None)
        if path is None:
            logger.info("compiling %s for this machine, once", f"{name}.cpp")
            path = compile_library(program, name, NATIVE, folder, stem)
        check_private(path)
        return _open(path)
    except OSError as error:
        raise KernelError(
            f"the compiled kernels in {folder} cannot be written or read ({error}): remove the folder, or name "
            "another by PONITA_FF_CACHE"
        ) from None


def _open(path: Path) -> ctypes.CDLL:
    """Load a library; its OpenMP functions are found in the runtime that torch uses.

    The libraries name no OpenMP runtime (see :func:`ponita_ff.kernels.build.compile_library`). ``import torch`` loads
    one with global symbols; where it did not, the copy beside torch is made global, then the system's is tried.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        if sys.platform != "linux" or "undefined symbol" not in str(error):
            raise
        runtime = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), Path("libgomp.so.1"))
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))


def _check_structs(name: str, library: ctypes.CDLL) -> None:
    """Refuse a library whose structures are not those of structs.py."""
    for struct in STRUCTS[name]:
        size = _ask(library, "struct_size", struct.__name__)
        if size != ctypes.sizeof(struct):
            raise KernelError(
                f"the structure {struct.__name__} has {size} bytes in the library of {name}.cpp and "
                f"{ctypes.sizeof(struct)} in ponita_ff.kernels.structs: both must have the same fields"
            )


def _ask(library: ctypes.CDLL, question: str, name: str) -> int:
    """What a library answers about a structure or limit, by its name in C++."""
    function = getattr(library, question)
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_char_p,)
    answer = int(function(name.encode()))
    if answer < 0:
        raise KernelError(f"the library has no {name} ({question})")
    return answer
