"""The LAMMPS plugin, which takes a minute to compile."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ponita_ff
from ponita_ff.hosts.lammps_plugin import PluginError, build_plugin
from ponita_ff.kernels.build import cache_folder
from ponita_ff.kernels.cache import make_private_folder


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The pair style, compiled once for the sources as they are."""
    package = Path(ponita_ff.__file__).parent
    sources = [package / "hosts" / "pair_ponita.cpp", *sorted((package / "kernels").glob("*.h"))]
    parts = [sys.executable, version("lammps"), *(path.read_text(encoding="utf-8") for path in sources)]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / f"test-{digest}-ponitaplugin.so"
    try:
        if not path.is_file():
            make_private_folder(path.parent)
            build_plugin(path)
    except PluginError as error:
        pytest.skip(f"the plugin cannot be compiled here: {error}")
    return path
