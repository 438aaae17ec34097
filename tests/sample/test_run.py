"""Whole runs: the same frames however they are made, in order, with their provenance."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from click.testing import CliRunner
from forked import command, started

from ponita_ff.cli import main
from ponita_ff.data.structures import iter_structures
from ponita_ff.labels import label_frames
from ponita_ff.labels.pool import ExternalExecutor
from ponita_ff.locks import LockedError
from ponita_ff.outputs import OutputError, claim_folder
from ponita_ff.sample import SampleError, SampleResult, sample
from ponita_ff.sample.molecules import read_molecules

METHOD = "sample_calculators:ForceField"

#: Few and short.
QUICK: dict[str, Any] = {
    "minimum.steps": 30,
    "md.temperatures": [100.0],
    "md.frames": 2,
    "md.equilibration": 2.0,
    "md.interval": 2.0,
    "modes.frames": 1,
    "torsions.frames": 1,
    "bonds.frames": 1,
    "contacts.frames": 2,
    "cluster_md.temperatures": [100.0],
    "cluster_md.frames": 1,
    "cluster_md.equilibration": 2.0,
    "cluster_md.interval": 2.0,
    "cluster_minimum.steps": 5,
    "cluster_scan.frames": 1,
    "selection.distance": 0.0,
}


def structures() -> list[Atoms]:
    return [molecule(name) for name in ("H2O", "CH3OH", "CH4", "C2H6")]


def run(molecules: Any, out: Path, method: str = METHOD, **changes: Any) -> SampleResult:
    """`sample` without a new process."""
    options = {name: changes.pop(name) for name in ("retry_failed", "force") if name in changes}
    settings = {"method": method, **QUICK, **{name.replace("__", "."): value for name, value in changes.items()}}
    with ThreadPoolExecutor(1) as executor:
        return sample(molecules, settings, out, executor=executor, **options)


def frames(result: SampleResult) -> list[Atoms]:
    return list(iter_structures(result.path))


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    few = {"kinds": ["minimum", "md", "contacts"], "clusters.per_molecule": 0.5}
    one = run(structures(), tmp_path / "one", **{name.replace(".", "__"): value for name, value in few.items()})
    two = sample(structures(), {"method": METHOD, **QUICK, **few}, tmp_path / "two", processes=2)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.tasks == 6 and one.frames == len(frames(one)) > 12
    assert one.kinds == two.kinds and not one.failures


def test_a_killed_command_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    source, traces, out = tmp_path / "structures.xyz", tmp_path / "traces", tmp_path / "out"
    traces.mkdir()
    ase.io.write(source, structures(), format="extxyz")
    method = f"{METHOD}{{folder: {traces}, seconds: 0.1}}"
    few = {"kinds": ["bonds", "contacts"]}
    options = [f"--set={name}={json.dumps(value)}" for name, value in {**QUICK, **few}.items()]
    arguments = ["sample", str(source), "--method", method, "--out", str(out), *options, "--no-progress"]
    journal = out / "journal.jsonl"
    with started(command, arguments) as process:
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
    assert process.exitcode == -signal.SIGKILL and not (out / "frames.xyz").exists()
    kept = journal.read_bytes().rpartition(b"\n")[0] + b"\n"
    done = kept.count(b"\n") - 1
    assert 0 < done < 8
    result = run(source, out, method, **few)
    assert journal.read_bytes().startswith(kept) and journal.read_bytes().count(b"\n") == 9
    own = [trace for trace in traces.iterdir() if trace.name.startswith(f"{os.getpid()}-")]
    assert len(own) == 8 - done + 1  # and one to check that it can be made
    assert result.path.read_bytes() == run(source, tmp_path / "whole", method, **few).path.read_bytes()


def test_every_frame_says_how_it_came_about(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    (tmp_path / "some.smi").write_text("CCO ethanol\nC/C=C\\C=C/C two backslashes\n", "utf-8")
    result = run([tmp_path / "some.smi", molecule("H2O")], tmp_path / "out", seed=11, molecules__conformers=1)
    found = frames(result)
    ethanol = found[0]
    assert ethanol.info == {
        "smiles": "CCO",
        "source": "some.smi, line 1",
        "kind": "minimum",
        "conformer": 0,
        "relaxation_step": ethanol.info["relaxation_step"],
        "relaxed": True,
        "charge": 0,
        "multiplicity": 1,
        "seed": 11,
        "sampling_method": METHOD,
        "sampling_program": "sample_calculators (no version)",
    }
    assert ethanol.calc is None
    for atoms in found:
        info = atoms.info
        assert ("temperature" in info) == (info["kind"] in ("md", "modes", "cluster_md")), info
        assert ("contact_factor" in info) == (info["kind"] == "contacts")
        assert ("bond" in info) == (info["kind"] == "bonds")
        assert ("smiles" in info) == ("structure 1" not in info["source"])
    diene = next(atoms for atoms in found if atoms.info["source"] == "some.smi, line 2")
    assert diene.info["smiles"] == r"C/C=C\C=C/C"
    again = read_molecules([str(diene.info["smiles"])])[0][0][0]
    assert sorted(again.numbers) == sorted(diene.numbers)
    for one, other in zip(found, ase.io.read(result.path, ":"), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_labels_keep_the_provenance(tmp_path: Path) -> None:
    result = run([molecule("H2O")], tmp_path / "out", kinds=["md"])
    with ThreadPoolExecutor(1) as executor:
        labelled = label_frames(result.path, METHOD, tmp_path / "labelled.xyz", executor=executor)
    assert labelled.labelled == result.frames == 2
    for before, after in zip(frames(result), iter_structures(tmp_path / "labelled.xyz"), strict=True):
        for key in ("source", "kind", "temperature", "time_fs", "seed", "sampling_method"):
            assert after.info[key] == before.info[key]


def test_a_crystal(tmp_path: Path) -> None:
    result = run([bulk("Cu", cubic=True)], tmp_path / "out", "ase.calculators.emt:EMT", kinds=["md"])
    assert all(atoms.pbc.all() and atoms.cell[0, 0] == 3.61 for atoms in frames(result))


def test_frames_are_in_the_order_of_the_molecules(tmp_path: Path) -> None:
    result = run(structures(), tmp_path / "out", kinds=["bonds", "contacts"], clusters__per_molecule=0.5)
    sources = list(dict.fromkeys(atoms.info["source"] for atoms in frames(result)))
    assert sources[:4] == [f"structure {number}" for number in range(4)] and len(sources) == 6


def test_clusters_as_asked(tmp_path: Path) -> None:
    asked = {"kinds": ["contacts"], "contacts__frames": 1}
    result = run(structures(), tmp_path / "pairs", **asked, clusters__per_molecule=9.0, clusters__max_heavy_atoms=2)
    sizes = sorted(len(atoms) for atoms in frames(result))
    water, methanol, methane, ethane = map(len, structures())  # with 1, 2, 1 and 2 heavy atoms
    assert (water, methanol, methane, ethane) == (3, 6, 5, 8)
    assert sizes == [water + water, water + methane, methane + methane]  # each pair once
    result = run(structures(), tmp_path / "threes", **asked, clusters__sizes=[3])
    assert result.tasks == 4
    triples = {sum(one) for one in combinations_with_replacement((water, methanol, methane, ethane), 3)}
    assert {len(atoms) for atoms in frames(result)} <= triples
    with pytest.raises(SampleError, match="nothing to make such frames of"):
        run([bulk("Cu")], tmp_path / "crystal", "ase.calculators.emt:EMT", kinds=["contacts"])


def test_selection_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    some = {"kinds": ["minimum", "md", "bonds", "contacts"], "md__frames": 4}
    result = run(structures(), tmp_path / "out", **some)
    journal = (tmp_path / "out" / "journal.jsonl").read_bytes()
    fewer = run(structures(), tmp_path / "out", **some, selection__frames=16)
    assert fewer.frames == 16 < result.frames
    distinct = run(structures(), tmp_path / "out", **some, selection__distance=0.05)
    assert 8 <= distinct.frames < result.frames
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == journal
    compositions = {atoms.get_chemical_formula() for atoms in frames(distinct)}
    assert compositions == {atoms.get_chemical_formula() for atoms in iter_structures(result.path)}
    report = json.loads(result.report.read_text("utf-8"))
    assert report["frames"] == distinct.frames and sum(report["frames before selection"].values()) == result.frames


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run([molecule("H2O")], tmp_path / "out")
    with pytest.raises(SampleError, match=r"begun with other settings \(seed: 1, not 2\)"):
        run([molecule("H2O")], tmp_path / "out", seed=2)


def test_more_molecules_may_come(tmp_path: Path) -> None:
    one = run(structures()[:2], tmp_path / "out", kinds=["bonds"])
    more = run(structures(), tmp_path / "out", kinds=["bonds"])
    assert more.path.read_bytes() == run(structures(), tmp_path / "new", kinds=["bonds"]).path.read_bytes()
    assert (one.tasks, more.tasks) == (2, 4)


def test_failures_are_told_and_tried_again_only_when_asked(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    method = f"{METHOD}{{folder: {traces}, fail: CH4O}}"
    result = run(structures(), tmp_path / "out", method, kinds=["bonds"])
    assert list(result.failures) == ["structure 1"] and "CH4O is not to my liking" in result.failures["structure 1"]
    assert json.loads(result.report.read_text("utf-8"))["failed"] == result.failures
    calls = []
    for retry in (False, True):
        before = len(list(traces.iterdir()))
        assert run(structures(), tmp_path / "out", method, kinds=["bonds"], retry_failed=retry) == result
        calls.append(len(list(traces.iterdir())) - before)
    assert calls == [0, 2]  # one to check that it can be made
    with pytest.raises(SampleError, match=r"no frame could be made; see .*report.json. The first reason: structure 0"):
        run([molecule("CH3OH")], tmp_path / "none", method, kinds=["bonds"])


def test_what_is_skipped(tmp_path: Path) -> None:
    result = run([molecule("H2O"), molecule("CH3"), molecule("H2O")], tmp_path / "out", kinds=["bonds"])
    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["reason"]) for row in rows] == [
        ("structure 2", "the same as structure 0"),
        ("structure 1", "open-shell (molecules.open_shell is false)"),
    ]
    assert len(result.skipped) == 2
    with pytest.raises(SampleError, match=r"no molecule to use \(structure 0: open-shell"):
        run([molecule("CH3")], tmp_path / "none")
    with pytest.raises(SampleError, match="the input is empty"):
        run([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_nothing_of_others_is_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "frames.xyz"
    mine.parent.mkdir()
    ase.io.write(mine, molecule("H2O"))
    before = mine.read_bytes()
    with pytest.raises(OutputError, match=r"frames.xyz exists, and this program did not write it"):
        run([molecule("H2O")], tmp_path / "out")
    with pytest.raises(OutputError, match=r"frames.xyz is an input of this command"):
        run(mine, tmp_path / "out", force=True)
    assert mine.read_bytes() == before
    with pytest.raises(OSError, match="cannot write into the folder"):
        run([molecule("H2O")], mine / "below")
    assert run([molecule("H2O")], tmp_path / "out", force=True, kinds=["bonds"]).frames == 1


def test_one_run_in_a_folder_at_a_time(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "out"), pytest.raises(LockedError, match="another run is using the folder"):
        run([molecule("H2O")], tmp_path / "out")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_thread(method: Any, processes: int, threads: int) -> ExternalExecutor:
        assert (processes, threads) == (1, 2)
        return ExternalExecutor(executor, method)

    monkeypatch.setattr("ponita_ff.sample.run.ProcessPool", in_thread)
    ase.io.write(tmp_path / "some.xyz", [molecule(name) for name in ("H2O", "CH4", "CH3")], format="extxyz")
    (tmp_path / "settings.yaml").write_text("bonds: {frames: 2}\nclusters: {per_molecule: 0}\n", "utf-8")
    out = tmp_path / "out"
    options = ["--method", f"{METHOD}{{fail: CH4}}", "--kinds", "md,bonds", "--frames", "3", "--seed", "4", "--quiet"]
    options += ["--settings", str(tmp_path / "settings.yaml"), "--set", "md.equilibration=1", "--set", "md.interval=1"]
    options += ["--out", str(out), "--threads-per-process", "2"]
    with ThreadPoolExecutor(1) as executor:
        result = CliRunner().invoke(main, ["sample", str(tmp_path / "some.xyz"), *options])
    assert result.exit_code == 0, result.output
    assert f"frames: 3 in {out / 'frames.xyz'} (" in result.output
    assert "Warning: 1 of 2 molecules and clusters have no frames:\n  some.xyz, frame 1: no frame" in result.output
    assert f"skipped: 1 molecules, with the reasons in {out / 'skipped.csv'}" in result.output
    assert {atoms.info["seed"] for atoms in iter_structures(out / "frames.xyz")} == {4}
    assert {atoms.info["kind"] for atoms in iter_structures(out / "frames.xyz")} <= {"md", "bonds"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nonsense"], "unknown method 'nonsense'"),
        ([], "method: Field required"),
        (["--method", METHOD, "--kinds", "md,dance"], "kinds.1"),
        (["--method", METHOD, "--set", "md.frames=none"], "md.frames"),
        (["--method", "sample_calculators:Nothing"], "cannot set up sample_calculators:Nothing"),
    ],
)
def test_mistakes_of_the_command_line_end_in_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    out = ["--out", str(tmp_path / "out"), "--no-progress"]
    result = CliRunner().invoke(main, ["sample", str(tmp_path / "water.xyz"), *arguments, *out])
    assert result.exit_code in (1, 2) and message in result.output, result.output
    assert "Traceback" not in result.output and not (tmp_path / "out" / "journal.jsonl").exists()
