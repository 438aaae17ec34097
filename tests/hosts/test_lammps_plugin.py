"""Compiling the LAMMPS plugin: what is found, what is refused; and what the plugin asks Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ponita_ff.backends.native.image import MAGIC
from ponita_ff.cli import main
from ponita_ff.hosts import lammps_model
from ponita_ff.hosts.lammps_model import image_for_lammps, load_member, species_of_types
from ponita_ff.hosts.lammps_plugin import Installation, PluginError, build_plugin, find_lammps, is_plugin
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.potential.file import save_potential
from ponita_ff.potential.potential import Potential

MakePotential = Callable[..., Potential]


def source_tree(folder: Path, version: str = "22 Jul 2025") -> Path:
    """What find_lammps looks for in LAMMPS' own folder."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "pair.h").touch()
    (folder / "src" / "version.h").write_text(f'#define LAMMPS_VERSION "{version}"\n', encoding="utf-8")
    return folder


def test_a_source_tree(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "lammps")
    assert find_lammps(tree) == Installation(tree / "src", 20250722, ("LAMMPS_SMALLBIG",))
    old = source_tree(tmp_path / "old", "3 Mar 2020")
    with pytest.raises(PluginError, match=r"version 20200303: the pair style needs 20230802"):
        find_lammps(old)


def test_an_installation(tmp_path: Path) -> None:
    headers = tmp_path / "include" / "lammps"
    headers.mkdir(parents=True)
    (headers / "pair.h").touch()
    with pytest.raises(PluginError, match="version of LAMMPS"):
        find_lammps(tmp_path)
    (tmp_path / "pkgconfig").mkdir()
    text = "Version: 2025.7.22.4\nCflags: -I${includedir}  -DLAMMPS_BIGBIG\n"
    (tmp_path / "pkgconfig" / "liblammps.pc").write_text(text, encoding="utf-8")
    assert find_lammps(tmp_path) == Installation(headers, 20250722, ("LAMMPS_BIGBIG",))


def test_no_lammps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"has no LAMMPS headers"):
        find_lammps(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PluginError, match=r"ponita-ff\[lammps\]"):
        find_lammps()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICXX", "no-such-compiler")
    result = CliRunner().invoke(
        main, ["lammps-plugin", "--lammps", str(source_tree(tmp_path / "tree")), "--out", str(tmp_path / "plugin.so")]
    )
    assert result.exit_code == 1 and "no-such-compiler is not there" in result.output
    assert not (tmp_path / "plugin.so").exists()


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICXX", str(compiler()))
    with pytest.raises(PluginError, match=r"could not compile pair_ponita\.cpp: .*atom\.h"):
        build_plugin(tmp_path / "plugin.so", source_tree(tmp_path / "tree"))
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert not is_plugin(tmp_path / "tree" / "src" / "version.h")


@pytest.fixture
def tiny(make_potential: MakePotential, tmp_path: Path) -> Path:
    """A potential file for H, C and O."""
    path = tmp_path / "tiny.safetensors"
    save_potential(make_potential(dtype=torch.float32, channels=4, num_layers=1), path)
    return path


def test_elements_of_types(tiny: Path) -> None:
    potential = load_member(str(tiny))
    assert species_of_types(potential, ["O", "H", "H", "C"]) == [2, 0, 0, 1]
    with pytest.raises(ValueError, match=r"atom type 2 is N, which this potential does not know; it knows H, C, O"):
        species_of_types(potential, ["H", "N"])
    for name in ("NULL", "hydrogen", "X"):
        with pytest.raises(ValueError, match=f"atom type 1 is given as '{name}', which is no chemical element"):
            species_of_types(potential, [name])


def test_what_lammps_cannot_run(tiny: Path, make_potential: MakePotential, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a committee"):
        load_member(f"{tiny},{tiny}")
    with pytest.raises(FileNotFoundError, match="neither a file nor a shipped potential"):
        load_member("no-such-potential")
    half = make_potential(dtype=torch.float16, channels=4, num_layers=1)
    save_potential(half, tmp_path / "half.safetensors")
    with pytest.raises(KernelError, match="float16"):
        image_for_lammps(str(tmp_path / "half.safetensors"), ["H"], 32)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_what_the_plugin_asks(tiny: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    arguments = ["32", "float64", "2", str(tiny), "H", "O"]
    command = [sys.executable, "-m", "ponita_ff.hosts.lammps_model", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout == image_for_lammps(str(tiny), ["H", "O"], 32, "float64", 2)
    assert done.stdout.startswith(MAGIC)
    # The same here: it sends standard output where errors go.
    before = os.dup(1)
    try:
        lammps_model._main([*arguments[:-1], "N"])
    finally:
        os.dup2(before, 1)
        os.close(before)
    answer = capfdbinary.readouterr().out.decode()
    assert answer == "atom type 2 is N, which this potential does not know; it knows H, C, O"
