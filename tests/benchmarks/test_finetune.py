"""The fine-tuning benchmark: what it trains on, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
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

from ponita_ff.potential.file import read_header


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """With two molecules in place of ten, tiny networks, and results of its own."""
    module = script("finetune")
    generator = np.random.default_rng(0)
    for name in ("CH3OH", "H2O"):
        for part, number in (("train", 1000), ("test", 20)):
            frames = [molecule(name) for _ in range(number)]
            for atoms in frames:
                atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
            labelled = frames if part == "test" else frames[:40]
            for atoms in labelled:
                atoms.calc = EMT()
            chosen = [labelled[k % len(labelled)] for k in range(number)]
            np.savez(
                tmp_path / f"rmd17_{name}_{part}_01.npz",
                nuclear_charges=frames[0].numbers,
                coords=np.array([atoms.positions for atoms in chosen]),
                energies=np.array([atoms.get_potential_energy() for atoms in chosen]),
                forces=np.array([atoms.get_forces() for atoms in chosen]),
            )
    monkeypatch.setattr(module, "MOLECULES", ("CH3OH", "H2O"))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    for command in (module.base, module.tune, module.scratch):
        for parameter in command.params:
            if parameter.name == "molecule":
                parameter.type.choices = ["CH3OH", "H2O"]
    small = module.TrainConfig.from_mapping

    def tiny(values: dict[str, Any], *arguments: Any) -> Any:
        return small({**values, "model": {"channels": 8, "num_layers": 1, "num_ori": 6}}, *arguments)

    monkeypatch.setattr(module.TrainConfig, "from_mapping", tiny)
    return module


def call(benchmark: ModuleType, folder: Path, *arguments: str) -> None:
    name, *rest = arguments
    result = CliRunner().invoke(benchmark.main, [name, "--data", str(folder), "--work", str(folder / "work"), *rest])
    assert result.exit_code == 0, (result.output, result.exception)


def test_every_result_gets_to_the_page(benchmark: ModuleType, tmp_path: Path) -> None:
    call(benchmark, tmp_path, "base", "--without", "H2O", "--minutes", "0.03")
    base = tmp_path / "work" / "base-without-H2O" / "potential.safetensors"
    assert read_header(base)["species"] == [1, 6, 8]
    few = ("--molecule", "H2O", "--frames", "10")
    call(benchmark, tmp_path, "tune", *few, "--set", "optimiser.steps=5")
    call(benchmark, tmp_path, "tune", *few, "--no-replay", "--set", "optimiser.steps=5")
    call(benchmark, tmp_path, "scratch", *few, "--steps", "5")
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


def test_a_base_with_further_frames(benchmark: ModuleType, tmp_path: Path) -> None:
    """It is another base, and trains on them as well."""
    write(tmp_path / "some.xyz", [argon() for _ in range(3)], format="extxyz")
    further = ("--further", str(tmp_path / "some.xyz"))
    call(benchmark, tmp_path, "base", "--without", "H2O", "--minutes", "0.03", *further)
    base = tmp_path / "work" / "base-without-H2O-with-some" / "potential.safetensors"
    assert read_header(base)["species"] == [1, 6, 8, 18]
    few = ("--molecule", "H2O", "--frames", "10", "--set", "optimiser.steps=5")
    call(benchmark, tmp_path, "tune", *few, *further)
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


def test_another_level_of_theory(benchmark: ModuleType, tmp_path: Path) -> None:
    call(benchmark, tmp_path, "base", "--without", "H2O", "--minutes", "0.03")
    base = tmp_path / "work" / "base-without-H2O" / "potential.safetensors"
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
    call(benchmark, tmp_path, *few, "--no-replay", "--set", "optimiser.steps=5", "--nvt-ps", "0.005")
    call(benchmark, tmp_path, *few, "--scratch", "5")
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
