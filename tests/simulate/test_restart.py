"""State of a run on the disk, and growing files that are cut back to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read
from ase.io.trajectory import TrajectoryWriter
from ase.md.nose_hoover_chain import IsotropicMTKNPT

from ponita_ff.simulate.restart import (
    FileMark,
    RestartError,
    State,
    dynamics_variables,
    set_dynamics_variables,
)


def append(path: Path, numbers: range) -> None:
    """Frames that are told apart by a coordinate."""
    with TrajectoryWriter(path, "a") as writer:
        for number in numbers:
            atoms = molecule("H2O")
            atoms.positions[0, 0] = number
            writer.write(atoms)


@pytest.mark.parametrize("kept", [1, 2, 30, 43, 44])
def test_a_trajectory_is_cut_back(kept: int, tmp_path: Path) -> None:
    """Its table of frames moves when it has grown to 1 and to 43 frames."""
    path = tmp_path / "run.traj"
    append(path, range(kept))
    mark, before = FileMark.of(path), path.read_bytes()
    append(path, range(100, 190))
    mark.cut_back(path)
    assert len(path.read_bytes()) == len(before)
    assert [atoms.positions[0, 0] for atoms in read(path, ":")] == list(range(kept))
    append(path, range(kept, 100))
    assert [atoms.positions[0, 0] for atoms in read(path, ":")] == list(range(100))


def test_a_file_that_lost_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step\n0\n1\n", encoding="utf-8")
    mark = FileMark.of(path)
    path.write_text("step\n0\n", encoding="utf-8")
    with pytest.raises(RestartError, match=r"log\.csv is missing or was shortened"):
        mark.cut_back(path)
    path.unlink()
    with pytest.raises(RestartError, match=r"log\.csv is missing or was shortened"):
        mark.cut_back(path)


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    state = State(
        identity={"timestep": 0.1, "potentials": ["ab"]},
        numbers=np.array([8, 1, 1]),
        start=generator.normal(size=(3, 3)),
        start_cell=np.zeros((3, 3)),
        step=7,
        positions=generator.normal(size=(3, 3)),
        momenta=generator.normal(size=(3, 3)),
        cell=np.eye(3) / 3,
        generator=dict(generator.bit_generator.state),
        variables={"_thermostat._eta": np.arange(3) / 3},
        marks={"log.csv": FileMark(12, "00ff")},
    )
    state.save(tmp_path / "state.npz")
    again = State.load(tmp_path / "state.npz")
    for name in ("numbers", "start", "start_cell", "positions", "momenta", "cell"):
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))
    for name in ("identity", "step", "generator", "marks"):
        assert getattr(again, name) == getattr(state, name)
    np.testing.assert_array_equal(again.variables["_thermostat._eta"], state.variables["_thermostat._eta"])
    copy = np.random.default_rng()
    copy.bit_generator.state = again.generator
    assert copy.normal() == generator.normal()
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_another_file_is_no_state(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", facts=np.array('{"format": "another"}'))
    with pytest.raises(RestartError, match="another version of ponita_ff"):
        State.load(tmp_path / "state.npz")
    np.savez(tmp_path / "state.npz", other=np.zeros(2))
    with pytest.raises(RestartError, match=r"state\.npz is not the state of a run"):
        State.load(tmp_path / "state.npz")


def test_variables_of_thermostat_and_barostat_are_found() -> None:
    def barostat() -> IsotropicMTKNPT:
        atoms = bulk("Cu", cubic=True)
        atoms.calc = EMT()
        return IsotropicMTKNPT(
            atoms, 2 * units.fs, temperature_K=300, pressure_au=0.01, tdamp=50 * units.fs, pdamp=100 * units.fs
        )

    moved, other = barostat(), barostat()
    moved.run(3)
    found = dynamics_variables(moved)
    changed = {name for name, value in dynamics_variables(other).items() if not np.array_equal(value, found[name])}
    assert changed >= {"_p_eps", "_eps", "_thermostat._p_eta", "_barostat._p_xi"}
    set_dynamics_variables(other, found)
    for name, value in dynamics_variables(other).items():
        np.testing.assert_array_equal(value, found[name])
    assert other._thermostat._p_eta is not moved._thermostat._p_eta
