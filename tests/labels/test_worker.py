"""One frame's labels: every outcome is a value, and it is complete."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from label_calculators import (
    ByFile,
    Entropic,
    Morse,
    Spring,
    Unmakeable,
    batches,
    expected_energy,
    make_chains,
    make_frames,
)

from ponita_ff.labels import find_method
from ponita_ff.labels.results import Labels
from ponita_ff.labels.worker import Failure, FrameToLabel, Task, check_setup, label


def task(method: Any, atoms: Atoms, name: str = "test") -> Task:
    return Task((FrameToLabel(7, "frames.xyz, frame 7", atoms),), find_method(method, name=name))


def labels_of(method: Any, atoms: Atoms) -> Labels:
    (outcome,) = label(task(method, atoms))
    assert isinstance(outcome, Labels), outcome
    return outcome


def reason_of(method: Any, atoms: Atoms) -> str:
    (outcome,) = label(task(method, atoms))
    assert isinstance(outcome, Failure)
    return outcome.reason


def batch_of(method: Morse, frames: list[Atoms]) -> Task:
    return Task(tuple(FrameToLabel(number, f"frame {number}", atoms) for number, atoms in enumerate(frames)), method)


class Exits(Calculator):
    """A program that ends the interpreter instead of raising an error."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - declared like this in the base class

    def calculate(self, *_: Any, **__: Any) -> None:
        raise SystemExit("no licence")


class Wordy(Exits):
    """An error of many lines."""

    def calculate(self, *_: Any, **__: Any) -> None:
        raise ValueError("a line\n" * 500)


def test_energy_and_forces_of_a_molecule(traces: Path) -> None:
    atoms = make_frames(4)[3]
    found = labels_of(partial(Spring, str(traces)), atoms)
    assert found.energy == pytest.approx(expected_energy(3), abs=1e-12)
    np.testing.assert_allclose(found.forces, [[0, 0, 0.9], [0, 0, -0.9]], atol=1e-12)
    assert found.stress is None
    assert atoms.calc is None


def test_stress_of_a_crystal() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(1.02 * atoms.cell, scale_atoms=True)
    found = labels_of(EMT, atoms)
    atoms.calc = EMT()
    np.testing.assert_array_equal(found.stress, atoms.get_stress(voigt=False))
    assert found.program.startswith("ase ")


def test_the_energy_whose_gradient_the_forces_are() -> None:
    assert labels_of(Entropic, make_frames(1)[0]).energy == -2.0


def test_every_error_is_a_failure_of_one_line(traces: Path) -> None:
    (atoms,) = make_frames(1)
    spring = partial(Spring, str(traces), fail=[0])
    assert reason_of(spring, atoms) == "frames.xyz, frame 7: RuntimeError: frame 0 is not to my liking"
    assert reason_of(Unmakeable, atoms) == "frames.xyz, frame 7: RuntimeError: the licence has expired"
    assert reason_of(Exits, atoms) == "frames.xyz, frame 7: SystemExit: no licence"
    long = reason_of(Wordy, atoms)
    assert len(long) == 500 and long.endswith("…") and "\n" not in long


def test_frames_and_results_are_validated(traces: Path) -> None:
    frames = make_frames(2)
    reason = reason_of(partial(Spring, str(traces), nan=[1]), frames[1])
    assert reason == "frames.xyz, frame 7: forces of atom 0 are [nan, nan, nan]"
    before = len(list(traces.iterdir()))
    frames[0].positions[1] = frames[0].positions[0]
    assert "atoms 0 and 1 are at the same place" in reason_of(partial(Spring, str(traces)), frames[0])
    assert len(list(traces.iterdir())) == before  # without a calculation


def test_a_retried_task_is_another_task() -> None:
    """Dask returns the earlier outcome for an equal one."""
    first = task(EMT, bulk("Cu"))
    second, third = first.retry(), first.retry().retry()
    assert (first.retries, second.retries, third.retries) == (0, 1, 2)
    assert (second.frames, second.source, second.method) == (first.frames, first.source, first.method)


def test_programs_with_files_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = make_frames(4)
    with ThreadPoolExecutor(4) as executor:
        found = list(executor.map(partial(labels_of, ByFile), frames))
    assert [each.energy for each in found] == [atoms.positions[1, 2] for atoms in frames]
    assert not list(tmp_path.iterdir())


def test_set_up() -> None:
    program = check_setup(find_method(EMT))
    assert isinstance(program, str) and program.startswith("ase ")
    failure = check_setup(find_method(Unmakeable))
    assert failure == Failure("RuntimeError: the licence has expired")


# ------------------------------------------------------------------------------------------ batches and ensembles


def test_a_batch_gives_what_its_frames_give_alone(traces: Path) -> None:
    frames = make_chains([2, 5, 3])
    together = label(batch_of(Morse(folder=str(traces)), frames))
    assert batches(traces) == [[0, 1, 2]]
    for number, (atoms, found) in enumerate(zip(frames, together, strict=True)):
        (alone,) = label(Task((FrameToLabel(number, "", atoms),), Morse(folder=str(traces))))
        assert isinstance(found, Labels) and isinstance(alone, Labels)
        assert found.energy == pytest.approx(alone.energy, abs=1e-10)
        assert found.energy_spread == pytest.approx(alone.energy_spread, abs=1e-10)
        np.testing.assert_allclose(found.forces, alone.forces, atol=1e-10)
        np.testing.assert_allclose(found.forces_spread, alone.forces_spread, atol=1e-10)


def test_spreads_are_those_of_the_members(traces: Path) -> None:
    """By their definition, atom by atom."""
    atoms = make_chains([2, 3])[1]
    (found,) = label(batch_of(Morse(folder=str(traces)), [atoms]))
    assert isinstance(found, Labels) and found.forces_spread is not None
    energies, forces = Morse._members([atoms])
    assert found.energy == pytest.approx(sum(energies[:, 0]) / 3)
    assert found.energy_spread == pytest.approx((sum((energies[:, 0] - found.energy) ** 2) / 3) ** 0.5)
    for atom in range(3):
        squares = [np.linalg.norm(member[0, atom] - found.forces[atom]) ** 2 for member in forces]
        assert found.forces_spread[atom] == pytest.approx((sum(squares) / 3) ** 0.5)
    assert found.forces_spread.min() > 0.01


def test_a_bad_frame_fails_alone(traces: Path) -> None:
    frames = make_chains([2, 3, 2, 4, 3])
    frames[3].positions[2] = frames[3].positions[1]  # before any calculation
    method = Morse(folder=str(traces), nan=(1,), nan_spread=(2,))
    outcomes = label(batch_of(method, frames))
    assert [isinstance(outcome, Labels) for outcome in outcomes] == [True, False, False, False, True]
    assert outcomes[1] == Failure("frame 1: forces of atom 0 are [nan, nan, nan]")
    assert outcomes[2] == Failure("frame 2: the spreads over the ensemble are not one finite number for each atom")
    assert isinstance(outcomes[3], Failure) and "frame 3: atoms 1 and 2 are at the same place" in outcomes[3].reason
    assert batches(traces) == [[0, 1, 2, 4]]


def test_an_error_of_a_batch_is_of_the_frame_that_raises_it(traces: Path) -> None:
    outcomes = label(batch_of(Morse(folder=str(traces), fail=(1,)), make_chains([2, 2, 2])))
    assert [isinstance(outcome, Labels) for outcome in outcomes] == [True, False, True]
    assert outcomes[1] == Failure("frame 1: RuntimeError: frames [1] are not to my liking")
    assert batches(traces) == [[0], [0, 1, 2], [1], [2]]


def test_a_batch_is_divided_into_its_frames() -> None:
    whole = batch_of(Morse(), make_chains([2, 3])).retry()
    assert whole.source == "frame 0 and 1 others"
    parts = whole.parts()
    assert [part.source for part in parts] == ["frame 0", "frame 1"]
    assert [part.retries for part in parts] == [1, 1]
