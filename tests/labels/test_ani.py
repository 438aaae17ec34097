"""ANI-2x: torchani's numbers, in batches and with self energies in double precision."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.units import Hartree

from ponita_ff.data import read_frames
from ponita_ff.labels import LabelError, find_method, label_frames, methods, with_weights
from ponita_ff.labels.ani import Ani, AniNetworks, files_sha256, load
from ponita_ff.labels.methods import AniMethod
from ponita_ff.sample.methods import method_for, method_of
from ponita_ff.sample.run import _identity
from ponita_ff.sample.settings import SampleSettings

WEIGHTS = Path(os.environ.get("PONITA_FF_TEACHERS", Path(__file__).parents[3] / "shared" / "teachers")) / "ani-2x"
METHOD = f"ani-2x{{weights: {WEIGHTS}}}"


@pytest.fixture
def networks() -> AniNetworks:
    """The real ones."""
    pytest.importorskip("torch", reason="needs torch")
    if methods.find_spec("torchani") is None or not WEIGHTS.is_dir():
        pytest.skip(f"needs torchani and the weights of ANI-2x in {WEIGHTS}")
    return load(str(WEIGHTS.absolute()), files_sha256(str(WEIGHTS)))


@cache
def torchani_model() -> Any:
    """As torchani itself makes it; tests do not change it."""
    import torch
    from torchani.arch import ANI
    from torchani.neurochem import NeurochemInfo, modules_from_info

    parameters = WEIGHTS / "rHCNOSFCl-5.1R_16-3.5A_a8-4.params"
    info = NeurochemInfo(WEIGHTS / "sae_linfit.dat", parameters, WEIGHTS / "train", 8)
    with torch.random.fork_rng(devices=[]):
        aev, members, shifts, symbols = modules_from_info(info)
        return ANI(symbols, aev, members, shifts, periodic_table_index=True).requires_grad_(False)


def rattled(*names: str) -> list[Atoms]:
    """Molecules off their minima."""
    frames = [molecule(name) for name in names]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files with the names of weights, where torchani need not be installed."""
    monkeypatch.setattr(methods, "_require_package", lambda *_: None)
    names = ["sae_linfit.dat", "rHCNOSFCl-5.1R_16-3.5A_a8-4.params"]
    for member in range(8):
        names += [f"train{member}/networks/ANN-{symbol}.nnf" for symbol in ("H", "C", "N", "O", "S", "F", "Cl")]
    for name in names:
        path = tmp_path / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return tmp_path / "weights"


# ------------------------------------------------------------------------------------------ without torchani


def test_names_and_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    found = find_method("ANI-2x{weights: weights}")
    assert isinstance(found, AniMethod)
    assert (found.name, found.weights, found.charge, found.multiplicity) == ("ani-2x", str(folder), 0, 1)
    assert found.weights_sha256() == (files_sha256(str(folder)),)
    assert found.weights_sha256()[0] in found.program()
    assert pickle.loads(pickle.dumps(found)) == found
    assert find_method(with_weights("ani-2x", Path("weights"))) == found
    assert method_for("ani-2x{weights: weights}") == found
    odd = folder.rename(folder.parent / 'a "b", c: d #{e}')
    assert find_method(with_weights("ani-2x", odd)) == AniMethod("ani-2x", 0, 1, str(odd), found.sha256)


def test_other_weights_have_another_hash(folder: Path) -> None:
    before = find_method(f"ani-2x{{weights: {folder}}}").weights_sha256()
    (folder / "LICENSE").write_text("none of the numbers", encoding="utf-8")
    assert find_method(f"ani-2x{{weights: {folder}}}").weights_sha256() == before
    (folder / "train3" / "networks" / "ANN-C.nnf-l1.wparam").write_bytes(b"0")
    assert find_method(f"ani-2x{{weights: {folder}}}").weights_sha256() != before


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ani-2x{weights: nowhere}", "--weights nowhere: not a folder of ANI-2x's weights .*sae_linfit.dat"),
        ("ani-2x{weight: nowhere}", "unknown argument 'weight'; expected weights"),
        ("ani-2x{weights: 3}", "weights is 3; expected a text"),
        ("ani-2x{weights: [}", "not a mapping of keyword arguments"),
        ("gfn2-xtb{weights: here}", "gfn2-xtb{weights: here}: unknown argument 'weights'; it takes no arguments"),
        ("pbe/def2-svp{weights: here}", "it takes no arguments"),
        ("ani-3x{weights: here}", "unknown method 'ani-3x"),
    ],
)
def test_mistakes_of_methods(method: str, expected: str) -> None:
    with pytest.raises(LabelError, match=expected):
        find_method(method)


def test_frames_sampled_with_it_depend_on_the_weights_and_not_on_their_folder(folder: Path, tmp_path: Path) -> None:
    def identity(where: Path) -> dict[str, Any]:
        settings = SampleSettings.make({}, {"method": with_weights("ani-2x", where)})
        return _identity(settings, method_for(settings.method))

    before = identity(folder)
    moved = folder.rename(tmp_path / "moved")
    assert identity(moved) == before
    (moved / "sae_linfit.dat").write_text("others", encoding="utf-8")
    assert identity(moved) != before


def test_two_folders_of_weights_are_one_too_many() -> None:
    with pytest.raises(LabelError, match=r"--weights other: --method ani-2x\{weights: here\} has arguments already"):
        with_weights("ani-2x{weights: here}", Path("other"))


def test_frames_that_it_cannot_do(folder: Path) -> None:
    method = find_method(f"ani-2x{{weights: {folder}}}")
    method.check([("frame 0", molecule("CH3CH2OH")), ("frame 1", molecule("CH3Cl"))])
    for atoms, expected in (
        (molecule("PH3"), "frame 7: atom 0 is P; ani-2x knows H, C, N, O, F, S, Cl only"),
        (bulk("C"), "frame 7: periodic, but ani-2x labels molecules only"),
        (molecule("OH"), "9 electrons"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"charge": 2}), "the frame says charge=2"),
    ):
        with pytest.raises(LabelError, match=expected):
            method.check([("frame 7", atoms)])
    for charge, multiplicity in ((1, 1), (0, 3)):
        with pytest.raises(LabelError, match="ani-2x is for neutral closed-shell molecules"):
            method_of(method, charge, multiplicity).check([])


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(LabelError, match="ani-2x needs torchani, which is not installed: pip install torchani"):
        find_method("ani-2x").check([])


# ------------------------------------------------------------------------------------------ with it


def test_a_failed_download_names_the_option(networks: AniNetworks, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchani

    def download() -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchani.models, "ANI2x", download)
    with pytest.raises(LabelError, match=r"cannot download the weights .*no route to host.*--weights"):
        find_method("ani-2x").check([])


def test_what_torchani_downloads_gives_the_same(networks: AniNetworks, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of the folder in the place of the download."""
    import torchani

    monkeypatch.setattr(torchani.models, "ANI2x", lambda: deepcopy(torchani_model()))
    method = find_method("ani-2x")
    (atoms,) = rattled("H2O")
    method.check([("frame 0", atoms)])
    (labels,) = method.compute([atoms])
    energy, forces = networks.mean(atoms)
    assert labels.energy == pytest.approx(energy, abs=5e-4)  # by the self energies, single precision there
    np.testing.assert_allclose(labels.forces, forces, atol=1e-5)
    assert len(method.weights_sha256()[0]) == 64 and method.weights_sha256()[0] in labels.program
    assert load(None, "").sha256 != networks.sha256


def test_numbers_are_torchani_s_own(networks: AniNetworks, tmp_path: Path) -> None:
    frames = rattled("CH3CH2OH", "CH3SCH3")
    with ThreadPoolExecutor(1) as executor:
        result = label_frames(frames, METHOD, tmp_path / "out.xyz", executor=executor)
    model = torchani_model()
    for atoms, frame in zip(frames, read_frames(result.path), strict=True):
        atoms.calc = model.ase()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=5e-3)  # single precision there
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-4)
        atoms.calc = find_method(METHOD).calculator()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
    comment = result.path.read_text(encoding="utf-8").splitlines()[1]
    assert "method=ani-2x" in comment and networks.sha256 in comment and "energy_spread=" in comment
    assert networks.sha256 in result.journal.read_text(encoding="utf-8").splitlines()[0]


def test_labels_do_not_depend_on_the_rest_of_the_batch(networks: AniNetworks) -> None:
    frames = rattled("H2O", "C6H6", "CH3Cl", "CH3CONH2")
    method = find_method(METHOD)
    for atoms, together in zip(frames, method.compute(frames), strict=True):
        (alone,) = method.compute([atoms])
        assert together.energy == pytest.approx(alone.energy, abs=1e-5)
        np.testing.assert_allclose(together.forces, alone.forces, atol=1e-5)
        np.testing.assert_allclose(together.forces_spread, alone.forces_spread, atol=1e-5)
        assert together.forces_spread is not None and together.forces_spread.min() > 1e-3


def test_large_energies_keep_their_digits(networks: AniNetworks) -> None:
    """The total is −51,000 eV, where numbers of single precision are 4 meV apart."""
    import torch

    frames = rattled(*["CCl4"] * 4)
    model = deepcopy(torchani_model())
    species = torch.tensor(np.array([atoms.numbers for atoms in frames]))
    positions = torch.tensor(np.array([atoms.positions for atoms in frames]))
    single = model((species, positions.float())).energies.double().numpy() * Hartree
    model = model.double()
    model.set_enabled("energy_shifter", False)
    exact = model((species, positions)).energies.numpy() * Hartree
    for line in (WEIGHTS / "sae_linfit.dat").read_text(encoding="utf-8").splitlines():
        symbol, value = line.split("=")
        exact += frames[0].get_chemical_symbols().count(symbol.split(",")[0]) * float(value) * Hartree
    found = [labels.energy for labels in find_method(METHOD).compute(frames)]
    assert exact.max() < -51000
    np.testing.assert_allclose(found, exact, atol=5e-5, rtol=0)
    assert np.abs(single - exact).max() > 5e-4


def test_nothing_is_computed_twice(networks: AniNetworks, monkeypatch: pytest.MonkeyPatch) -> None:
    (atoms,) = rattled("H2O")
    counted = []
    real = networks.mean
    monkeypatch.setattr(networks, "mean", lambda atoms: counted.append(atoms) or real(atoms))
    atoms.calc = Ani(networks)
    atoms.get_potential_energy()
    forces = atoms.get_forces()
    atoms.get_potential_energy(force_consistent=True)
    assert len(counted) == 1 and forces.shape == (3, 3)
    method = find_method(METHOD)
    assert method.calculator() is not method.calculator()
    assert load(str(WEIGHTS.absolute()), files_sha256(str(WEIGHTS))) is networks  # loaded once for all of them


def test_the_calculator_refuses_what_it_does_not_know(networks: AniNetworks) -> None:
    for atoms, expected in ((molecule("PH3"), "have P"), (bulk("C"), "are periodic")):
        atoms.calc = Ani(networks)
        with pytest.raises(CalculationFailed, match=expected):
            atoms.get_forces()


def test_weights_that_changed_meanwhile_are_refused(networks: AniNetworks) -> None:
    with pytest.raises(ValueError, match=r"have the SHA-256 \w+, expected 00"):
        load(str(WEIGHTS.absolute()), "00")
