"""Frames for replay say what their base says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from ase.build import molecule
from ase.io import write
from click.testing import CliRunner
from methanol import make_frames

from ponita_ff.data import read_frames, write_hdf5
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential


def test_frames_are_labelled_by_the_base(
    script: Callable[[str], ModuleType], make_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    save_potential(make_potential(channels=8, num_layers=1, scale=0.02), tmp_path / "potential.safetensors")
    paths = [tmp_path / f"{name}.xyz" for name in ("CH3OH", "H2O")]
    for path in paths:
        write(path, molecule(path.stem))
    result = CliRunner().invoke(
        script("replay_frames").main,
        [str(tmp_path), *map(str, paths), "--frames", "3", "--ps", "0.05", "--temperature", "100"],
    )
    assert result.exit_code == 0, result.output
    frames = read_frames(tmp_path / "replay.xyz")
    assert [len(frame) for frame in frames] == 3 * [6] + 3 * [3]
    found = load_potential(tmp_path / "potential.safetensors").evaluate([frame.to_atoms() for frame in frames])
    np.testing.assert_allclose(found.energies, [frame.energy for frame in frames], atol=1e-5)
    for forces, frame in zip(found.forces or [], frames, strict=True):
        np.testing.assert_allclose(forces, frame.forces, atol=1e-5)
    assert np.abs(frames[0].positions - frames[1].positions).max() > 1e-3


def test_frames_of_a_file_are_drawn(
    script: Callable[[str], ModuleType], make_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    save_potential(make_potential(channels=8, num_layers=1), tmp_path / "potential.safetensors")
    data = make_frames(9)
    write_hdf5(tmp_path / "teacher.h5", data, {"method": "made"})
    result = CliRunner().invoke(
        script("replay_frames").main, [str(tmp_path), str(tmp_path / "teacher.h5"), "--frames", "4"]
    )
    assert result.exit_code == 0, result.output
    frames = read_frames(tmp_path / "replay.xyz")
    assert len({frame.energy for frame in frames}) == 4
    found = load_potential(tmp_path / "potential.safetensors").evaluate([frame.to_atoms() for frame in frames])
    np.testing.assert_allclose(found.energies, [frame.energy for frame in frames], atol=1e-5)
    for frame in frames:
        assert any(np.allclose(frame.positions, other.positions, atol=1e-6) for other in data)
