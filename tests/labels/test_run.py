"""LabelResult: every frame once, in order, whatever fails, dies or is stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from label_calculators import (
    ByFile,
    Deadly,
    Entropic,
    Morse,
    Spring,
    Unmakeable,
    batches,
    calls,
    expected_energy,
    make_chains,
    make_frames,
    processes,
)

from ponita_ff.data import DataError, read_frames
from ponita_ff.labels import LabelError, LabelResult, Method, label_frames
from ponita_ff.labels.pool import ExternalExecutor
from ponita_ff.labels.run import _batches
from ponita_ff.outputs import OutputError

ROOT = Path(__file__).parents[1]


def spring(traces: Path, **how: Any) -> partial[Spring]:
    """A spring whose traces go to a folder; a journal knows it as ``spring`` however it behaves."""
    return partial(Spring, str(traces), **how)


def in_threads(frames: Any, method: Any, out: Path, **options: Any) -> LabelResult:
    """`label_frames` without a new process, where none is needed for what is tested."""
    name = None if isinstance(method, str | Method) else "spring"
    with ThreadPoolExecutor(1) as executor:
        return label_frames(frames, method, out, executor=executor, name=name, **options)


def energies(path: Path) -> list[float]:
    """As our reader sees them, eV."""
    return [frame.energy for frame in read_frames(path)]


def springs(numbers: Any) -> Any:
    """The right energies, eV."""
    return pytest.approx([expected_energy(number) for number in numbers], abs=1e-12)


def records(path: Path) -> list[dict[str, Any]]:
    """What a journal holds, without its header."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


# ------------------------------------------------------------------------------------------ processes


def test_two_processes_give_what_one_gives(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    before, others = dict(os.environ), {os.getpid()}
    for count in (1, 2):
        folder = traces / str(count)
        folder.mkdir()
        method = spring(folder, meet=count)
        result = label_frames(frames, method, tmp_path / f"{count}.xyz", name="spring", processes=count)
        assert (result.labelled, result.frames, result.failures) == (8, 8, {})
        assert calls(folder) == Counter(range(8))
        assert len(processes(folder) - others) == count
        assert {threads(trace) for trace in folder.iterdir()} == {"1"}
        others |= processes(folder)
    assert (tmp_path / "1.xyz").read_bytes() == (tmp_path / "2.xyz").read_bytes()
    assert energies(tmp_path / "2.xyz") == springs(range(8))
    assert dict(os.environ) == before


def threads(trace: Path) -> str:
    """With how many the process of a calculation began."""
    return trace.read_text(encoding="utf-8").split()[1]


def test_a_process_begins_with_its_number_of_threads(traces: Path, tmp_path: Path) -> None:
    """Three; it is one, the default, in the test before."""
    label_frames(make_frames(1), spring(traces), tmp_path / "out.xyz", name="spring", threads_per_process=3)
    (trace,) = traces.iterdir()
    assert threads(trace) == "3"


def test_a_frame_that_kills_its_process_once_is_labelled(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    method = spring(traces, die_once=[3])
    result = label_frames(frames, method, tmp_path / "out.xyz", name="spring", processes=2)
    assert result.failures == {}
    assert energies(tmp_path / "out.xyz") == springs(range(8))
    assert calls(traces)[3] == 2
    assert Counter(record["frame"] for record in records(result.journal)) == Counter(range(8))


def test_a_frame_that_always_kills_its_process_is_given_up(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    method = spring(traces, die=[2])
    result = label_frames(frames, method, tmp_path / "out.xyz", name="spring", processes=2)
    assert list(result.failures) == [2]
    assert "frame 2: its worker process died 3 times" in result.failures[2]
    assert calls(traces)[2] == 3
    assert energies(tmp_path / "out.xyz") == springs([0, 1, 3, 4, 5, 6, 7])


def test_a_program_that_cannot_be_loaded_is_reported_before_any_frame(frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="died before its first task"):
        label_frames(frames, Deadly, tmp_path / "out.xyz")
    with pytest.raises(LabelError, match=r"cannot set up label_calculators:Unmakeable .* the licence has expired"):
        label_frames(frames, Unmakeable, tmp_path / "out.xyz")
    with pytest.raises(LabelError, match=r"cannot be sent to a worker process .* function of a module"):
        label_frames(frames, lambda: EMT(), tmp_path / "out.xyz", name="emt")
    assert list(tmp_path.iterdir()) == []  # nothing in the way of the next try


SCRIPT = """
from ase import Atoms
from ase.calculators.emt import EMT
from ponita_ff.labels import label_frames
label_frames([Atoms("Cu")], EMT, "out.xyz")
"""


def test_a_script_without_main_guard_is_reported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert 'must be called under if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def start_command(out: Path, traces: Path, frames: Path, seconds: float) -> subprocess.Popen[str]:
    """``ponita-ff label`` in processes of its own, once it has labelled a frame."""
    method = f"label_calculators:Spring{{folder: {traces}, seconds: {seconds}}}"
    command = [sys.executable, "-m", "ponita_ff", "label", str(frames), "--method", method, "--out", str(out)]
    path = os.pathsep.join([str(ROOT), str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [*command, "--processes", "2", "--no-progress"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to its group, as from a terminal, reaches all of it and not us
        # Where the tests themselves run in the background, Ctrl-C is ignored, and that is handed on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = out.with_name(f"{out.name}.journal.jsonl")
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


def is_alive(process: int) -> bool:
    """Whether it runs; a zombie that waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_goes_on(how: signal.Signals, frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "frames.xyz", tmp_path / "out.xyz"
    ase.io.write(source, frames)
    process = start_command(out, traces, source, seconds=0.3)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how) and not out.exists()
    if how == signal.SIGINT:
        sentence = f"the labels so far are in {out}.journal.jsonl, and the same command goes on from there"
        assert sentence in errors.replace("\n", " ") and "Traceback" not in errors
    deadline = time.monotonic() + 10
    while any(map(is_alive, processes(traces))):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)

    kept = {record["frame"] for record in records(tmp_path / "out.xyz.journal.jsonl")}
    assert 0 < len(kept) < 8
    before = calls(traces)
    method = f"label_calculators:Spring{{folder: {traces}, seconds: 0.3}}"
    result = in_threads(source, method, out)
    assert result.labelled == 8 and energies(out) == springs(range(8))
    assert calls(traces) - before == Counter(set(range(8)) - kept)


# ------------------------------------------------------------------------------------------ external executors


def test_few_tasks_are_under_way_at_a_time(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(ThreadPoolExecutor):
        most = 0
        futures: list[Future[Any]] = []  # noqa: RUF012

        def submit(self, *args: Any, **keywords: Any) -> Future[Any]:
            future = super().submit(*args, **keywords)
            self.futures.append(future)
            self.most = max(self.most, sum(not future.done() for future in self.futures))
            return future

    monkeypatch.setattr(ExternalExecutor, "max_pending", 5)
    with Counting(2) as executor:
        method = spring(traces, seconds=0.005)
        result = label_frames(make_frames(30), method, tmp_path / "out.xyz", name="spring", executor=executor)
    assert result.labelled == 30 and 3 <= executor.most <= 5


def test_a_broken_external_executor_is_reported_and_loses_no_label(
    frames: list[Atoms], traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.xyz"
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as executor,
        pytest.raises(LabelError, match="the same call with a new executor continues"),
    ):
        label_frames(frames, spring(traces, die_once=[4]), out, name="spring", executor=executor)
    kept = {record["frame"] for record in records(tmp_path / "out.xyz.journal.jsonl")}
    assert in_threads(frames, spring(traces), out).labelled == 8
    assert all(calls(traces)[number] == 1 for number in kept)
    with ThreadPoolExecutor(1) as executor:
        pass
    with pytest.raises(LabelError, match="the executor accepts no tasks"):
        label_frames(frames, spring(traces), tmp_path / "other.xyz", name="spring", executor=executor)


@pytest.mark.filterwarnings("ignore")  # of Dask's own making
def test_dask_with_workers_that_are_killed(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    import dask

    method = spring(traces, die=[2], die_once=[5])
    with (
        # Reports a killed worker at once, instead of trying four times itself.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        result = label_frames(frames, method, tmp_path / "out.xyz", name="spring", executor=client.get_executor())
    assert list(result.failures) == [2] and "its worker process died" in result.failures[2]
    assert energies(tmp_path / "out.xyz") == springs([0, 1, 3, 4, 5, 6, 7])


# ------------------------------------------------------------------------------------------ batches


SIZES = [3, 7, 2, 7, 3, 2, 9, 30]


def test_batches_hold_frames_of_similar_size(traces: Path, tmp_path: Path) -> None:
    """At most 20 atoms each, padding counted; a larger frame is alone, and the file is in input order."""
    result = in_threads(make_chains(SIZES), Morse(folder=str(traces)), tmp_path / "out.xyz")
    assert batches(traces) == [[0, 2, 4, 5], [1, 3], [6], [7]]
    assert result.labelled == 8
    assert [len(frame.numbers) for frame in read_frames(result.path)] == SIZES
    assert sorted(record["frame"] for record in records(result.journal)) == list(range(8))


def test_there_is_a_batch_for_every_process() -> None:
    frames = make_chains([2] * 4)
    assert list(map(len, _batches(range(4), frames, 20, 1))) == [4]
    assert list(map(len, _batches(range(4), frames, 20, 2))) == [2, 2]
    assert list(map(len, _batches(range(4), frames, 20, 9))) == [1, 1, 1, 1]
    assert _batches([3, 1], frames, 0, 2) == [[3], [1]]


def test_a_run_goes_on_within_a_batch(traces: Path, tmp_path: Path) -> None:
    out, method = tmp_path / "out.xyz", Morse(folder=str(traces))
    journal = in_threads(make_chains(SIZES), method, out).journal
    whole = out.read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))
    before = calls(traces)
    in_threads(make_chains(SIZES), method, out)
    done = {json.loads(line)["frame"] for line in lines[1:3]}
    assert calls(traces) - before == Counter(set(range(8)) - done)
    # Of the frames whose batch is another one now, the last digits may differ.
    assert energies(out) == pytest.approx([frame.get_potential_energy() for frame in read_text(whole)], abs=1e-10)


def read_text(content: bytes) -> list[Atoms]:
    return list(ase.io.iread(io.StringIO(content.decode()), format="extxyz"))


def test_a_frame_that_kills_its_process_costs_the_others_of_its_batch_nothing(traces: Path, tmp_path: Path) -> None:
    method = Morse(folder=str(traces), die=(5,))
    result = label_frames(make_chains([3] * 6), method, tmp_path / "out.xyz")
    assert list(result.failures) == [5] and "frame 5: its worker process died 3 times" in result.failures[5]
    assert result.labelled == 5
    # The whole batch, the whole batch alone, then frame by frame.
    assert batches(traces) == [[0], *[[0, 1, 2, 3, 4, 5]] * 2, [1], [2], [3], [4], [5]]
    assert Counter(record["frame"] for record in records(result.journal)) == Counter(range(6))


def test_failures_of_a_batch_are_those_of_its_frames(traces: Path, tmp_path: Path) -> None:
    method = Morse(folder=str(traces), nan=(1,), nan_spread=(3,))
    result = in_threads(make_chains([2] * 5), method, tmp_path / "out.xyz")
    assert result.labelled == 3 and list(result.failures) == [1, 3]


# ------------------------------------------------------------------------------------------ ensembles


def test_spreads_are_written_and_are_no_labels(traces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out.xyz"
    result = in_threads(make_chains([2, 3]), Morse(folder=str(traces)), out)
    for atoms, record in zip(ase.io.read(out, ":"), records(result.journal), strict=True):
        assert atoms.info["energy_spread"] == pytest.approx(record["energy_spread"], abs=1e-8)
        assert atoms.info["energy_spread"] > 0.1
        np.testing.assert_allclose(atoms.arrays["forces_spread"], record["forces_spread"], atol=1e-8)
    frames = read_frames(out)
    assert [frame.energy for frame in frames] == pytest.approx([record["energy"] for record in records(result.journal)])
    assert caplog.text == ""
    # Labelled anew by a method without an ensemble, the frames have none.
    again = in_threads(out, spring(traces), tmp_path / "again.xyz")
    assert "spread" not in again.path.read_text(encoding="utf-8")


def test_a_file_with_spreads_only_has_no_energy(tmp_path: Path) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"energy_spread": 0.1})
    atoms.set_array("forces_spread", np.zeros(2))
    ase.io.write(tmp_path / "out.xyz", atoms)
    with pytest.raises(DataError, match="no energy") as error:
        read_frames(tmp_path / "out.xyz")
    assert "is it" not in str(error.value)


def test_frames_about_which_an_ensemble_disagrees(traces: Path, tmp_path: Path) -> None:
    frames, out = make_chains([2, 4, 2, 3, 2]), tmp_path / "out.xyz"
    frames[1].info = {"name": "a chain", "energy": 3.0}
    method = Morse(folder=str(traces))
    whole = in_threads(frames, method, out)
    largest = {record["frame"]: max(record["forces_spread"]) for record in records(whole.journal)}
    order = sorted(largest, key=lambda number: largest[number])
    assert (whole.disagreed, whole.disagreed_path) == (0, None)
    before = calls(traces)
    others = tmp_path / "out.disagreed.xyz"
    for below in (3, 1, 4, 0, 5):  # frames that stay
        limit = largest[order[below - 1]] if below else 1e-6
        result = in_threads(frames, method, out, max_spread=limit)
        assert (result.labelled, result.disagreed, result.frames) == (below, 5 - below, 5)
        assert result.path == (out if below else None) and result.disagreed_path == (others if below < 5 else None)
        assert out.exists() == bool(below) and others.exists() == (below < 5)
        for path, numbers in ((out, order[:below]), (others, order[below:])):
            found = ase.io.read(path, ":") if numbers else []
            assert [atoms.info["source_frame"] for atoms in found] == sorted(numbers)
        if below < 5:
            text = others.read_text(encoding="utf-8")
            assert "energy" not in text and "forces" not in text and "spread" not in text
            assert ("a chain" in text) == (1 in order[below:])
    assert calls(traces) == before


def test_a_largest_spread_is_refused_where_it_has_no_meaning(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    with pytest.raises(LabelError, match="--max-spread is for ensembles such as ani-2x; spring has one value"):
        in_threads(frames, spring(traces), out, max_spread=0.3)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LabelError, match=r"--max-spread .*: expected a finite number of eV/Å above 0"):
            in_threads(frames, Morse(folder=str(traces)), out, max_spread=wrong)
    others = tmp_path / "out.disagreed.xyz"
    others.write_text("somebody else's", encoding="utf-8")
    with pytest.raises(OutputError, match=r"out\.disagreed\.xyz exists, and this program did not write it"):
        in_threads(frames, Morse(folder=str(traces)), out, max_spread=0.3)
    assert not calls(traces)


def test_other_weights_are_another_method(traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    in_threads(make_chains([2]), Morse(folder=str(traces)), out)
    with pytest.raises(LabelError, match=r"another method: morse, .*weights publicpublic, not morse, .*mineminemine"):
        in_threads(make_chains([2]), Morse(folder=str(traces), weights="mine"), out)


# ------------------------------------------------------------------------------------------ failures


def test_a_failed_frame_is_skipped_and_tried_again_only_when_asked(
    frames: list[Atoms], traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.xyz"
    frames[6].positions[1] = frames[6].positions[0]
    result = in_threads(frames, spring(traces, fail=[3], nan=[5]), out)
    assert result.labelled == 5 and list(result.failures) == [3, 5, 6]
    assert result.failures[3] == "frame 3: RuntimeError: frame 3 is not to my liking"
    assert result.failures[5] == "frame 5: forces of atom 0 are [nan, nan, nan]"
    assert "atoms 0 and 1 are at the same place" in result.failures[6]
    assert energies(out) == springs([0, 1, 2, 4, 7])
    assert [atoms.info["source_frame"] for atoms in ase.io.read(out, ":")] == [0, 1, 2, 4, 7]

    again = in_threads(frames, spring(traces), out)
    assert again == result
    assert calls(traces) == Counter([0, 1, 2, 3, 4, 5, 7])
    retried = in_threads(frames, spring(traces), out, retry_failed=True)
    assert list(retried.failures) == [6] and energies(out) == springs([0, 1, 2, 3, 4, 5, 7])
    assert calls(traces) == Counter([0, 1, 2, 3, 3, 4, 5, 5, 7])


def test_nothing_is_written_where_no_frame_has_labels(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    result = in_threads(frames, spring(traces, fail=range(8)), tmp_path / "out.xyz")
    assert result.path is None and result.labelled == 0 and len(result.failures) == 8
    assert not (tmp_path / "out.xyz").exists()


# ------------------------------------------------------------------------------------------ going on


def test_a_torn_journal_goes_on_where_it_was(
    frames: list[Atoms], traces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.xyz"
    journal = in_threads(frames, spring(traces), out).journal
    whole, first = out.read_bytes(), calls(traces)
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept, cut in ((4, 40), (1, 5), (0, 10), (9, 0)):  # the last: finished, but the output lost
        out.unlink()
        torn = b"".join(lines[:kept]) + (lines[kept][:cut] if cut else b"")
        journal.write_bytes(torn)
        before = calls(traces)
        assert in_threads(frames, spring(traces), out).labelled == 8
        assert out.read_bytes() == whole
        assert calls(traces) - before == Counter(range(max(kept - 1, 0), 8))
        assert ("incomplete" in caplog.text) == bool(cut)
        caplog.clear()
    assert set(first) == set(range(8))


def test_more_frames_behind_the_old_ones_are_labelled_too(traces: Path, tmp_path: Path) -> None:
    in_threads(make_frames(3), spring(traces), tmp_path / "out.xyz")
    in_threads(make_frames(5), spring(traces), tmp_path / "out.xyz")
    assert energies(tmp_path / "out.xyz") == springs(range(5))
    assert calls(traces) == Counter(range(5))


def test_a_journal_of_something_else_is_refused(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    journal = in_threads(frames, spring(traces), out).journal
    before = journal.read_bytes(), out.read_bytes()
    with pytest.raises(LabelError, match=r"holds labels by another method: spring, .*, not ase.calculators.emt:EMT"):
        in_threads(frames, "ase.calculators.emt:EMT", out)
    moved = make_frames(8)
    moved[5].positions[1, 2] += 1e-6
    with pytest.raises(LabelError, match=r"line 7: its frame 5 is not frame 5 of the frames given"):
        in_threads(moved, spring(traces), out)
    with pytest.raises(LabelError, match=r"its frame 7 is not frame 7"):
        in_threads(frames[:7], spring(traces), out)
    assert (journal.read_bytes(), out.read_bytes()) == before


# ------------------------------------------------------------------------------------------ what is written


def test_a_crystal_has_a_stress_that_reads_back_equal(tmp_path: Path) -> None:
    frames = [bulk("Cu", cubic=True) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
        atoms.info = {
            "config_type": "rattled",
            "temperature": 300.0,
            "energy": 7.0,
            "dft_forces": 1,
            "note": "two\nlines",
        }
    result = in_threads(frames, "ase.calculators.emt:EMT", tmp_path / "out.xyz")
    assert result.labelled == 3
    for atoms, frame, written in zip(frames, read_frames(result.path), ase.io.read(result.path, ":"), strict=True):
        atoms.calc = EMT()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-8)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-14)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-8)
        assert written.info.pop("program").startswith("ase ")
        number = written.info.pop("source_frame")
        assert frames[number] is atoms
        assert written.info == {
            "config_type": "rattled",
            "temperature": 300.0,
            "method": "ase.calculators.emt:EMT",
            "energy_unit": "eV",
            "length_unit": "Angstrom",
        }


def test_molecules_among_crystals_leave_no_stress_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [bulk("Cu", cubic=True), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])]
    result = in_threads(frames, "ase.calculators.emt:EMT", tmp_path / "out.xyz")
    assert [frame.stress for frame in read_frames(result.path)] == [None, None]
    assert "frame 1 and 0 others have no stress" in caplog.text
    assert [record["stress"] is None for record in records(result.journal)] == [False, True]


def test_constraints_do_not_touch_the_forces(traces: Path, tmp_path: Path) -> None:
    (atoms,) = make_frames(2)[1:]
    atoms.set_constraint(FixAtoms([0, 1]))
    result = in_threads([atoms], spring(traces), tmp_path / "out.xyz")
    assert read_frames(result.path)[0].forces[1, 2] == pytest.approx(-0.3)


def test_the_energy_is_the_one_whose_derivative_the_forces_are(frames: list[Atoms], tmp_path: Path) -> None:
    in_threads(frames[:1], Entropic, tmp_path / "out.xyz")
    assert energies(tmp_path / "out.xyz") == [-2.0]


def test_programs_that_talk_through_files_do_not_read_each_others(
    frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(4) as executor:
        label_frames(frames, ByFile, "out.xyz", executor=executor)
    assert energies(tmp_path / "out.xyz") == [atoms.positions[1, 2] for atoms in frames]
    assert {path.name for path in tmp_path.iterdir()} == {"out.xyz", "out.xyz.journal.jsonl"}


def test_where_the_labels_must_not_go(frames: list[Atoms], traces: Path, tmp_path: Path) -> None:
    source = tmp_path / "frames.xyz"
    ase.io.write(source, frames)
    before = source.read_bytes()
    for force in (False, True):
        with pytest.raises(OutputError, match="is an input of this command"):
            in_threads(source, spring(traces), source, force=force)
    with pytest.raises(OutputError, match="this program did not write it"):
        in_threads(frames, spring(traces), source)
    with pytest.raises(LabelError, match=r"name the file .xyz or .extxyz"):
        in_threads(frames, spring(traces), tmp_path / "labels.h5")
    assert source.read_bytes() == before
    in_threads(frames[:2], spring(traces), source, force=True)
    assert energies(source) == springs(range(2))


@pytest.mark.parametrize("many", [{"processes": 1_000_000}, {"threads_per_process": 1_000_000}, {"processes": 0}])
def test_a_number_of_processes_that_no_machine_has(many: dict[str, int], frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"--(processes|threads-per-process) \d+: expected 1 to \d+ on this machine"):
        label_frames(frames, EMT, tmp_path / "out.xyz", **many)  # type: ignore[arg-type]


def test_no_more_processes_than_frames(frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Pool:
        def __init__(self, method: Any, processes: int, threads: int) -> None:
            asked.append(processes)
            raise LabelError("enough")

    monkeypatch.setattr("ponita_ff.labels.run.ProcessPool", Pool)
    with pytest.raises(LabelError, match="enough"):
        label_frames(frames[:3], EMT, tmp_path / "out.xyz", processes=60)
    assert asked == [3]
