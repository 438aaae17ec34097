"""Molecular dynamics: ensembles, files, and runs that go on as if they had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from ponita_ff import PonitaCalculator
from ponita_ff.simulate import md
from ponita_ff.simulate.md import MdSettings, SimulationError, read_log, run_md, steps_of
from ponita_ff.simulate.restart import RestartError

MakePotential = Any


@pytest.fixture(scope="module")
def calculator(tiny_potential_path: Path) -> PonitaCalculator:
    return PonitaCalculator(tiny_potential_path, device="cpu")


def start(calculator: Any, periodic: bool = False) -> Atoms:
    """Ethanol, or methanol in a cell."""
    atoms = molecule("CH3OH" if periodic else "CH3CH2OH")
    if periodic:
        atoms.set_cell([5.0, 5.2, 4.8])
        atoms.pbc = True
    atoms.calc = calculator
    return atoms


def settings(**values: Any) -> MdSettings:
    """60 steps; a row of the log every 4, a frame every 8, a state every 10; the tiny potential holds no bonds."""
    defaults = {"steps": 60, "log_every": 2.0, "frame_every": 4.0, "state_every": 5.0, "bond_limit": None}
    return MdSettings(**{**defaults, **values})


class Killed(BaseException):
    """Stands for a signal that no code handles."""


def run_until(monkeypatch: pytest.MonkeyPatch, step: int, atoms: Atoms, chosen: MdSettings, out: Path) -> None:
    """Run, and die before this step."""
    advance = md._Run._advance

    def advance_or_die(self: Any, steps: int) -> None:
        if self.step + steps > step:
            raise Killed
        advance(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(md._Run, "_advance", advance_or_die)
        with pytest.raises(Killed):
            run_md(atoms, chosen, out, progress=False)


def assert_same_run(one: Path, other: Path, trajectory: str) -> None:
    """Logs and frames of two runs are equal to the last bit."""
    assert (one / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    frames = [read(folder / f"trajectory.{trajectory}", ":") for folder in (one, other)]
    assert len(frames[0]) == len(frames[1]) == 1 + 60 // 8
    for a, b in zip(*frames, strict=True):
        for values in (lambda x: x.positions, lambda x: x.get_momenta(), lambda x: x.cell.array, Atoms.get_forces):
            np.testing.assert_array_equal(values(a), values(b))


@pytest.mark.parametrize(
    "kind",
    [
        {"ensemble": "nve"},
        {"ensemble": "nvt", "thermostat": "bussi"},
        {"ensemble": "nvt", "thermostat": "langevin", "trajectory": "xyz"},
        {"ensemble": "npt"},
        {"ensemble": "npt", "flexible_cell": True},
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)
def test_a_continued_run_is_the_uninterrupted_one_to_the_last_bit(
    kind: dict[str, Any], calculator: PonitaCalculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    periodic, chosen = kind["ensemble"] == "npt", settings(**kind)
    run_md(start(calculator, periodic), chosen, tmp_path / "whole", progress=False)
    # The last state is of step 30; a frame and rows of the log after it must go.
    run_until(monkeypatch, 38, start(calculator, periodic), chosen, tmp_path / "broken")
    assert read_log(tmp_path / "broken" / "log.csv")["step"][-1] == 36
    continued = run_md(start(calculator, periodic), chosen, tmp_path / "broken", progress=False)
    assert (continued.continued_from, continued.steps) == (30, 60)
    assert_same_run(tmp_path / "whole", tmp_path / "broken", chosen.trajectory)
    assert (tmp_path / "broken" / "final.xyz").read_bytes() == (tmp_path / "whole" / "final.xyz").read_bytes()


def test_a_longer_run_is_the_long_run(calculator: PonitaCalculator, tmp_path: Path) -> None:
    run_md(start(calculator), settings(steps=60), tmp_path / "whole", progress=False)
    run_md(start(calculator), settings(steps=20), tmp_path / "parts", progress=False)
    assert run_md(start(calculator), settings(steps=60), tmp_path / "parts", progress=False).continued_from == 20
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "traj")


def test_a_finished_run_is_left_alone(calculator: PonitaCalculator, tmp_path: Path) -> None:
    run_md(start(calculator), settings(steps=10), tmp_path, progress=False)
    before = (tmp_path / "trajectory.traj").read_bytes()
    again = run_md(start(calculator), settings(steps=10), tmp_path, progress=False)
    assert again.steps_per_second is None and again.steps == 10
    assert (tmp_path / "trajectory.traj").read_bytes() == before


def test_another_run_in_the_same_folder_is_refused(
    calculator: PonitaCalculator, make_potential: MakePotential, tmp_path: Path
) -> None:
    run_md(start(calculator), settings(steps=10), tmp_path, progress=False)
    with pytest.raises(RestartError, match=r"other settings: go on with temperature: 300\.0, timestep: 0\.5, or"):
        run_md(start(calculator), settings(temperature=310, timestep=1.0), tmp_path, progress=False)
    moved = start(calculator)
    moved.positions[0, 0] += 1e-9
    with pytest.raises(RestartError, match="from another structure"):
        run_md(moved, settings(), tmp_path, progress=False)
    with pytest.raises(RestartError, match="another potential"):
        run_md(start(PonitaCalculator(make_potential(seed=1))), settings(), tmp_path, progress=False)
    (tmp_path / "trajectory.traj").write_bytes(b"short")
    with pytest.raises(RestartError, match=r"trajectory\.traj is missing or was shortened"):
        run_md(start(calculator), settings(), tmp_path, progress=False)
    (tmp_path / "state.npz").write_bytes(b"nonsense")
    with pytest.raises(RestartError, match=r"state\.npz is not the state of a run"):
        run_md(start(calculator), settings(), tmp_path, progress=False)


@pytest.mark.usefixtures("drawn_pictures")
def test_files_and_log_agree(calculator: PonitaCalculator, tmp_path: Path) -> None:
    result = run_md(start(calculator, periodic=True), settings(), tmp_path, progress=False)
    log = read_log(tmp_path / "log.csv")
    np.testing.assert_array_equal(log["step"], np.arange(0, 61, 4))
    np.testing.assert_allclose(log["time_ps"], 0.0005 * log["step"])
    np.testing.assert_array_equal(log["total_eV"], log["potential_eV"] + log["kinetic_eV"])
    assert set(result.log) == set(log) >= {"pressure_GPa", "volume_A3", "bond_change_A", "temperature_K"}
    frames = read(tmp_path / "trajectory.traj", ":")
    for frame, row in zip(frames, range(0, 16, 2), strict=True):
        assert frame.get_potential_energy() == log["potential_eV"][row]
        assert frame.get_kinetic_energy() == pytest.approx(log["kinetic_eV"][row])
        stress = frame.get_stress(voigt=False, include_ideal_gas=True)
        assert -np.trace(stress) / 3 / units.GPa == pytest.approx(log["pressure_GPa"][row])
    assert read(tmp_path / "final.xyz").get_potential_energy() == pytest.approx(log["potential_eV"][-1])
    assert (tmp_path / "md.png").read_bytes().startswith(b"\x89PNG")


def test_the_start_has_the_wanted_temperature_and_no_drift(calculator: PonitaCalculator, tmp_path: Path) -> None:
    for ensemble, freedom in (("nvt", 3 * 6 - 3), ("npt", 3 * 6 - 3)):
        folder = tmp_path / ensemble
        run_md(start(calculator, periodic=True), settings(steps=4, ensemble=ensemble), folder, progress=False)
        first = read(folder / "trajectory.traj", 0)
        assert 2 * first.get_kinetic_energy() / (units.kB * freedom) == pytest.approx(300)
        np.testing.assert_allclose(first.get_momenta().sum(axis=0), 0, atol=1e-9)
        assert read_log(folder / "log.csv")["temperature_K"][0] == pytest.approx(300)


def test_velocities_can_be_kept(calculator: PonitaCalculator, tmp_path: Path) -> None:
    run_md(start(calculator), settings(steps=8), tmp_path / "before", progress=False)
    atoms = read(tmp_path / "before" / "final.xyz")
    atoms.calc = calculator
    kept = atoms.get_momenta()
    run_md(atoms, settings(steps=8, ensemble="nve", velocities="keep"), tmp_path / "after", progress=False)
    np.testing.assert_allclose(read(tmp_path / "after" / "trajectory.traj", 0).get_momenta(), kept, atol=1e-7)
    with pytest.raises(SimulationError, match="no velocities: leave out --keep-velocities"):
        run_md(start(calculator), settings(velocities="keep"), tmp_path / "none", progress=False)


def test_constraints_of_the_structure_are_kept(calculator: PonitaCalculator, tmp_path: Path) -> None:
    atoms = start(calculator)
    atoms.set_constraint(FixAtoms([0, 1]))
    run_md(atoms, settings(), tmp_path, progress=False)
    last = read(tmp_path / "trajectory.traj", -1)
    np.testing.assert_array_equal(last.positions[:2], molecule("CH3CH2OH").positions[:2])
    assert np.abs(last.positions[2:] - molecule("CH3CH2OH").positions[2:]).max() > 0.01


def test_energy_is_conserved_and_drift_told(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    chosen = settings(ensemble="nve", timestep=2.0, steps=200, log_every=4)
    result = run_md(atoms, chosen, tmp_path, progress=False)
    assert result.drift is not None and result.drift.rms / 4 < 0.5
    assert np.ptp(result.log["total_eV"]) < 0.02 * np.ptp(result.log["kinetic_eV"])


def test_thermostat_and_barostat_bring_what_was_asked_for(tmp_path: Path) -> None:
    """Four atoms of copper at 300 K; with the 3n degrees of freedom that ASE reckons with it would be at 400 K."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    times = {"timestep": 8.0, "log_every": 16.0, "thermostat_time": 80.0, "barostat_time": 400.0}
    log = run_md(atoms, settings(ensemble="npt", steps=180, pressure=1.0, **times), tmp_path, progress=False).log
    later = log["time_ps"] > 0.5
    assert log["temperature_K"][later].mean() == pytest.approx(300, abs=50)
    assert log["pressure_GPa"][later].mean() == pytest.approx(1.0, abs=0.5)
    assert log["volume_A3"][later].mean() < log["volume_A3"][0]


@pytest.mark.usefixtures("drawn_pictures")
def test_a_broken_bond_ends_the_run(calculator: PonitaCalculator, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"broken after 0\.\d+ ps: the bond [CHO]\d–[CHO]\d has changed from"):
        run_md(start(calculator), settings(bond_limit=0.5), tmp_path, progress=False)
    log = read_log(tmp_path / "log.csv")
    assert log["bond_change_A"][-1] > 0.5 >= log["bond_change_A"][-2]
    assert read(tmp_path / "trajectory.traj", -1).info["time_ps"] == log["time_ps"][-1]
    assert (tmp_path / "md.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "final.xyz").exists()
    # With another limit the same run goes on from its last state.
    assert run_md(start(calculator), settings(), tmp_path, progress=False).continued_from > 0


def test_a_committee_is_watched(
    make_potential: MakePotential, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [make_potential(seed=seed, scale=0.05, zbl_cutoff=1.0) for seed in (0, 1)]
    committee = PonitaCalculator(members, device="cpu")
    chosen = settings(steps=8, uncertainty_warning=1e-6)
    log = run_md(start(committee), chosen, tmp_path / "warned", progress=False).log
    assert (log["forces_std_eV_per_A"] > 1e-6).all()
    assert "forces are uncertain by" in caplog.text
    chosen = settings(steps=8, uncertainty_limit=1e-6)
    with pytest.raises(SimulationError, match=r"ended after 0\.002 ps: forces are uncertain by .* the limit is 1e-06"):
        run_md(start(committee), chosen, tmp_path / "stopped", progress=False)


def test_what_cannot_be_run_is_refused(calculator: PonitaCalculator, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="npt needs a cell that is periodic"):
        run_md(start(calculator), settings(ensemble="npt"), tmp_path, progress=False)
    atom = Atoms("C")
    atom.calc = calculator
    with pytest.raises(SimulationError, match="two atoms or more"):
        run_md(atom, settings(), tmp_path, progress=False)
    held = start(calculator, periodic=True)
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(SimulationError, match="npt cannot hold constrained atoms"):
        run_md(held, settings(ensemble="npt"), tmp_path, progress=False)


def test_steps_of_a_time() -> None:
    assert steps_of(1.0, 0.5) == 2000
    assert steps_of(1e-9, 0.5) == 1
