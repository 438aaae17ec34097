"""Finding and loading the kernels: in which place, and what is refused."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from owners import pretend_owner

from ponita_ff.kernels import build, loader
from ponita_ff.kernels.build import LIBRARIES, KernelError, Target
from ponita_ff.kernels.loader import Kernels
from ponita_ff.kernels.structs import STRUCTS

SOURCE = """
#include <cstdint>
#include <cstring>
extern "C" int answer() { return 42; }
extern "C" int64_t struct_size(const char* name) { return std::strcmp(name, "Pair") ? -1 : 16; }
"""

BEST, PLAIN = Target("best", "native"), Target("plain", "native")

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library of our own, ``small``, with two levels, an empty folder of prebuilt ones and an empty cache."""
    for name in ("source", "prebuilt"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "small.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "source")
    monkeypatch.setattr(loader, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(loader, "usable_levels", lambda: [BEST, PLAIN])
    monkeypatch.setenv("PONITA_FF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(STRUCTS, "small", ())
    loader.load.cache_clear()
    yield tmp_path
    loader.load.cache_clear()


def load_again() -> ctypes.CDLL:
    loader.load.cache_clear()
    return loader.load("small")


def put_prebuilt(folder: Path, level: Target, answer: int) -> None:
    """A prebuilt library of these very sources, by its name; its answer tells which one it is."""
    source = folder / "source" / "small.cpp"
    source.write_text(SOURCE.replace("42", str(answer)), encoding="utf-8")
    made = build.compile_library(str(build.compiler()), "small", level, folder, "made")
    source.write_text(SOURCE, encoding="utf-8")
    made.replace(folder / "prebuilt" / made.name.replace("made", build.prebuilt_stem("small", level)))


def in_cache(folder: Path) -> list[Path]:
    """What is in the cache, halves of files included."""
    return sorted((folder / "cache").rglob("*"))


@needs_compiler
def test_order_of_places(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_prebuilt(small, PLAIN, 1)
    assert load_again().answer() == 1
    put_prebuilt(small, BEST, 2)
    assert load_again().answer() == 2
    monkeypatch.setattr(loader, "usable_levels", lambda: [PLAIN])
    assert load_again().answer() == 1
    assert not in_cache(small)
    monkeypatch.setattr(loader, "usable_levels", lambda: [])
    assert load_again().answer() == 42
    assert len(in_cache(small)) == 1
    shutil.rmtree(small / "prebuilt")
    assert load_again().answer() == 42


@needs_compiler
def test_prebuilt_ones_of_other_sources_are_passed_over(small: Path) -> None:
    put_prebuilt(small, BEST, 1)
    (small / "source" / "small.cpp").write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    assert load_again().answer() == 43


@needs_compiler
def test_a_damaged_prebuilt_library_is_passed_over_with_a_warning(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_prebuilt(small, PLAIN, 1)
    put_prebuilt(small, BEST, 2)
    (best,) = (small / "prebuilt").glob("small-best-*")
    best.write_bytes(best.read_bytes()[:5000])
    assert load_again().answer() == 1
    assert "small-best" in caplog.text


@needs_compiler
def test_a_prebuilt_library_that_cannot_be_loaded_is_passed_over_with_a_warning(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_prebuilt(small, PLAIN, 1)
    stem = build.prebuilt_stem("small", BEST)
    content = b"not a library"
    (small / "prebuilt" / f"{stem}-{hashlib.sha256(content).hexdigest()[:32]}.so").write_bytes(content)
    assert load_again().answer() == 1
    assert "small-best" in caplog.text and "cannot be loaded" in caplog.text


@needs_compiler
def test_prebuilt_libraries_may_belong_to_whoever_installed_the_package(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_prebuilt(small, BEST, 1)
    (path,) = (small / "prebuilt").iterdir()
    pretend_owner(monkeypatch, path, os.getuid() + 1)
    assert load_again().answer() == 1


@needs_compiler
def test_prebuilt_kernels_need_no_compiler(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_prebuilt(small, BEST, 1)
    monkeypatch.setattr(loader, "compiler", lambda: None)
    assert load_again().answer() == 1


@needs_compiler
def test_compiled_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_again().answer() == 42
    (kept,) = in_cache(small)

    def never(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(loader, "compile_library", never)
    assert load_again().answer() == 42
    assert in_cache(small) == [kept]


@needs_compiler
def test_changed_source_is_compiled_anew(small: Path) -> None:
    assert load_again().answer() == 42
    (small / "source" / "small.cpp").write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    assert load_again().answer() == 43
    assert len(in_cache(small)) == 2


@needs_compiler
def test_cache_that_cannot_be_written(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("PONITA_FF_CACHE", str(small / "file" / "cache"))
    with pytest.raises(KernelError, match="another by PONITA_FF_CACHE"):
        load_again()


@needs_compiler
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_library_is_compiled_anew(share: float, small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To load it would end this process by SIGBUS."""
    assert load_again().answer() == 42
    (path,) = in_cache(small)
    whole = path.read_bytes()
    path.unlink()  # the file that this process has mapped
    path.write_bytes(whole[: int(share * len(whole))])
    assert load_again().answer() == 42
    assert f"{path} is damaged" in caplog.text
    assert whole in [kept.read_bytes() for kept in in_cache(small)]


@needs_compiler
@pytest.mark.parametrize("place", ["folder", "library"])
@pytest.mark.parametrize("fault", ["writable", "foreign"])
def test_a_library_that_others_could_have_planted_is_not_run(
    place: str, fault: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_again().answer() == 42
    path = small / "cache" if place == "folder" else in_cache(small)[0]
    if fault == "writable":
        path.chmod(0o777)
    else:
        pretend_owner(monkeypatch, path, os.getuid() + 1)

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr(loader, "_open", never)
    with pytest.raises(KernelError, match=f"{path.name} .*PONITA_FF_CACHE"):
        load_again()


@pytest.mark.usefixtures("small")
def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
        load_again()


def test_compiler_named_by_the_user(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(KernelError, match=r"broken-compiler could not compile small\.cpp: error: out of order"):
        load_again()


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP runtime is elsewhere a matter of the linker")
def test_openmp_runtime_beside_torch_is_made_global_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    runtime = tmp_path / "lib" / "libgomp-a34b3233.so.1"
    runtime.write_bytes(b"")
    opened: list[tuple[str, int | None]] = []

    def load(path: str, mode: int | None = None) -> str:
        opened.append((path, mode))
        if len(opened) == 1:
            raise OSError(f"{path}: undefined symbol: GOMP_parallel")
        return path

    monkeypatch.setattr(loader.torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert loader._open(Path("kernels.so")) == "kernels.so"
    assert opened == [("kernels.so", None), (str(runtime), ctypes.RTLD_GLOBAL), ("kernels.so", None)]


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_in_the_process() -> None:
    for name in LIBRARIES:
        loader.load(name)
    mapped = {Path(word) for word in Path("/proc/self/maps").read_text(encoding="utf-8").split() if "/" in word}
    runtimes = {path for path in mapped if path.name.startswith(("libgomp", "libomp", "libiomp"))}
    # Another test in this process may have loaded a package that brings a runtime of its own, such as PySCF.
    ours = {path for path in runtimes if "site-packages" not in path.parts or "torch" in path.parts}
    assert len(ours) == 1


class Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int64), ("second", ctypes.c_int64))


class PairWithOneMore(ctypes.Structure):
    _fields_ = (*Pair._fields_, ("third", ctypes.c_int64))


@needs_compiler
@pytest.mark.usefixtures("small")
def test_structures_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRUCTS, "small", (Pair,))
    assert load_again().answer() == 42
    PairWithOneMore.__name__ = "Pair"
    monkeypatch.setitem(STRUCTS, "small", (PairWithOneMore,))
    with pytest.raises(KernelError, match=r"Pair has 16 bytes in the library of small\.cpp and 24 in"):
        load_again()
    PairWithOneMore.__name__ = "Unknown"
    with pytest.raises(KernelError, match="no Unknown"):
        load_again()


@needs_compiler
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_fits_to_python(name: str) -> None:
    loaded = loader.load(name)
    assert [loader._ask(loaded, "struct_size", s.__name__) for s in STRUCTS[name]] == [
        ctypes.sizeof(s) for s in STRUCTS[name]
    ]


@needs_compiler
def test_limits() -> None:
    kernels = Kernels("engine", torch.float32)
    limits = ("MAX_LAYERS", "MAX_DEGREES", "MAX_HARMONICS")
    assert [kernels.limit(name) for name in limits] == [64, 13, 9]
    assert kernels.width in (4, 8, 16)
    with pytest.raises(KernelError, match="no MAX_ATOMS"):
        kernels.limit("MAX_ATOMS")


def test_other_dtypes_have_no_kernels() -> None:
    with pytest.raises(KernelError, match=r"float32 and float64, not .*bfloat16"):
        Kernels("engine", torch.bfloat16)
