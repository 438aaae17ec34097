"""Frames in fixed point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ponita_ff.data import DataError, Frame, read_frames, write_hdf5

Script = Callable[[str], ModuleType]


def frames(periodic: bool = False, size: float = 6.0, force: float = 20.0) -> list[Frame]:
    """Of several sizes, one of them a single atom."""
    rng = np.random.default_rng(0)
    found = []
    for number in (5, 1, 3):
        stress = rng.normal(size=(3, 3))
        options: dict[str, Any] = {"stress": stress + stress.T} if periodic else {}
        found.append(
            Frame(
                np.arange(1, number + 1),
                100.0 + size * rng.uniform(size=(number, 3)),
                20.0 * np.eye(3) if periodic else np.zeros((3, 3)),
                np.full(3, periodic),
                energy=float(rng.normal()) - 1e4,
                forces=force * rng.normal(size=(number, 3)),
                source="made",
                **options,
            )
        )
    return found


@pytest.mark.parametrize("periodic", [False, True])
def test_there_and_back(periodic: bool, script: Script, tmp_path: Path) -> None:
    packing = script("gpu_pack")
    given = {"one": frames(periodic), "two": frames(periodic)[:1]}
    for name, values in given.items():
        write_hdf5(tmp_path / f"{name}.h5", values, {})
    sets = packing.pack([tmp_path / f"{name}.h5" for name in given], tmp_path / "packed.npz")
    assert packing.unpack(tmp_path / "packed.npz", tmp_path / "out") == sets
    for name, values in given.items():
        found = read_frames(tmp_path / "out" / f"{name}.h5")
        assert len(found) == len(values) == sets[name].frames
        errors = {"positions": 0.0, "forces": 0.0}
        for one, other in zip(found, values, strict=True):
            for key in ("numbers", "cell", "pbc", "energy", *(("stress",) if periodic else ())):
                assert np.array_equal(getattr(one, key), getattr(other, key))
            assert (one.stress is None) == (other.stress is None)
            for key in errors:
                errors[key] = max(errors[key], float(np.abs(getattr(one, key) - getattr(other, key)).max()))
        assert errors == {"positions": sets[name].position_error, "forces": sets[name].force_error}
        assert 0 < errors["positions"] <= 0.51 * 6.0 / 2**24
        assert 0 < errors["forces"] < 120 / 2**16


def test_sixteen_bits_are_coarser(script: Script, tmp_path: Path) -> None:
    packing = script("gpu_pack")
    write_hdf5(tmp_path / "one.h5", frames(), {})
    (coarse,) = packing.pack([tmp_path / "one.h5"], tmp_path / "packed.npz", 16).values()
    assert 1e-5 < coarse.position_error <= 0.51 * 6.0 / 2**16


def test_what_is_refused(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing = script("gpu_pack")
    packed = tmp_path / "packed.npz"
    write_hdf5(tmp_path / "one.h5", [*frames()[:1], *frames(size=90.0)], {})
    write_hdf5(tmp_path / "two.h5", [*frames()[:2], *frames(force=500.0)], {})
    (tmp_path / "sub").mkdir()
    write_hdf5(tmp_path / "sub" / "one.h5", frames(), {})
    cases = [
        ([tmp_path / "one.h5"], 16, r"one.h5, frame 1: fixed point changes its positions by .* take 24 bits"),
        ([tmp_path / "two.h5"], 24, r"two.h5, frame 2: fixed point changes its forces by .* eV/Å, more than 0.002"),
        ([tmp_path / "one.h5", tmp_path / "sub" / "one.h5"], 24, "another file with the name one"),
    ]
    for files, bits, message in cases:
        with pytest.raises(DataError, match=message):
            packing.pack(files, packed, bits)
    monkeypatch.setattr(packing, "LIMIT_MB", 1e-4)
    with pytest.raises(DataError, match=r"more than 0\.0001: pack fewer frames"):
        packing.pack([tmp_path / "one.h5"], packed)
    assert not packed.exists()
    monkeypatch.undo()
    packing.pack([tmp_path / "sub" / "one.h5"], packed)
    whole = packed.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 200]) + whole[middle + 200 :]
    for content in (b"", b"no", whole[:middle], damaged):
        packed.write_bytes(content)
        with pytest.raises(DataError, match="not packed frames, or damaged"):
            packing.unpack(packed, tmp_path / "out")
    assert not (tmp_path / "out" / "one.h5").exists()
