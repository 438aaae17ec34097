"""The wheel's build hook: what it adds to a wheel, and when it adds nothing. Compiling itself is tested in kernels/."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


class Application:
    """What the hook tells the user."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def display_info(self, message: str) -> None:
        self.said.append(message)

    display_warning = display_info


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook of this checkout, and hatchling's interface as far as it is used, which need not be installed."""

    class BuildHookInterface:
        __class_getitem__ = classmethod(lambda cls, item: cls)

        def __init__(self) -> None:
            self.root, self.app = str(ROOT), Application()

    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = BuildHookInterface
    for length in range(1, 5):
        name = ".".join(interface.__name__.split(".")[:length])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.KernelBuildHook()
    made.build = module._kernels_build(ROOT)
    monkeypatch.setattr(module, "_kernels_build", lambda root: made.build)
    return made


def new_data() -> dict[str, Any]:
    return {"force_include": {}, "pure_python": True}


def compile_with(action: Callable[[Path], object]) -> Callable[..., Path]:
    def compile_library(program: str, name: str, level: object, folder: Path, stem: str) -> Path:
        path = folder / f"{stem}-hash.so"
        action(path)
        return path

    return compile_library


def test_a_wheel_carries_every_library_for_every_level(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = list(hook.build._LEVELS[:2])
    monkeypatch.setattr(hook.build, "compiler", lambda: "g++")
    monkeypatch.setattr(hook.build, "buildable_levels", lambda: levels)
    monkeypatch.setattr(hook.build, "compile_library", compile_with(lambda path: path.write_bytes(b"library")))
    data = new_data()
    hook.initialize("standard", data)
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")
    assert set(data["tag"].removeprefix("py3-none-")).isdisjoint("-.")
    assert sorted(data["force_include"].values()) == sorted(
        f"ponita_ff/kernels/prebuilt/{hook.build.prebuilt_stem(name, level)}-hash.so"
        for name in hook.build.LIBRARIES
        for level in levels
    )
    assert all(Path(path).read_bytes() == b"library" for path in data["force_include"])
    hook.finalize("standard", data, "wheel")
    assert not any(Path(path).exists() for path in data["force_include"])


def test_an_editable_installation_compiles_nothing(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook.build, "compile_library", None)
    data = new_data()
    hook.initialize("editable", data)
    hook.finalize("editable", data, "wheel")
    assert data == new_data()


@pytest.mark.parametrize(
    ("program", "levels", "reason"),
    [(None, [None], "there is no C++ compiler"), ("g++", [], "they are not compiled ahead for this kind of machine")],
)
def test_a_pure_wheel_where_it_cannot_compile(
    program: str | None, levels: list[None], reason: str, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook.build, "compiler", lambda: program)
    monkeypatch.setattr(hook.build, "buildable_levels", lambda: levels)
    data = new_data()
    hook.initialize("standard", data)
    assert data == new_data()
    (said,) = hook.app.said
    assert said == f"the wheel has no compiled kernels: {reason}"


def test_a_compiler_that_fails_leaves_the_wheel_pure(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise hook.build.KernelError("g++ could not compile engine.cpp")

    monkeypatch.setattr(hook.build, "compiler", lambda: "g++")
    monkeypatch.setattr(hook.build, "buildable_levels", lambda: [hook.build._LEVELS[0]])
    monkeypatch.setattr(hook.build, "compile_library", compile_with(fail))
    data = new_data()
    hook.initialize("standard", data)
    assert data == new_data()
    hook.finalize("standard", data, "wheel")
    assert hook.app.said[-1] == "the wheel has no compiled kernels: g++ could not compile engine.cpp"
