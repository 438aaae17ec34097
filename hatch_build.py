"""Build hook of the wheel: compiles the C++ kernels for common processors, so that users need no compiler.

The wheel is then bound to the operating system and kind of processor, but to no version of Python: the kernels are
plain shared libraries, loaded by ctypes. Without a compiler the wheel is pure, and the kernels are compiled where it is
installed, at first use. An editable installation compiles nothing here either.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface[Any]):
    """Adds compiled kernels to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the libraries as files of the wheel.

        Args:
            version: ``"standard"``, or ``"editable"``.
            build_data: Hatchling's: files to include and the tag of the wheel.
        """
        if version == "editable":
            return
        build = _kernels_build(Path(self.root))
        program, levels = build.compiler(), build.buildable_levels()
        if program is None or not levels:
            reason = (
                "there is no C++ compiler"
                if program is None
                else "they are not compiled ahead for this kind of machine"
            )
            self.app.display_warning(f"the wheel has no compiled kernels: {reason}")
            return
        self._folder = tempfile.TemporaryDirectory()  # until finalize
        folder = Path(self._folder.name)
        jobs = [(name, level, folder, build.prebuilt_stem(name, level)) for level in levels for name in build.LIBRARIES]
        names = ", ".join(level.name for level in levels)
        self.app.display_info(f"compiling the kernels with {program} for {names} (some minutes)")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                made = list(pool.map(lambda job: build.compile_library(program, *job), jobs))
            except build.KernelError as error:
                self.app.display_warning(f"the wheel has no compiled kernels: {error}")
                return
        for path in made:
            build_data["force_include"][str(path)] = f"ponita_ff/kernels/{build.PREBUILT.name}/{path.name}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the libraries, which are in the wheel now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _kernels_build(root: Path) -> ModuleType:
    """``ponita_ff.kernels.build`` by itself: the package around it needs torch, which is not there while building."""
    spec = importlib.util.spec_from_file_location("kernels_build", root / "ponita_ff" / "kernels" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for the types of its named tuples
    spec.loader.exec_module(module)
    return module
