"""A potential's companions: found beside its file, a committee by name, asked about structures."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from click.testing import CliRunner

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.cli import main
from ponita_ff.cli.options import input_files
from ponita_ff.data import Frame
from ponita_ff.potential.companions import CALIBRATION_FILE, committee_members, companions_of, shipped_calibration
from ponita_ff.potential.domain import TrainingDomain
from ponita_ff.potential.domain_watch import OutsideTrainingData
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import graphs_of
from ponita_ff.uncertainty import calibrate


def structures(number: int) -> list[Atoms]:
    generator = np.random.default_rng(0)
    found = [molecule("CH3OH") for _ in range(number)]
    for atoms in found:
        atoms.positions += 0.02 * generator.normal(size=atoms.positions.shape)
    return found


@pytest.fixture(scope="module")
def folder(make_potential: Callable[..., Potential], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential with two companions, calibrated on slightly displaced methanol."""
    folder = tmp_path_factory.mktemp("shipped")
    names = ("potential", "companion-1", "companion-2")
    for seed, name in enumerate(names):
        member = make_potential(seed=seed, channels=8, num_layers=1)
        save_potential(member, folder / f"{name}.safetensors", {"name": "tiny"})
    members = [load_potential(folder / f"{name}.safetensors") for name in names]
    some = structures(30)
    predicted = members[0].evaluate(some)
    assert predicted.forces is not None
    frames = [
        Frame(atoms.numbers, atoms.positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), float(energy), forces)
        for atoms, energy, forces in zip(some, predicted.energies, predicted.forces, strict=True)
    ]
    calibrate(members, frames).save(folder / CALIBRATION_FILE)
    return folder


def with_calculator(atoms: Atoms, calculator: PonitaCalculator) -> Atoms:
    atoms.calc = calculator
    return atoms


def distorted() -> Atoms:
    atoms = molecule("CH3OH")
    atoms.positions[1] += [0.35, -0.3, 0.2]
    return atoms


def test_names_of_members(folder: Path, tmp_path: Path) -> None:
    assert committee_members("a, b") == ["a", "b"]
    path = tmp_path / "with,comma.safetensors"
    path.touch()
    assert committee_members(str(path)) == [str(path)]
    potential = folder / "potential.safetensors"
    names = [str(folder / f"{name}.safetensors") for name in ("potential", "companion-1", "companion-2")]
    assert committee_members(f"{potential}@committee") == names
    assert [str(path) for path in companions_of(potential)] == names[1:]
    assert committee_members("a" * 5000 + ",x") == ["a" * 5000, "x"]


def test_what_has_no_companions_is_no_committee() -> None:
    with pytest.raises(ValueError, match=r"ethanol-rmd17@committee: this potential has no companions"):
        PonitaCalculator("ethanol-rmd17@committee")
    with pytest.raises(FileNotFoundError, match="neither a file nor a shipped potential"):
        PonitaCalculator("nothing@committee")
    assert shipped_calibration("ethanol-rmd17@committee") is None
    assert shipped_calibration("ethanol-rmd17") is None


def test_the_committee_has_its_calibration(folder: Path) -> None:
    calculator = PonitaCalculator(f"{folder / 'potential.safetensors'}@committee")
    assert len(calculator.potentials) == 3
    assert calculator.calibration is not None
    atoms = with_calculator(molecule("CH3OH"), calculator)
    assert calculator.get_property("forces_std", atoms).shape == (6, 3)


def test_a_single_potential_asks_its_companions(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    calculator = PonitaCalculator(folder / "potential.safetensors")
    assert len(calculator.potentials) == 1
    with_calculator(molecule("CH3OH"), calculator).get_potential_energy()
    watch = calculator.domain_watch
    assert not caplog.records
    assert watch.uncertainty is not None
    assert watch.uncertainty.spread < watch.uncertainty.limit
    with_calculator(molecule("H2O"), calculator).get_potential_energy()
    with_calculator(distorted(), calculator).get_potential_energy()
    assert caplog.messages
    assert caplog.messages[-1].startswith("tiny is uncertain about this structure: the force on atom")


def test_the_spread_is_that_of_the_committee(folder: Path) -> None:
    potential = folder / "potential.safetensors"
    single, committee = PonitaCalculator(potential), PonitaCalculator(f"{potential}@committee")
    atoms = with_calculator(distorted(), single)
    atoms.get_potential_energy()
    deviations = np.linalg.norm(committee.get_property("forces_std", atoms), axis=1)
    found = single.domain_watch.uncertainty
    assert found is not None
    assert found.spread == pytest.approx(deviations.max(), rel=1e-4)
    assert found.atom == deviations.argmax()


def test_a_strict_calculator_refuses(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    potential = load_potential(tmp_path / "potential.safetensors")
    wide = [distorted(), *structures(60)]
    graphs = [graph for _, graph in graphs_of(wide, potential.cutoff, 1000)]
    potential.domain = TrainingDomain.from_graphs(graphs, potential.species, potential.cutoff)
    save_potential(potential, tmp_path / "potential.safetensors", {"name": "tiny"})
    calculator = PonitaCalculator(tmp_path / "potential.safetensors", strict=True)
    with_calculator(molecule("CH3OH"), calculator).get_potential_energy()
    with pytest.raises(OutsideTrainingData, match="is uncertain about this structure"):
        with_calculator(distorted(), PonitaCalculator(tmp_path / "potential.safetensors", strict=True)).get_forces()


def test_copies_ask_them_too(folder: Path) -> None:
    calculator = PonitaCalculator(folder / "potential.safetensors")
    with_calculator(molecule("CH3OH"), calculator).get_potential_energy()
    for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        with_calculator(molecule("H2O"), other).get_potential_energy()
        assert other.domain_watch.uncertainty.spread >= calculator.domain_watch.uncertainty.spread


def test_a_stale_calibration_is_told(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "companion-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"calibration\.json, beside potential.*another committee"):
        PonitaCalculator(tmp_path / "potential.safetensors")
    (tmp_path / CALIBRATION_FILE).unlink()
    PonitaCalculator(tmp_path / "potential.safetensors")


def test_predict_has_the_committee_and_its_calibration(folder: Path, tmp_path: Path) -> None:
    committee = f"{folder / 'potential.safetensors'}@committee"
    atoms = distorted()
    write(tmp_path / "in.xyz", atoms)
    arguments = ["predict", committee, str(tmp_path / "in.xyz"), "-o", str(tmp_path / "out.xyz"), "--no-progress"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    expected = PonitaCalculator(committee).get_property("forces_std", atoms)
    np.testing.assert_allclose(read(tmp_path / "out.xyz").arrays["forces_std"], expected, rtol=1e-4, atol=1e-6)


def test_members_are_inputs_that_outputs_may_not_overwrite() -> None:
    assert input_files("a.safetensors@committee") == ["a.safetensors", "a.safetensors"]
