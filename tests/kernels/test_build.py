"""Compiling the kernels: once, into a cache, and with a plain word where it cannot be done."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from ponita_ff.kernels import build
from ponita_ff.kernels.build import KernelError

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A source of our own, and an empty cache."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "small.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "source")
    monkeypatch.setenv("PONITA_FF_CACHE", str(tmp_path / "cache"))
    build.load.cache_clear()
    yield
    build.load.cache_clear()


needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")


def libraries(tmp_path: Path) -> list[Path]:
    """What is in the cache, halves of files included."""
    return sorted((tmp_path / "cache").rglob("*"))


@needs_compiler
def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.load("small")
    assert isinstance(library, ctypes.CDLL)
    assert library.answer() == 42
    (kept,) = libraries(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", never)
    build.load.cache_clear()
    assert build.load("small").answer() == 42
    assert libraries(tmp_path) == [kept]


@needs_compiler
def test_changed_source_is_compiled_anew(tmp_path: Path) -> None:
    assert build.load("small").answer() == 42
    (tmp_path / "source" / "small.cpp").write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    build.load.cache_clear()
    assert build.load("small").answer() == 43
    assert len(libraries(tmp_path)) == 2


@needs_compiler
def test_source_that_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "source" / "small.cpp").write_text("int answer() { return nothing; }", encoding="utf-8")
    with pytest.raises(KernelError, match=r"small\.cpp.*nothing"):
        build.load("small")
    assert libraries(tmp_path) == []


@needs_compiler
def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("PONITA_FF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(KernelError, match="another by PONITA_FF_CACHE"):
        build.load("small")


@needs_compiler
def test_damaged_library(tmp_path: Path) -> None:
    source = tmp_path / "source" / "small.cpp"
    source.write_text(SOURCE + "// damaged", encoding="utf-8")
    name = build._target("small", str(build.compiler())).name
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_bytes(b"not a library")
    with pytest.raises(KernelError, match="remove the folder"):
        build.load("small")


@needs_compiler
def test_compiler_without_threads(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(build, "_THREADS", (("-fno-such-thing",), ()))
    assert build.load("small").answer() == 42
    assert "one thread" in caplog.text


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
        build.load("small")


def test_compiler_named_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(KernelError, match=r"broken-compiler could not compile small\.cpp: error: out of order"):
        build.load("small")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PONITA_FF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert build.cache_folder() == tmp_path / "home" / "ponita_ff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path.home() / ".cache" / "ponita_ff"
