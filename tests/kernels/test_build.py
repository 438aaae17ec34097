"""Compiling the kernels: for this machine and for levels of processors, with a clear message where it fails."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ponita_ff.kernels import build
from ponita_ff.kernels.build import NATIVE, KernelError, Target

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")

V4, V3 = build._LEVELS[:2]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one small source, instead of the package's."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "small.cpp").write_text('extern "C" int answer() { return 42; }\n', encoding="utf-8")
    monkeypatch.setattr(build, "_FOLDER", folder)
    return folder


@needs_compiler
def test_the_smallest_kernel_for_a_level(tmp_path: Path) -> None:
    """As the wheel's build hook does it; its OpenMP runtime is the one in the process, not one that it names itself."""
    level = build.buildable_levels()[-1]
    stem = build.prebuilt_stem("activation", level)
    path = build.compile_library(str(build.compiler()), "activation", level, tmp_path, stem)
    assert path.name.startswith(f"{stem}-")
    assert b"libgomp" not in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if level in build.usable_levels():
        library = ctypes.CDLL(str(path))
        number = ctypes.c_double
        x, value, derivative = number(0.0), number(1.0), number(0.0)
        addresses = [ctypes.c_void_p(ctypes.addressof(where)) for where in (x, value, derivative)]
        library.gelu_f64(ctypes.c_int64(1), ctypes.c_int64(1), *addresses)
        assert (value.value, derivative.value) == (0.0, 0.5)


@needs_compiler
def test_source_that_does_not_compile(sources: Path, tmp_path: Path) -> None:
    (sources / "small.cpp").write_text("int answer() { return nothing; }", encoding="utf-8")
    with pytest.raises(KernelError, match=r"small\.cpp.*nothing"):
        build.compile_library(str(build.compiler()), "small", NATIVE, tmp_path, "small")
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.usefixtures("sources")
def test_compiler_without_openmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        if "-fopenmp" in command:
            return "error: unsupported option '-fopenmp'"
        Path(command[command.index("-o") + 1]).write_bytes(b"")
        return ""

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "_version", lambda program: "Apple clang version 17")
    assert build.compile_library("c++", "small", NATIVE, tmp_path, "small").is_file()
    assert [("-fopenmp" in command, "-shared" in command) for command in commands] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert "small runs on one thread" in caplog.text


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    ("version", "target", "links_openmp"),
    [
        ("g++ 14 Free Software Foundation", NATIVE, False),
        ("g++ 14 Free Software Foundation", V3, False),
        ("clang version 19", NATIVE, True),
    ],
)
def test_whose_openmp(
    version: str, target: Target, links_openmp: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GCC's runtime comes with torch and is not named by the library; others are linked."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"")
        return ""

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "_version", lambda program: version)
    build.compile_library("c++", "small", target, tmp_path, "small")
    compiling, linking = commands
    assert "-fopenmp" in compiling
    assert f"-march={target.march}" in compiling
    assert ("-fopenmp" in linking) == links_openmp


@needs_compiler
@pytest.mark.usefixtures("sources")
def test_a_library_that_is_no_longer_what_was_compiled_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = os.umask(0)
    try:
        path = build.compile_library(str(build.compiler()), "small", NATIVE, tmp_path, "small-1")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o022 == 0
    whole = path.read_bytes()
    assert list(build.intact_libraries(tmp_path, "small-1")) == [path]
    assert not list(build.intact_libraries(tmp_path, "small-2"))
    for content in (*(whole[: len(whole) * tenths // 10] for tenths in range(10)), whole[:-1] + b"?", whole + b"\0"):
        path.write_bytes(content)
        caplog.clear()
        assert not list(build.intact_libraries(tmp_path, "small-1"))
        assert f"{path} is damaged" in caplog.text


@pytest.mark.usefixtures("sources")
def test_names_tell_what_a_library_depends_on(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_version", lambda program: "g++ 14")
    names = [
        build.prebuilt_stem("small", V3),
        build.prebuilt_stem("small", V4),
        build.compiled_stem("small", "g++"),
    ]
    monkeypatch.setattr(build, "_version", lambda program: "g++ 15")
    names.append(build.compiled_stem("small", "g++"))
    (sources / "shared.h").write_text("// a header", encoding="utf-8")
    names += [build.prebuilt_stem("small", V3), build.compiled_stem("small", "g++")]
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    names += [build.prebuilt_stem("small", V3), build.compiled_stem("small", "g++")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("machine", "system", "features", "buildable", "usable"),
    [
        ("x86_64", "linux", build._V4 | {"amx"}, ["x86-64-v4", "x86-64-v3"], ["x86-64-v4", "x86-64-v3"]),
        ("x86_64", "linux", build._V3, ["x86-64-v4", "x86-64-v3"], ["x86-64-v3"]),
        ("x86_64", "linux", build._V4 - {"avx512dq"}, ["x86-64-v4", "x86-64-v3"], ["x86-64-v3"]),
        ("x86_64", "linux", build._V4 - {"fma"}, ["x86-64-v4", "x86-64-v3"], []),
        ("x86_64", "darwin", frozenset(), [], []),
        ("aarch64", "linux", frozenset({"asimd"}), ["arm64"], ["arm64"]),
        ("arm64", "darwin", frozenset(), ["arm64"], ["arm64"]),
        ("riscv64", "linux", frozenset(), [], []),
    ],
)
def test_levels(
    machine: str,
    system: str,
    features: frozenset[str],
    buildable: list[str],
    usable: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(build, "processor_features", lambda: features)
    assert [level.name for level in build.buildable_levels()] == buildable
    assert [level.name for level in build.usable_levels()] == usable


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="the names are those of x86-64")
def test_features_of_this_processor() -> None:
    assert {"fpu", "sse2"} <= build.processor_features()


def test_the_build_needs_nothing_but_the_standard_library() -> None:
    """The wheel's build hook runs the file by itself, where torch is not installed."""
    code = f"""
import runpy, sys
names = runpy.run_path({build.__file__!r})
assert names["LIBRARIES"] == {build.LIBRARIES!r}
assert not {{"torch", "numpy", "ponita_ff"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def test_every_source_is_a_library() -> None:
    assert {path.stem for path in Path(build.__file__).parent.glob("*.cpp")} == set(build.LIBRARIES)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONITA_FF_CACHE", str(tmp_path / "cache"))
    assert build.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PONITA_FF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert build.cache_folder() == tmp_path / "home" / "ponita_ff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path.home() / ".cache" / "ponita_ff"
