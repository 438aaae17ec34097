"""The fine-tuning benchmark: what it trains on, and its page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from click.testing import CliRunner
from matplotlib.figure import Figure

from ponita_ff.potential.file import read_header

#: In place of rMD17's ten molecules.
MOLECULES = ("CH3OH", "H2O")


def write_frames(folder: Path, name: str, part: str, number: int, different: int) -> None:
    """Frames labelled by EMT as an rMD17 file, of which only the first are different from each other."""
    generator = np.random.default_rng(len(name))
    atoms = molecule(name)
    atoms.calc = EMT()
    start, rows = atoms.positions.copy(), []
    for _ in range(different):
        atoms.positions = start + 0.05 * generator.normal(size=start.shape)
        rows.append((atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    coords, energies, forces = (np.array([rows[k % different][column] for k in range(number)]) for column in range(3))
    path = folder / f"rmd17_{name}_{part}_01.npz"
    np.savez(path, nuclear_charges=atoms.numbers, coords=coords, energies=energies, forces=forces)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the rMD17 files."""
    folder = tmp_path_factory.mktemp("data")
    for name in MOLECULES:
        write_frames(folder, name, "train", 1000, 40)  # of which 950 train and 50 validate
        write_frames(folder, name, "test", 20, 20)
    return folder


@pytest.fixture(scope="module")
def small_benchmark(script: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    """The script for these molecules, with tiny networks and coarse plots."""
    module = script("finetune")
    from_mapping, savefig = module.TrainConfig.from_mapping, Figure.savefig

    def tiny(values: dict[str, Any], *arguments: Any) -> Any:
        return from_mapping({**values, "model": {"channels": 8, "num_layers": 1, "num_ori": 6}}, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOLECULES", MOLECULES)
        patch.setattr(module.TrainConfig, "from_mapping", tiny)
        patch.setattr(Figure, "savefig", lambda self, path, **options: savefig(self, path, **options | {"dpi": 20}))
        for command in (module.base, module.tune, module.scratch):
            for parameter in command.params:
                if parameter.name == "molecule":
                    patch.setattr(parameter.type, "choices", list(MOLECULES))
        yield module


@pytest.fixture
def benchmark(small_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with results of its own."""
    monkeypatch.setattr(small_benchmark, "RESULTS", tmp_path)
    return small_benchmark


def call(benchmark: ModuleType, data: Path, work: Path, *arguments: str) -> None:
    name, *rest = arguments
    result = CliRunner().invoke(benchmark.main, [name, "--data", str(data), "--work", str(work), *rest])
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.fixture(scope="module")
def bases(small_benchmark: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base that has never seen water, and its result."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_benchmark, "RESULTS", folder)
        call(small_benchmark, data, folder, "base", "--without", "H2O", "--minutes", "0.01")
    return folder


def test_every_result_gets_to_the_page(benchmark: ModuleType, data: Path, bases: Path, tmp_path: Path) -> None:
    assert read_header(bases / "base-without-H2O" / "potential.safetensors")["species"] == [1, 6, 8]
    shutil.copy(bases / "finetune.json", tmp_path)
    few = ("--molecule", "H2O", "--frames", "10")
    call(benchmark, data, bases, "tune", *few, "--set", "optimiser.steps=5")
    call(benchmark, data, bases, "tune", *few, "--no-replay", "--set", "optimiser.steps=5")
    call(benchmark, data, bases, "scratch", *few, "--steps", "5")
    results = json.loads((tmp_path / "finetune.json").read_text(encoding="utf-8"))
    kept = results["tune"]["H2O, 10 frames, optimiser.steps=5"]
    assert set(kept["known"]["before"]) == set(kept["known"]["after"]) == {"CH3OH"}
    assert "H2O, 10 frames, no replay, optimiser.steps=5" in results["tune"]
    page = (tmp_path / "finetune.md").read_text(encoding="utf-8")
    assert f"| H2O | {results['base']['H2O']['steps']:,} |" in page
    assert f"| H2O, 10 frames, optimiser.steps=5 | 5 | {kept['force_mae']:.1f} | {kept['energy_mae']:.1f} |" in page
    plain = results["scratch"]["H2O, 10 frames"]
    assert f"| H2O, 10 frames |  |  |  |  | {plain['force_mae']:.1f} | {plain['energy_mae']:.1f} |" in page
    assert (tmp_path / "finetune.png").read_bytes().startswith(b"\x89PNG")
    known = f"{kept['known']['before']['CH3OH']:.1f} → {kept['known']['after']['CH3OH']:.1f}"
    assert f"| H2O, 10 frames, optimiser.steps=5 | {known} | {known} |  |" in page


def test_a_base_with_extra_frames(benchmark: ModuleType, data: Path, tmp_path: Path) -> None:
    """It is another base, and trains on them as well."""
    write(tmp_path / "some.xyz", [argon() for _ in range(3)], format="extxyz")
    extra = ("--extra", str(tmp_path / "some.xyz"))
    call(benchmark, data, tmp_path, "base", "--without", "H2O", "--minutes", "0.01", *extra)
    base = tmp_path / "base-without-H2O-with-some" / "potential.safetensors"
    assert read_header(base)["species"] == [1, 6, 8, 18]
    few = ("--molecule", "H2O", "--frames", "10", "--set", "optimiser.steps=5")
    call(benchmark, data, tmp_path, "tune", *few, *extra)
    results = json.loads((tmp_path / "finetune.json").read_text(encoding="utf-8"))
    assert list(results["base"]) == ["H2O, base with some"]
    assert list(results["tune"]) == ["H2O, 10 frames, base with some, optimiser.steps=5"]


def argon() -> Atoms:
    """A labelled pair."""
    atoms = Atoms("Ar2", [[0.0, 0.0, 0.0], [0.0, 0.0, 3.8]], calculator=LennardJones(rc=20.0))
    labels = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return Atoms(
        atoms.numbers, atoms.positions, calculator=labels, info={"energy_unit": "eV", "length_unit": "Angstrom"}
    )


def test_another_level_of_theory(benchmark: ModuleType, data: Path, bases: Path, tmp_path: Path) -> None:
    base = bases / "base-without-H2O" / "potential.safetensors"
    generator, frames = np.random.default_rng(1), []
    for _ in range(12):
        atoms = molecule("CH3OH")
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        forces, energy = atoms.get_forces(), atoms.get_potential_energy() - 100.0
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    write(tmp_path / "train.xyz", frames[:8])
    write(tmp_path / "test.xyz", frames[8:])
    files = ("--base", str(base), "--train", str(tmp_path / "train.xyz"), "--test", str(tmp_path / "test.xyz"))
    few = ("other", *files, "--frames", "8")
    call(benchmark, data, bases, *few, "--no-replay", "--set", "optimiser.steps=5", "--nvt-ps", "0.005")
    call(benchmark, data, bases, *few, "--scratch", "5")
    results = json.loads((tmp_path / "finetune.json").read_text(encoding="utf-8"))["other"]
    tuned, scratch = results.values()
    (name,) = tuned["tests"]
    assert name.endswith("/test.xyz")
    assert tuned["tests"][name]["energy_mae"] < 1e4 < 1e3 * 100.0  # the energies' other zero has been found
    assert set(tuned["known"]["after"]) == {"CH3OH", "H2O"}
    assert "known" not in scratch
    assert tuned["nvt"]["picoseconds"] <= 0.005
    page = (tmp_path / "finetune.md").read_text(encoding="utf-8")
    assert f"| {tuned['tests'][name]['force_mae']:.1f} | {tuned['tests'][name]['energy_mae']:.1f} |" in page
    assert "| random weights |" in page
