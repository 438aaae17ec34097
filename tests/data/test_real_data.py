"""Public data as users have them; skipped where they are absent.

They are looked for in the folder that the environment variable PONITA_FF_DATA names, else in
``../shared/data`` beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ponita_ff.data import Units, check_plausible, read_frames, read_isolated_atoms

_BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DATA = Path(os.environ.get("PONITA_FF_DATA", _BESIDE))


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} in PONITA_FF_DATA or in ../shared/data")
    return path


def test_rmd17_ethanol() -> None:
    frames = read_frames(real("rmd17", "rmd17_ethanol_train_01.npz"))
    assert len(frames) == 1000
    frame = frames[0]
    assert frame.to_atoms().get_chemical_formula() == "C2H6O"
    # PBE/def2-SVP ethanol is -154.7 Hartree.
    assert frame.energy == pytest.approx(-154.7 * 27.2114, abs=3.0)
    check_plausible(frames)
    forces = np.stack([f.forces for f in frames])
    assert 0.3 < float(np.sqrt(np.mean(forces**2))) < 5.0
    np.testing.assert_allclose(forces.sum(axis=1), 0.0, atol=1e-3)


def test_wrong_units_of_real_data_are_noticed() -> None:
    path = real("3bpa", "train_300K.xyz")
    with pytest.raises(ValueError, match="are the units right"):
        check_plausible(read_frames(path, units=Units("Hartree", "Angstrom"), index=slice(5)))


def test_3bpa() -> None:
    frames = read_frames(real("3bpa", "train_300K.xyz"), index=slice(None, None, 50))
    assert len(frames) == 10
    assert frames[1].source == "train_300K.xyz, frame 50"
    assert frames[0].to_atoms().get_chemical_formula() == "C12H12N2O"
    assert frames[0].energy == -17660.461737861464
    assert not frames[0].cell.any() and not frames[0].pbc.any()
    check_plausible(frames)


def test_isolated_atoms_bound_the_molecules() -> None:
    atoms = read_isolated_atoms(real("3bpa", "iso_atoms.xyz"))
    frame = read_frames(real("3bpa", "train_300K.xyz"), index=slice(1))[0]
    binding = frame.energy - sum(atoms[int(z)] for z in frame.numbers)
    assert -8.0 < binding / len(frame) < -3.0  # eV per atom, organic molecules
