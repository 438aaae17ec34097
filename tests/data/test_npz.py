"""Both .npz styles, their units, and files that must not be trusted."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ponita_ff.data import DataError, NpzFrames, Units, read_frames

KCAL = 0.0433641043  # eV; CODATA 2018, rounded
ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8)
PLAIN = Units("eV", "Angstrom")


def arrays(n_frames: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "nuclear_charges": ETHANOL,
        "coords": rng.normal(scale=2.0, size=(n_frames, 9, 3)),
        "energies": rng.normal(-97_000.0, 5.0, size=n_frames),
        "forces": rng.normal(scale=20.0, size=(n_frames, 9, 3)),
    }


def sgdml(n_frames: int = 4) -> dict[str, np.ndarray]:
    names = {"nuclear_charges": "z", "coords": "R", "energies": "E", "forces": "F"}
    renamed = {names[key]: value for key, value in arrays(n_frames).items()}
    return renamed | {"E": renamed["E"][:, None]}  # (frames, 1), as sGDML writes it


def write(path: Path, content: dict[str, Any]) -> Path:
    np.savez(path, **content)
    return path


def test_rmd17_style_is_known_by_keys_and_name(tmp_path: Path) -> None:
    data = arrays()
    frames = read_frames(write(tmp_path / "rmd17_ethanol.npz", data))
    assert len(frames) == 4
    frame = frames[2]
    np.testing.assert_array_equal(frame.numbers, ETHANOL)
    np.testing.assert_array_equal(frame.positions, data["coords"][2])
    assert frame.energy == pytest.approx(data["energies"][2] * KCAL, rel=1e-8)
    np.testing.assert_allclose(frame.forces, data["forces"][2] * KCAL, rtol=1e-8)
    assert not frame.pbc.any() and not frame.cell.any() and frame.stress is None
    assert frame.source == "rmd17_ethanol.npz, frame 2"


def test_sizes(tmp_path: Path) -> None:
    frames = NpzFrames(write(tmp_path / "rmd17_x.npz", arrays(4)))
    assert frames.sizes().tolist() == [len(frame) for frame in frames]


@pytest.mark.parametrize("kind", [np.array, lambda text: np.array(text.encode())])
def test_sgdml_style_reads_its_own_units(tmp_path: Path, kind: Any) -> None:
    data = sgdml()
    units = {"e_unit": kind("Hartree"), "r_unit": kind("Bohr")}
    frame = read_frames(write(tmp_path / "mine.npz", data | units))[1]
    np.testing.assert_allclose(frame.positions, data["R"][1] * 0.529177211, rtol=1e-8)
    assert frame.energy == pytest.approx(float(data["E"][1, 0]) * 27.2113862, rel=1e-8)
    np.testing.assert_allclose(frame.forces, data["F"][1] * 51.4220675, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ethanol.npz", arrays()),  # the name does not say rMD17
        ("md17_ethanol.npz", sgdml()),
        ("half.npz", sgdml() | {"e_unit": np.array("eV")}),
    ],
)
def test_unknown_units_are_refused_until_stated(tmp_path: Path, name: str, content: dict[str, np.ndarray]) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=r"units are unknown.*units=Units"):
        read_frames(path)
    energies = content.get("E", content.get("energies"))
    assert energies is not None
    assert read_frames(path, units=PLAIN)[0].energy == float(energies.ravel()[0])


def test_stated_units_that_contradict_the_file(tmp_path: Path) -> None:
    units = {"e_unit": np.array("kcal/mol"), "r_unit": np.array("Ang")}
    marked = write(tmp_path / "marked.npz", sgdml() | units)
    named = write(tmp_path / "rmd17_x.npz", arrays())
    for path in (marked, named):
        with pytest.raises(DataError, match=r"stated as eV.*kcal/mol"):
            read_frames(path, units=PLAIN)
        assert len(read_frames(path, units=Units("KCAL/mol", "ang"))) == 4


def test_unit_of_another_planet(tmp_path: Path) -> None:
    content = sgdml() | {"e_unit": np.array("zorkmid"), "r_unit": np.array("Ang")}
    with pytest.raises(DataError, match=r"not understood: unknown energy unit 'zorkmid'"):
        read_frames(write(tmp_path / "a.npz", content))


@pytest.mark.parametrize("missing", ["energies", "forces"])
def test_missing_labels_name_file_and_keys(tmp_path: Path, missing: str) -> None:
    content = {key: value for key, value in arrays().items() if key != missing}
    with pytest.raises(DataError, match=rf"rmd17_a\.npz.*found the keys.*not \['{missing}'\]"):
        read_frames(write(tmp_path / "rmd17_a.npz", content))


def test_foreign_keys_name_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\['x'\].*nuclear_charges.*'z', 'R', 'E', 'F'"):
        read_frames(write(tmp_path / "a.npz", {"x": np.zeros(3)}))


def test_other_label_keys(tmp_path: Path) -> None:
    data = arrays()
    content = data | {"old_energies": data["energies"] + 1.0}
    path = write(tmp_path / "rmd17_a.npz", content)
    frames = read_frames(path, units=PLAIN, energy_key="old_energies")
    assert frames[0].energy == data["energies"][0] + 1.0
    with pytest.raises(DataError, match=r"not \['forcs'\]"):
        read_frames(path, units=PLAIN, forces_key="forcs")


@pytest.mark.parametrize("key", ["energies", "forces", "coords"])
def test_nan_names_the_frame(tmp_path: Path, key: str) -> None:
    content = arrays()
    content[key][2] = np.nan
    with pytest.raises(DataError, match=rf"rmd17_a\.npz, frame 2: {key}.*1 of 4"):
        read_frames(write(tmp_path / "rmd17_a.npz", content))


@pytest.mark.parametrize(
    "changes",
    [
        {"energies": np.zeros(3)},
        {"forces": np.zeros((4, 8, 3))},
        {"nuclear_charges": np.ones(8)},
        {"coords": np.zeros((4, 27))},
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"do not fit|expected \(frames"):
        read_frames(write(tmp_path / "rmd17_a.npz", arrays() | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energies": np.full(4, -97_000.0 + 3j)}, "energies are not an array of numbers: .* complex"),
        ({"forces": np.ones((4, 9, 3), bool)}, "forces are not an array of numbers: .* booleans"),
        ({"coords": np.full((4, 9, 3), "1.0")}, "coords are not an array of numbers: .* text"),
        ({"nuclear_charges": ETHANOL + 0.7}, "nuclear_charges are not whole numbers"),
        ({"nuclear_charges": ETHANOL.astype(complex)}, "nuclear_charges are not an array of numbers"),
        ({"coords": np.zeros((0, 9, 3)), "energies": np.zeros(0), "forces": np.zeros((0, 9, 3))}, "no frames"),
        ({"energies": np.full(4, 1e300)}, "frame 0: the energy is 4.*e.298 eV, more than any physical"),
    ],
)
def test_wrong_types_and_values(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays() | changes)
    with pytest.raises(DataError, match=rf"rmd17_a\.npz.*{message}"):
        list(read_frames(path))


def test_charges_as_whole_floating_point_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays() | {"nuclear_charges": ETHANOL.astype(float)})
    np.testing.assert_array_equal(read_frames(path)[3].numbers, ETHANOL)


@pytest.mark.parametrize(
    "marks", [{"e_unit": ""}, {"e_unit": "", "r_unit": ""}, {"r_unit": " "}, {"e_unit": "Hartree"}]
)
def test_an_empty_or_single_unit_is_not_ignored(tmp_path: Path, marks: dict[str, str]) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays() | {key: np.array(text) for key, text in marks.items()})
    with pytest.raises(DataError, match="the units are unknown"):
        read_frames(path)
    if marks == {"e_unit": "Ha"}:
        with pytest.raises(DataError, match=r"stated as eV.*the file states.*Hartree"):
            read_frames(path, units=PLAIN)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("shape", [(10**9, 9, 3), (10**12, 9, 3), (3, 9, 3), (-4, 9, 3)])
def test_a_header_that_claims_another_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    content = members(path) | {"forces.npy": header.getvalue() + arrays()["forces"].tobytes()}
    with zipfile.ZipFile(path, "w") as archive:  # with right checksums
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=r"rmd17_a\.npz: array 'forces' cannot be read: its header states"):
        read_frames(path)


def test_a_directory_that_claims_another_size(tmp_path: Path) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays())
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("forces.npy").file_size
        position = archive.start_dir + path.read_bytes()[archive.start_dir :].index(b"forces.npy") - 46
    content = bytearray(path.read_bytes())
    assert content[position + 24 : position + 28] == struct.pack("<I", size)
    content[position + 24 : position + 28] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"array 'forces' cannot be read: it claims 2147483648 bytes, but the file can"):
        read_frames(path)


def test_a_flipped_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays())
    content = bytearray(path.read_bytes())
    content[content.index(arrays()["energies"].tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rmd17_a\.npz: not a readable .npz file .*CRC-32"):
        read_frames(path)


def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("energies", members(path)["energies.npy"])
    with pytest.raises(DataError, match="array 'energies' is there twice"):
        read_frames(path)


def test_periodic_sgdml_is_not_silently_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="periodic"):
        read_frames(write(tmp_path / "a.npz", sgdml() | {"lattice": np.eye(3)}), units=PLAIN)


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["energies", "nuclear_charges"])
def test_pickled_array_is_refused_and_never_run(tmp_path: Path, key: str) -> None:
    sign = tmp_path / "executed"
    content = arrays() | {key: np.array([_Bomb(sign)], dtype=object)}
    with pytest.raises(DataError, match=rf"array '{key}'.*unpickled"):
        read_frames(write(tmp_path / "rmd17_a.npz", content))
    assert not sign.exists()


def test_bare_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    sign, path = tmp_path / "executed", tmp_path / "rmd17_a.npz"
    path.write_bytes(pickle.dumps(_Bomb(sign)))
    with pytest.raises(DataError, match="not a readable"):
        read_frames(path)
    assert not sign.exists()
    pickle.loads(path.read_bytes())  # our own: shows that the bomb works
    assert sign.exists()


def test_truncated_and_single_array(tmp_path: Path) -> None:
    path = write(tmp_path / "rmd17_a.npz", arrays())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a readable"):
        read_frames(path)
    with path.open("wb") as handle:
        np.save(handle, np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        read_frames(path)


def test_index_and_numbers_per_frame(tmp_path: Path) -> None:
    content = arrays() | {"nuclear_charges": np.tile(ETHANOL, (4, 1))}
    path = write(tmp_path / "rmd17_a.npz", content)
    assert [f.source[-1] for f in read_frames(path, index=slice(1, None, 2))] == ["1", "3"]
    with pytest.raises(DataError, match="no frames"):
        read_frames(path, index=slice(9, None))
    with pytest.raises(DataError, match="stress_key"):
        read_frames(path, stress_key="stress")


def test_frames_do_not_share_memory_with_the_archive(tmp_path: Path) -> None:
    frames = NpzFrames(write(tmp_path / "rmd17_a.npz", arrays()), units=None)
    before = frames[0].positions.copy()
    frames[0].positions[:] = 0.0
    np.testing.assert_array_equal(frames[0].positions, before)
