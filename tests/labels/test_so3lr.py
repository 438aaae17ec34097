"""SO3LR: the numbers of its own calculator, from one network."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ponita_ff.data import read_frames
from ponita_ff.labels import LabelError, find_method, label_frames, methods, so3lr


def test_frames_that_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_require_package", lambda *_: None)
    method = find_method("SO3LR")
    assert (method.name, method.charge, method.multiplicity) == ("so3lr", 0, 1)
    method.check([("frame 0", molecule("PH3")), ("frame 1", molecule("CH3Cl"))])
    for atoms, expected in (
        (Atoms("HBr", [[0, 0, 0], [0, 0, 1.4]]), "frame 7: atom 1 is Br; so3lr knows H, C, N, O, F, P, S, Cl only"),
        (bulk("C"), "frame 7: periodic, but so3lr labels molecules only"),
        (molecule("OH"), "9 electrons"),
    ):
        with pytest.raises(LabelError, match=expected):
            method.check([("frame 7", atoms)])
    with pytest.raises(LabelError, match="so3lr is for neutral closed-shell molecules"):
        find_method("so3lr", charge=1).check([])
    with pytest.raises(LabelError, match="unknown argument 'weights'; it takes no arguments"):
        find_method("so3lr{weights: here}")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(LabelError, match="so3lr needs so3krates_torch, which is not installed"):
        find_method("so3lr").check([])


@pytest.fixture
def random_numbers_kept(torch_state_unchanged: None) -> Iterator[None]:
    """Its loader of data draws one for every calculation."""
    torch = pytest.importorskip("torch", reason="needs torch")
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.usefixtures("random_numbers_kept")
@pytest.mark.filterwarnings("ignore")  # of so3krates-torch's own making
def test_numbers_are_those_of_its_calculator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("so3krates_torch", reason="needs so3krates-torch")
    frames = [molecule("CH3CH2OH"), molecule("CH3Cl")]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    with ThreadPoolExecutor(1) as executor:
        result = label_frames(frames, "so3lr", tmp_path / "out.xyz", executor=executor)
    assert capsys.readouterr().out == ""
    assert "so3krates-torch 0." in result.path.read_text(encoding="utf-8")
    from so3krates_torch.calculator.so3 import SO3LRCalculator

    theirs = SO3LRCalculator(device="cpu", r_max_lr=1000.0)
    for atoms, frame in zip(frames, read_frames(result.path), strict=True):
        atoms.calc = theirs
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
    first, second = so3lr.calculator(), so3lr.calculator()
    assert first is not second and first.models[0] is second.models[0]  # type: ignore[attr-defined]
