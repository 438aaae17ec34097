"""Teaching: a potential of methanol learns water from EMT before it sees other labels of water."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS
from click.testing import CliRunner
from matplotlib.figure import Figure
from methanol import make_frames

from ponita_ff import teaching
from ponita_ff.cli import main
from ponita_ff.data import read_frames
from ponita_ff.labels import label_frames
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.sample import sample
from ponita_ff.teaching import TEACHER_FOLDER, TeacherError, TeacherSettings, starting_frames, taught
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.run import train

TEACHER = "ase.calculators.emt:EMT"
SHORT = {"optimiser.steps": 120, "optimiser.learning_rate": 5e-3, "optimiser.muon_lr_multiplier": 1.0}


@pytest.fixture(autouse=True, scope="module")
def without_processes_and_pictures() -> Iterator[None]:
    """Most of the time would go into processes that sample and label and pictures, which other tests check."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(teaching, "label_frames", partial(label_frames, executor=executor))
        patch.setattr(teaching, "_STARTS", 3)
        patch.setattr(teaching, "sample", partial(sample, executor=executor))
        patch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential of methanol, trained a little."""
    folder = tmp_path_factory.mktemp("base")
    write(folder / "frames.xyz", [frame.to_atoms() for frame in make_frames(20)], format="extxyz")
    settings: dict[str, Any] = {
        "data": {"path": str(folder / "frames.xyz"), "train": 16, "validation": 4},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {"steps": 50, "batch_size": 4, "learning_rate": 0.01, "muon_lr_multiplier": 1.0},
    }
    train(TrainConfig.from_mapping(settings), folder / "run", progress=False)
    return folder / "run" / "potential.safetensors"


def labelled(number: int, shift: float = 0.0) -> list[Atoms]:
    """Water at EMT's minimum, shaken, with labels of EMT, and the energy shifted by so much an atom."""
    relaxed = molecule("H2O")
    relaxed.calc = EMT()
    BFGS(relaxed, logfile=None).run(fmax=0.01)
    found = []
    for seed in range(number):
        atoms = relaxed.copy()
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy() + shift * len(atoms), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        found.append(atoms)
    return found


@pytest.fixture
def water(tmp_path: Path) -> Path:
    write(tmp_path / "water.xyz", labelled(8, shift=-100.0), format="extxyz")
    return tmp_path / "water.xyz"


def test_starting_frames_are_far_apart_and_of_every_composition() -> None:
    frames = [frame.to_atoms() for frame in make_frames(6)]
    with_water = [*[frames[0]] * 5, *frames, *labelled(2)]
    chosen = starting_frames(with_water, 8)
    sizes = [len(atoms) for atoms in chosen]
    assert sizes == [6] * 6 + [3] * 2 and all(atoms.calc is None for atoms in chosen)
    distances = [np.abs(a.positions - b.positions).max() for a in chosen[:6] for b in chosen[:6] if a is not b]
    assert min(distances) > 0.01  # none twice
    assert len(starting_frames(with_water, 1)) == 2


def test_a_base_that_knows_the_molecule_moves_the_atoms(base: Path) -> None:
    settings = TeacherSettings.make(method=TEACHER)
    methanol = [frame.to_atoms() for frame in make_frames(3)]
    assert teaching._sampler(base, methanol, settings) == str(base)
    for unknown in (labelled(1), [molecule("CH3CH2OH")], [molecule("CH3Cl")]):
        assert teaching._sampler(base, [*methanol, *unknown], settings) == TEACHER
    other = TeacherSettings.make(method=TEACHER, sampler="gfn2-xtb")
    assert teaching._sampler(base, methanol, other) == "gfn2-xtb"


def test_a_stopped_run_goes_on_and_another_teacher_is_refused(base: Path, water: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    settings = TeacherSettings.make(method=TEACHER, frames=24)
    path = taught(base, read(water, ":"), settings, out, SHORT, progress=False)
    labels = read_frames(out / "labels.xyz")
    assert len(labels) == 24 and all(len(frame) == 3 for frame in labels)
    spread = np.ptp([np.linalg.norm(frame.positions[0] - frame.positions[1]) for frame in labels])
    assert spread > 0.05
    teacher = [np.abs(frame.forces - forces_of(frame.to_atoms())).max() for frame in labels]
    assert max(teacher) < 1e-5
    made = [
        file.stat().st_mtime_ns for file in (path, out / "labels.xyz.journal.jsonl", out / "frames" / "journal.jsonl")
    ]
    again = TeacherSettings.make(method=TEACHER, frames=24, processes=2)
    assert taught(base, read(water, ":"), again, out, SHORT, progress=False) == path
    files = (path, out / "labels.xyz.journal.jsonl", out / "frames" / "journal.jsonl")
    assert [file.stat().st_mtime_ns for file in files] == made
    with pytest.raises(TeacherError, match=r"begun with another teacher; go on with frames: 24, or give another --out"):
        taught(base, read(water, ":"), TeacherSettings.make(method=TEACHER, frames=25), out, SHORT, progress=False)
    (out / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(TeacherError, match=r"settings\.json is damaged"):
        taught(base, read(water, ":"), settings, out, SHORT, progress=False)


def forces_of(atoms: Atoms) -> np.ndarray:
    """By the teacher."""
    atoms.calc = EMT()
    return atoms.get_forces()


def test_the_command_learns_from_the_teacher_before_the_labels(base: Path, water: Path, tmp_path: Path) -> None:
    changes = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    arguments = ["finetune", str(base), str(water), "--out", str(tmp_path / "run"), "--no-progress", *changes]
    test = tmp_path / "test.xyz"
    write(test, labelled(20, shift=-100.0)[8:], format="extxyz")
    arguments += ["--test", str(test), "--teacher", TEACHER, "--teacher-frames", "24"]
    arguments += [part for name, value in SHORT.items() for part in ("--set", f"teacher.{name}={value}")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "before -> taught -> after" in result.output
    metadata = load_potential(tmp_path / "run" / "potential.safetensors").metadata
    errors = next(change for change in metadata["finetuning"] if change["name"] == "new: test")
    # The level of the teacher is that of the labels here, but for the energy of atoms: little is left to learn.
    assert errors["forces_taught"] < 0.7 * errors["forces_before"]
    assert errors["forces_after"] < 1.2 * errors["forces_taught"]
    start = read_header(tmp_path / "run" / TEACHER_FOLDER / "training" / "potential.safetensors")
    assert metadata["started_from"]["weights_sha256"] == start["weights_sha256"]
    assert CliRunner().invoke(main, arguments).output == result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["finetuning"] == metadata["finetuning"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "gfn3-xtb"], "gfn3-xtb"),
        (["--teacher", TEACHER, "--set", "optimiser.stepps=3"], "optimiser.stepps"),
        (["--teacher", TEACHER, "--set", "teacher.optimiser.stepps=3"], "optimiser.stepps"),
        (["--teacher", TEACHER, "--test", "nowhere.xyz"], "nowhere.xyz"),
        (["--teacher", TEACHER, "--resume"], "give the whole command again"),
        (["--teacher", TEACHER, "--teacher-frames", "3"], "teacher-frames"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, base: Path, water: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["finetune", str(base), str(water), "--out", str(tmp_path / "run"), *arguments])
    assert result.exit_code in (1, 2) and message in result.output
    # Before any work, and nothing is left that would stand in the way of the right command.
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
