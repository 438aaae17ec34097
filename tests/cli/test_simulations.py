"""md, relax and predict on the command line."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import read, write
from click.testing import CliRunner, Result
from forked import started

from ponita_ff.cli import main
from ponita_ff.potential.file import save_potential
from ponita_ff.simulate.md import read_log
from ponita_ff.simulate.restart import State

MD = ("--log-every", 5, "--frame-every", 10, "--state-every", 10, "--allow-broken", "--device", "cpu", "--threads", 1)


def call(*arguments: object) -> Result:
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)  # --threads is for a whole process


@pytest.fixture
def committee(make_potential: Any, tmp_path: Path) -> str:
    """Two members, joined by a comma, as a user types them."""
    paths = [tmp_path / f"member-{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        save_potential(make_potential(seed=seed, scale=0.05, zbl_cutoff=1.0), path)
    return ",".join(map(str, paths))


@pytest.mark.usefixtures("drawn_pictures")
def test_md_of_a_shipped_potential_needs_no_structure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("md", "ethanol-rmd17", "--steps", 40, "--ensemble", "nve", "--log-every", 1, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert re.search(r"energy drift +-?\d", result.output)
    assert re.search(r"length +0\.02 ps, 40 steps", result.output)
    assert sorted(path.name for path in out.iterdir()) == [
        ".ponita_ff",
        "final.xyz",
        "log.csv",
        "md.png",
        "state.npz",
        "trajectory.traj",
    ]
    assert (out / "md.png").read_bytes().startswith(b"\x89PNG")
    assert np.ptp(read_log(out / "log.csv")["total_eV"]) < 5e-3
    again = call("md", "ethanol-rmd17", "--steps", 40, "--ensemble", "nve", "--log-every", 1, "--out", out)
    assert again.exit_code == 0 and f"finished before: {out} holds 40 steps" in again.output
    other = call("md", "ethanol-rmd17", "--steps", 40, "--temperature", 10, "--log-every", 1, "--out", out)
    assert other.exit_code == 1 and "go on with ensemble: nve, temperature: 300.0" in other.output


@pytest.mark.parametrize("options", [("--thermostat", "bussi"), ("--ensemble", "nve", "--trajectory", "xyz")])
def test_md_that_was_killed_goes_on(options: tuple[str, ...], tiny_potential_path: Path, tmp_path: Path) -> None:
    """Killed in the middle of writing; the continued run equals one that was never stopped."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["md", str(tiny_potential_path), "CH3OH", *map(str, MD), *options, "--no-progress"]
    number, code = (signal.SIGTERM, 143) if "nve" in options else (signal.SIGKILL, -signal.SIGKILL)
    with started(forked.command, [*command, "--steps", "1000000", "--out", str(killed)]) as process:
        deadline = time.monotonic() + 120
        while not (killed / "log.csv").exists() or (killed / "log.csv").read_bytes().count(b"\n") < 8:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(timeout=60)
    assert process.exitcode == code and not (killed / "final.xyz").exists()
    done = State.load(killed / "state.npz").step
    steps = 20 * (done // 20 + 3)
    result = call(*command, "--steps", steps, "--out", killed)
    assert result.exit_code == 0, result.output
    continued = re.search(r"continued +from step (\d+)", result.output)
    assert continued is not None and 0 < int(continued[1]) < steps
    assert call(*command, "--steps", steps, "--out", whole).exit_code == 0
    assert (killed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    file = "trajectory.xyz" if "xyz" in options else "trajectory.traj"
    one, other = (read(folder / file, ":") for folder in (killed, whole))
    assert len(one) == len(other) == 1 + steps // 20
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())


def test_md_warns_where_a_committee_is_unsure(committee: str, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.json"
    write(tmp_path / "frames.xyz", read_labelled(), format="extxyz")
    made = call("calibrate", *committee.split(","), "--data", tmp_path / "frames.xyz", "--out", calibration)
    assert made.exit_code == 0, made.output
    arguments = ("md", committee, "CH3OH", "--steps", 20, *MD, "--calibration", calibration, "--no-progress")
    result = call(*arguments, "--warn-above", 1e-9, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = re.search(r"uncertainty +([\d.e+-]+) eV/Å at most", result.output)
    uncertain = read_log(tmp_path / "out" / "log.csv")["forces_std_eV_per_A"]
    assert found is not None and float(found[1]) == pytest.approx(uncertain.max(), rel=1e-2)
    stopped = call(*arguments, "--stop-above", 1e-9, "--out", tmp_path / "stopped")
    assert stopped.exit_code == 1 and "forces are uncertain by" in stopped.output


def read_labelled() -> list[Any]:
    """Frames of methanol with labels of EMT."""
    from methanol import make_frames

    return [frame.to_atoms() for frame in make_frames(4)]


def test_md_ends_when_a_bond_breaks(tiny_potential_path: Path, tmp_path: Path) -> None:
    arguments = ("md", tiny_potential_path, "CH3OH", "--temperature", 3000, "--steps", 400, "--no-progress")
    result = call(*arguments, "--out", tmp_path)
    assert result.exit_code == 1
    assert re.search(
        r"Error: broken after 0\.\d+ ps: the bond \w+–\w+ has changed from .* --allow-broken", result.output
    )


def test_relax_converges_or_says_so(tmp_path: Path) -> None:
    arguments = ("relax", "ethanol-rmd17", "CH3CH2OH", "--device", "cpu", "--no-progress")
    result = call(*arguments, "--fmax", 0.05, "--out", tmp_path / "done")
    assert result.exit_code == 0, result.output
    relaxed = read(tmp_path / "done" / "relaxed.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05
    assert f"energy            {relaxed.get_potential_energy():.6f} eV (-0.0" in result.output
    result = call(*arguments, "--steps", 1, "--optimiser", "FIRE2", "--out", tmp_path / "not")
    assert result.exit_code == 1
    assert "Error: not converged: after 1 steps the largest force is" in result.output
    assert (tmp_path / "not" / "relaxed.xyz").is_file()


def test_predict_makes_frames_that_ase_reads(committee: str, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecule("CH3OH"), molecule("H2O")], format="extxyz")
    result = call("predict", committee, tmp_path / "in.xyz", "-o", tmp_path / "out.xyz", "--no-progress")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"predicted: 2 frames in {tmp_path / 'out.xyz'}",
        "training data: not known, the potential's file holds no statistics of it",
    ]
    frames = read(tmp_path / "out.xyz", ":")
    assert [len(atoms.get_forces()) for atoms in frames] == [6, 3]
    assert all(atoms.info["energy_std"] > 0 and atoms.arrays["forces_std"].shape == (len(atoms), 3) for atoms in frames)
    alone = committee.partition(",")[0]
    result = call("predict", alone, tmp_path / "in.xyz", "-o", tmp_path / "out.xyz", "--calibration", "x.json")
    assert result.exit_code == 2 and "--calibration belongs to a committee" in result.output


def test_predict_says_which_frames_are_outside_the_training_data(tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", [molecule("CH3CH2OH"), molecule("H2O")], format="extxyz")
    arguments = ("predict", "ethanol-rmd17", tmp_path / "in.xyz", "-o", tmp_path / "out.xyz", "--no-progress")
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    inside, outside = (atoms.info["domain_distance"] for atoms in read(tmp_path / "out.xyz", ":"))
    assert inside < 1 < outside
    assert f"training data: 1 frames are outside (domain_distance at most {outside:.2f}, limit 1)" in result.output
    (tmp_path / "out.xyz").unlink()
    refused = call(*arguments, "--strict")
    assert refused.exit_code == 1
    assert re.search(r"Error: frame 1: the surroundings of atom 0 \(O\) are unlike", refused.output)
    assert not (tmp_path / "out.xyz").exists()


def test_md_and_relax_say_whether_the_potential_knows_the_structure(tmp_path: Path) -> None:
    short = ("--steps", 2, "--device", "cpu", "--no-progress")
    known = call("md", "ethanol-rmd17", "CH3CH2OH", "--out", tmp_path / "a", *short)
    assert re.search(r"training data +0 of 1 structures looked at are outside", known.output)
    unknown = call("relax", "ethanol-rmd17", "H2O", "--out", tmp_path / "b", *short)
    assert re.search(r"training data +1 of 1 structures looked at are outside", unknown.output)
    for command in ("md", "relax"):
        refused = call(command, "ethanol-rmd17", "H2O", "--strict", "--out", tmp_path / "c", *short)
        assert refused.exit_code == 1
        assert "ethanol-rmd17 does not know this structure: the surroundings of atom 0 (O)" in refused.output
