"""The examples run, keep their promises, and the example data is what its README says."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.vibrations import VibrationsData
from labelled_here import labels_in_this_process
from pictures import drawn_pictures, pictures_left_out
from training_pictures import drawn_plots, plots_left_out

from ponita_ff import FixRigidMotion
from ponita_ff.data import read_frames, read_isolated_atoms

__all__ = ["drawn_pictures", "drawn_plots", "labels_in_this_process", "pictures_left_out", "plots_left_out"]

EXAMPLES = Path(__file__).parents[1] / "md_examples"
DATA = EXAMPLES / "data"
NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)"

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_potential_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs an example as its folder's ``python NAME.py --fast OPTIONS`` would, and gives what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *options: str) -> str:
        standard = ["--potential", str(tiny_potential_path), "--device", "cpu", "--fast", "--allow-broken"]
        importlib.import_module(name).main([*standard, "--out", "results", *options])
        return capsys.readouterr().out

    yield run_example
    for name in ("common", "md", "nve", "nvt", "relax", "vibrations", "neb", "observables", "new_molecule"):
        sys.modules.pop(name, None)


def test_a_broken_molecule_ends_with_an_error(run: Run) -> None:
    common = importlib.import_module("common")
    time = np.arange(4.0)
    record = common.Record(time, 0 * time, 0 * time, np.array([0.0, 0.1, 0.6, 0.1]), 1.0)
    whole = common.Record(time, 0 * time, 0 * time, 0.1 * time, 1.0)
    assert common.say_intact(whole) and not common.say_intact(whole, record)
    strict, lenient = argparse.Namespace(allow_broken=False), argparse.Namespace(allow_broken=True)
    common.require_intact(strict, True, True)
    common.require_intact(lenient, True, False)
    with pytest.raises(SystemExit, match="the molecule broke"):
        common.require_intact(strict, True, False)


def numbers(output: str, name: str) -> list[float]:
    """The numbers of the only line of results with this name; all must be finite."""
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith(name + "  ")]
    assert len(lines) == 1, f"{len(lines)} lines {name!r} in:\n{output}"
    found = [float(value) for value in re.findall(NUMBER, lines[0].removeprefix(name))]
    assert found, lines[0]
    assert all(math.isfinite(value) for value in found), lines[0]
    return found


def check_picture(path: Path) -> None:
    """A PNG of more than an empty canvas."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def check_trajectory(path: Path, frames: int) -> list[Atoms]:
    """Readable frames of ethanol with energies and forces."""
    images = read(path, index=":")
    assert len(images) == frames
    for atoms in images:
        assert atoms.get_chemical_formula() == "C2H6O"
        assert math.isfinite(atoms.get_potential_energy())
        assert np.isfinite(atoms.get_forces()).all()
    return images


@pytest.mark.usefixtures("drawn_pictures")
def test_md(run: Run) -> None:
    output = run("md", "--temperature", "250")
    # 20 steps of NVT and 40 of NVE, a frame every 20, the last of the one is the first of the other.
    images = check_trajectory(Path("results/md.traj"), 2 + 3)
    assert np.any(images[-1].get_momenta() != 0)
    check_picture(Path("results/md.png"))
    for part in ("NVT", "NVE"):
        mean, deviation = numbers(output, f"temperature ({part})")
        assert 0 < mean < 5000
        assert 0 < deviation < mean
    _, error = numbers(output, "energy drift")
    assert error > 0
    total, per_atom = numbers(output, "energy fluctuation")
    assert per_atom == pytest.approx(total / 9, rel=1e-2)
    speed, ns_per_day = numbers(output, "speed")
    assert ns_per_day == pytest.approx(speed * 0.5e-6 * 86_400, abs=2e-3, rel=2e-3)
    assert re.search(r"molecule +(intact|BROKEN): ", output)


def test_md_is_repeatable(run: Run) -> None:
    run("md")
    first = read("results/md.traj").positions
    run("md")
    np.testing.assert_array_equal(read("results/md.traj").positions, first)


@pytest.mark.usefixtures("drawn_pictures")
def test_nve(run: Run) -> None:
    output = run("nve", "--timestep", "0.4")
    check_trajectory(Path("results/nve-0.4fs.traj"), 3)
    check_trajectory(Path("results/nve-0.2fs.traj"), 3)
    check_picture(Path("results/nve.png"))
    coarse, fine = output.split("Results with steps of ")[1:]
    for part, atoms in ((coarse, 9), (fine.split("Half the")[0], 9)):
        total, per_atom = numbers(part, "energy fluctuation")
        assert per_atom == pytest.approx(total / atoms, rel=1e-2)
        assert len(numbers(part, "energy drift")) == 2
    assert numbers(output, "fluctuation smaller by")[0] > 0


@pytest.mark.parametrize("thermostat", ["langevin", "bussi", "both"])
@pytest.mark.usefixtures("drawn_pictures")
def test_nvt(run: Run, thermostat: str) -> None:
    output = run("nvt", "--thermostat", thermostat)
    names = ["langevin", "bussi"] if thermostat == "both" else [thermostat]
    assert sorted(path.stem for path in Path("results").glob("*.traj")) == sorted(f"nvt-{name}" for name in names)
    for name, part in zip(names, output.split("Running ")[1:], strict=True):
        check_trajectory(Path(f"results/nvt-{name}.traj"), 3)
        mean, error, wanted = numbers(part, "mean temperature")
        assert 0 < mean < 5000
        assert error > 0
        assert wanted == 300
        _, freedom, exact = numbers(part, "its standard deviation")
        assert freedom == 24
        assert exact == pytest.approx(300 * math.sqrt(2 / 24), abs=0.06)
    check_picture(Path("results/nvt.png"))


@pytest.mark.parametrize("optimiser", ["FIRE2", "BFGS"])
@pytest.mark.usefixtures("drawn_pictures")
def test_relax(run: Run, optimiser: str) -> None:
    output = run("relax", "--optimiser", optimiser)
    images = check_trajectory(Path("results/relax.traj"), 6)
    relaxed = read("results/relaxed.xyz")
    np.testing.assert_allclose(relaxed.positions, images[-1].positions, atol=1e-7)
    check_picture(Path("results/relax.png"))
    assert numbers(output, "energy")[0] == pytest.approx(images[-1].get_potential_energy(), abs=1e-6)
    images[-1].set_constraint(FixRigidMotion())
    largest = np.linalg.norm(images[-1].get_forces(), axis=1).max()
    assert numbers(output, "largest force")[0] == pytest.approx(largest, abs=1e-6)
    shaken, end = numbers(output, "C–O")
    assert shaken == pytest.approx(images[0].get_distance(1, 2), abs=1e-3)
    assert end == pytest.approx(images[-1].get_distance(1, 2), abs=1e-3)
    assert len(numbers(output, "H–O–C–C torsion")) == 2


@pytest.mark.usefixtures("drawn_pictures")
def test_vibrations(run: Run) -> None:
    output = run("vibrations")
    check_trajectory(Path("results/relax.traj"), 6)
    check_picture(Path("results/vibrations.png"))
    rows = re.findall(r"^ +\d+ +([\d.]+)(i  IMAGINARY)?$", output, flags=re.MULTILINE)
    assert len(rows) == 3 * 9 - 6
    real = [float(value) for value, imaginary in rows if not imaginary]
    assert numbers(output, "rigid motions")[0] >= 0
    zero_point, in_kcal = numbers(output, "zero-point energy")
    assert zero_point == pytest.approx(0.5 * sum(real) / 8065.544, abs=1e-4)
    assert in_kcal == pytest.approx(zero_point * 23.0605, abs=6e-3)
    assert VibrationsData.read("results/vibrations.json").get_hessian_2d().shape == (27, 27)


def test_vibrations_agree_with_finite_differences(run: Run) -> None:
    tables = []
    for options in ((), ("--finite-differences",)):
        run("vibrations", *options)
        tables.append(VibrationsData.read("results/vibrations.json").get_hessian_2d())
    np.testing.assert_allclose(tables[1], tables[0], atol=5e-3 * np.abs(tables[0]).max())


@pytest.mark.usefixtures("drawn_pictures")
def test_neb(run: Run) -> None:
    output = run("neb")
    images = check_trajectory(Path("results/neb.traj"), 5)
    check_picture(Path("results/neb.png"))
    energies = [atoms.get_potential_energy() for atoms in images]
    for name, value in (
        ("barrier trans → gauche", max(energies) - energies[0]),
        ("barrier gauche → trans", max(energies) - energies[-1]),
        ("gauche − trans", energies[-1] - energies[0]),
    ):
        in_mev, in_kcal = numbers(output, name)
        assert in_mev == pytest.approx(1e3 * value, abs=0.02)
        assert in_kcal == pytest.approx(23.0605 * value, abs=2e-3)


@pytest.fixture
def observables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("observables")


@pytest.mark.usefixtures("drawn_pictures")
def test_observables_beside_reference_frames(run: Run) -> None:
    """The same run again, beside its own frames: no difference but for the mean temperature."""
    run("observables")
    check_picture(Path("results/observables.png"))
    frames = read("results/observables.traj", index=":")
    for atoms in frames:
        atoms.set_constraint()
    write("frames.xyz", frames, format="extxyz")
    output = run("observables", "--frames", "frames.xyz", "--temperature", "500")
    assert numbers(output, "distances differ by")[0] == 0.0
    temperature = numbers(output, "temperature")[0]
    for name in "HCO":
        ours, theirs = numbers(output, f"frequency of {name}")
        assert ours == pytest.approx(theirs * math.sqrt(500 / temperature), abs=1.0)


@pytest.mark.usefixtures("drawn_pictures", "labels_in_this_process")
def test_new_molecule_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    options = ("--structure", "H2CO", "--method", "ase.calculators.emt:EMT", "--budget", "6", "--tests", "3")
    output = run("new_molecule", *options, "--stop", "1e9")
    assert numbers(output, "labels trained on")[0] == 6
    assert numbers(output, "labels tested on")[0] == 3
    (error,), (size,) = numbers(output, "force MAE on these"), numbers(output, "forces are")
    assert 0 < error < 10 * size
    factor = numbers(output, "calibration")[0]
    kept = json.loads((tmp_path / "results" / "calibration.json").read_text(encoding="utf-8"))
    assert factor == pytest.approx(kept["forces"], abs=0.006)
    assert (tmp_path / "results" / "new_molecule.png").read_bytes().startswith(b"\x89PNG")
    trained = sorted((tmp_path / "results" / "explored").glob("round-*/member-*/potential.safetensors"))
    assert trained
    made = [path.stat().st_mtime_ns for path in trained]
    again = run("new_molecule", *options, "--stop", "1e-9")
    assert [path.stat().st_mtime_ns for path in trained] == made
    assert numbers(again, "force MAE on these")[0] == error
    assert "The run was stopped" in again
    assert "molecule  " not in again


def test_spectrum_of_known_oscillations(observables: ModuleType) -> None:
    """Two atoms at 1,000 and 3,000 cm⁻¹, sampled every fs."""
    time_fs = np.arange(8000.0)
    hertz = 100 * units._c * np.array([1000.0, 3000.0])
    velocities = np.cos(2 * np.pi * hertz[None, :] * 1e-15 * time_fs[:, None])[:, :, None] * np.ones(3)
    wave_numbers, power = observables.spectrum(velocities, np.array([1.0, 16.0]), 1.0)
    np.testing.assert_allclose(wave_numbers[power.argmax(axis=0)], [1000, 3000], atol=5)


def test_einstein_frequency_of_harmonic_atoms(observables: ModuleType) -> None:
    """Forces of atoms on springs of 2,000 and 500 cm⁻¹ at 400 K have the variance k T m ω²."""
    generator, temperature = np.random.default_rng(0), 400.0
    frames = []
    for _ in range(4000):
        atoms = Atoms("HO", [(0, 0, 0), (3, 0, 0)])
        angular = np.array([2000.0, 500.0]) * 100 * units._c * 2 * np.pi / units.s
        width = np.sqrt(units.kB * temperature * atoms.get_masses()) * angular
        atoms.calc = SinglePointCalculator(atoms, forces=width[:, None] * generator.standard_normal((2, 3)))
        frames.append(atoms)
    found = observables.einstein_frequencies(frames, temperature)
    assert found == {"H": pytest.approx(2000, rel=0.02), "O": pytest.approx(500, rel=0.02)}


def test_observables_of_another_molecule(observables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds other molecules than C2H6O"):
        observables.main(["--frames", str(DATA / "methanol_gfn2.xyz"), "--out", str(tmp_path / "out")])


def test_first_path_of_neb_turns_only_the_hydroxyl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    common, neb = importlib.import_module("common"), importlib.import_module("neb")
    trans, gauche = common.ethanol(), common.ethanol()
    gauche.set_dihedral(*common.TORSION, 60, indices=[common.HYDROXYL_H])
    for end in (trans, gauche):
        neb.hold_frame(end)
    path = neb.first_path(trans, gauche, 5)
    torsions = [common.torsion(atoms) % 360 for atoms in path]
    np.testing.assert_allclose(torsions, np.linspace(180, 60, 7), atol=1e-6)
    for atoms in path:
        assert atoms.get_distance(2, 3) == pytest.approx(trans.get_distance(2, 3))
        assert atoms.get_angle(1, 2, 3) == pytest.approx(trans.get_angle(1, 2, 3))
        others = [0, 1, 2, 4, 5, 6, 7, 8]
        np.testing.assert_allclose(atoms.positions[others], trans.positions[others], atol=1e-9)
    # The frame takes away the rigid motions and nothing else.
    assert path[0].get_number_of_degrees_of_freedom() == 3 * 9 - 6
    np.testing.assert_allclose(trans.get_all_distances(), common.ethanol().get_all_distances(), atol=1e-9)


def test_script_runs_by_itself(tmp_path: Path, tiny_potential_path: Path) -> None:
    """As a person runs it: its own process, another folder, the default folder for results."""
    command = [
        sys.executable,
        str(EXAMPLES / "md.py"),
        "--fast",
        "--allow-broken",
        "--potential",
        str(tiny_potential_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    check_picture(tmp_path / "md-out" / "md.png")
    numbers(done.stdout, "energy drift")


def test_unknown_potential_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit, match="cannot use no-such-potential"):
        importlib.import_module("relax").main(["--potential", "no-such-potential", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- the example data


@pytest.fixture(scope="module")
def methanol() -> list[Atoms]:
    return read(DATA / "methanol_gfn2.xyz", index=":")


def test_data_set_is_sound(methanol: list[Atoms]) -> None:
    assert len(methanol) == 400
    for atoms in methanol:
        assert atoms.get_chemical_formula() == "CH4O"
        assert not atoms.pbc.any()
        assert math.isfinite(atoms.get_potential_energy())
        forces = atoms.get_forces()
        assert np.isfinite(forces).all()
        assert np.abs(forces.sum(axis=0)).max() < 1e-4
        torque = np.cross(atoms.positions, forces).sum(axis=0)
        assert np.abs(torque).max() < 1e-3
        assert atoms.info["level_of_theory"] == "GFN2-xTB"
    positions = {atoms.positions.tobytes() for atoms in methanol}
    assert len(positions) == 400


def test_data_set_reads_as_ours(methanol: list[Atoms]) -> None:
    frames = read_frames(DATA / "methanol_gfn2.xyz")
    assert len(frames) == 400
    assert frames[7].energy == methanol[7].get_potential_energy()
    np.testing.assert_array_equal(frames[7].forces, methanol[7].get_forces())
    free = read_isolated_atoms(DATA / "isolated_atoms.xyz")
    assert sorted(free) == [1, 6, 8]
    # Bound: each of five bonds is worth some eV.
    atomisation = free[6] + free[8] + 4 * free[1] - max(frame.energy for frame in frames)
    assert 15 < atomisation < 30


def test_data_set_prefix_is_representative(methanol: list[Atoms]) -> None:
    energies = np.array([atoms.get_potential_energy() for atoms in methanol])
    first, rest = energies[:100], energies[100:]
    assert abs(first.mean() - rest.mean()) < 4 * energies.std() * math.sqrt(1 / 100 + 1 / 300)
    assert {atoms.info["trajectory"] for atoms in methanol[:100]} == set(range(16))


def test_data_set_matches_its_readme() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for name in ("methanol_gfn2.xyz", "isolated_atoms.xyz"):
        assert f"{hashlib.sha256((DATA / name).read_bytes()).hexdigest()}  {name}" in text


def test_labels_can_be_had_again(methanol: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tblite", reason="tblite makes the labels: pip install tblite")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make = importlib.import_module("make_quickstart_data")
    for atoms in methanol[:2]:
        again = make.label(atoms, atoms.info["trajectory"])
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-5)
        assert again.info == atoms.info
    stored = {a.symbols[0]: a.get_potential_energy() for a in read(DATA / "isolated_atoms.xyz", index=":")}
    assert {a.symbols[0]: pytest.approx(a.get_potential_energy(), abs=1e-5) for a in make.isolated_atoms()} == stored
