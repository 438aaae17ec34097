"""The streamed format: exactness, laziness, workers, damage."""

from __future__ import annotations

import json
import operator
import os
import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ponita_ff.data import DataError, Frame, Hdf5Frames, JoinedFrames, Units, frame_sizes, read_frames, write_hdf5


def symmetric(matrix: np.ndarray) -> np.ndarray:
    return matrix + matrix.T


def random_frames(n: int = 7, stress: bool = False, seed: int = 0) -> list[Frame]:
    """Frames of different sizes; half of them periodic."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        atoms = int(rng.integers(1, 9))
        periodic = i % 2 == 0
        frames.append(
            Frame(
                numbers=rng.integers(1, 90, atoms),
                positions=rng.normal(scale=5.0, size=(atoms, 3)),
                cell=np.diag(rng.uniform(5, 9, 3)) + 0.1 if periodic else np.zeros((3, 3)),
                pbc=np.array([True, True, i % 4 == 0]) & periodic,
                energy=float(rng.normal(-1e5, 10.0)),
                forces=rng.normal(size=(atoms, 3)),
                stress=symmetric(rng.normal(size=(3, 3))) if stress else None,
            )
        )
    return frames


def assert_same(found: Frame, expected: Frame) -> None:
    for name in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("stress", [False, True])
def test_round_trip_is_exact(tmp_path: Path, compression: Any, stress: bool) -> None:
    frames = random_frames(600, stress)  # more than two batches
    path = tmp_path / "a.h5"
    provenance = {"made by": "a test", "seeds": [0, 1]}
    assert write_hdf5(path, iter(frames), provenance, compression=compression) == 600
    with Hdf5Frames(path) as read:
        assert len(read) == 600
        assert read.provenance == provenance
        for i in (0, 1, 255, 256, 599):
            assert_same(read[i], frames[i])
        assert read[3].source == "a.h5, frame 3"
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_sizes_without_reading_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_frames(9)
    write_hdf5(tmp_path / "a.h5", frames, {})
    with Hdf5Frames(tmp_path / "a.h5") as read:
        monkeypatch.setattr(Hdf5Frames, "_frame", lambda *_: pytest.fail("a frame was read"))
        sizes = [len(frame) for frame in frames]
        assert read.sizes().tolist() == sizes
        assert frame_sizes(read[2:5]).tolist() == sizes[2:5]
        assert frame_sizes(JoinedFrames([read, read[:2]])).tolist() == sizes + sizes[:2]


def test_read_frames_dispatches_and_checks_units(tmp_path: Path) -> None:
    frames = random_frames(5, stress=True)
    path = tmp_path / "a.hdf5"
    write_hdf5(path, frames, {})
    assert_same(read_frames(path, index=slice(1, 3))[1], frames[2])
    assert read_frames(path, read_stress=False)[0].stress is None
    assert len(read_frames(path, units=Units("ev", "ang"))) == 5
    with pytest.raises(DataError, match=r"stated as kcal/mol.*eV"):
        read_frames(path, units=Units("kcal/mol", "ang"))
    with pytest.raises(DataError, match="energy_key cannot be given"):
        read_frames(path, energy_key="energy")


def test_nothing_to_write_or_mixed_stress_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(DataError, match="no frames"):
        write_hdf5(path, [], {})
    with pytest.raises(DataError, match="has a stress, unlike"):
        write_hdf5(path, random_frames(3) + random_frames(1, stress=True), {})
    with pytest.raises(DataError, match="JSON"):
        write_hdf5(path, random_frames(1), {"a": object()})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_hdf5(tmp_path / "file" / "a.h5", random_frames(1), {})


def test_failure_in_the_middle_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {"version": "old"})

    def broken() -> Iterator[Frame]:
        yield from random_frames(500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hdf5(path, broken(), {"version": "new"})
    assert Hdf5Frames(path).provenance == {"version": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def virtual_file(path: Path, n_frames: int, n_atoms: int) -> None:
    """A file whose arrays are nearly all unallocated: it reads as terabytes of zeros."""
    total = n_frames * n_atoms
    with h5py.File(path, "w") as file:
        for name, shape, dtype in (
            ("numbers", (total,), "u1"),
            ("positions", (total, 3), "f8"),
            ("forces", (total, 3), "f8"),
            ("energy", (n_frames,), "f8"),
            ("cell", (n_frames, 3, 3), "f8"),
            ("pbc", (n_frames, 3), "?"),
            ("offsets", (n_frames + 1,), "i8"),
        ):
            file.create_dataset(name, shape, dtype, chunks=(1024, *shape[1:]), fillvalue=0)
        last = n_frames - 1
        file["offsets"][-2:] = [last * n_atoms, total]
        file["numbers"][-n_atoms:] = 6
        file["positions"][-n_atoms:] = np.arange(n_atoms * 3.0).reshape(-1, 3)
        file["energy"][last] = -7.0
        file.attrs.update(
            format="ponita_ff frames",
            version=1,
            energy_unit="eV",
            length_unit="Angstrom",
            provenance=json.dumps({}),
        )


def test_a_set_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.h5"
    virtual_file(path, n_frames=10**9, n_atoms=100)  # 4.8 TB of positions and forces
    tracemalloc.start()
    frames = Hdf5Frames(path)
    assert len(frames) == 10**9
    assert frames[-1].energy == -7.0
    np.testing.assert_array_equal(frames[-1].positions[1], [3.0, 4.0, 5.0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, f"{peak} bytes for one frame of 100 atoms"


def test_pickle_and_fork_get_a_handle_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    expected = random_frames(5)
    write_hdf5(path, expected, {})
    frames = Hdf5Frames(path)
    assert_same(frames[0], expected[0])  # the file is open now
    handle = frames._file
    assert handle is not None
    copy = pickle.loads(pickle.dumps(frames))
    assert copy._file is None
    assert_same(copy[4], expected[4])
    frames._pid = os.getpid() + 1  # as a forked child finds it
    assert_same(frames[1], expected[1])
    assert frames._file is not handle
    frames.close()
    assert_same(frames[2], expected[2])


# Python 3.12 and later warn of any fork beside threads; torch has some.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_workers_of_a_data_loader(tmp_path: Path) -> None:
    expected = random_frames(6)
    path = tmp_path / "a.h5"
    write_hdf5(path, expected, {})
    frames = Hdf5Frames(path)
    assert_same(frames[0], expected[0])
    loader = DataLoader(
        frames,
        batch_size=2,
        num_workers=1,
        generator=torch.Generator(),
        collate_fn=list,
        multiprocessing_context="fork",
    )
    found = [frame for batch in loader for frame in batch]
    assert len(found) == 6
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_a_spawned_process_reads_frames(tmp_path: Path) -> None:
    """As a spawned worker of a data loader does, but without the seconds that importing torch takes there."""
    expected = random_frames(2)
    path = tmp_path / "a.h5"
    write_hdf5(path, expected, {})
    frames = Hdf5Frames(path)
    assert_same(frames[0], expected[0])
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        found = executor.map(operator.getitem, [frames, frames], range(2))
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(300), {})
    content = path.read_bytes()
    for part in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:part])
        with pytest.raises(DataError, match="truncated"):
            read_frames(path)
    with h5py.File(path, "w") as file:
        file["positions"] = np.zeros((3, 3))
    with pytest.raises(DataError, match="not one that ponita_ff wrote"):
        read_frames(path)


def damage(path: Path, change: str) -> None:
    with h5py.File(path, "r+") as file:
        if change == "version":
            file.attrs["version"] = 3
        elif change == "unit":
            file.attrs["energy_unit"] = "zorkmid"
        elif change == "column":
            del file["energy"]
        elif change == "shape":
            file["forces"].resize(len(file["forces"]) - 1, axis=0)
        elif change == "offsets":
            file["offsets"][-1] += 1
        elif change == "provenance":
            file.attrs["provenance"] = "{"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", "written in version 3"),
        ("unit", "unknown energy unit"),
        ("column", "damaged"),
        ("shape", "'forces' has shape"),
        ("offsets", "offsets do not cover"),
        ("provenance", "damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {})
    damage(path, change)
    with pytest.raises(DataError, match=message):
        read_frames(path)


def as_version_1(path: Path) -> None:
    """The same frames as the first version of the format held them."""
    with h5py.File(path, "r+") as file:
        del file["checksum"]
        file.attrs["version"] = 1


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    expected = random_frames(5, stress=True)
    path = tmp_path / "a.h5"
    write_hdf5(path, expected, {})
    as_version_1(path)
    for one, other in zip(read_frames(path), expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", ["offsets", "numbers", "positions", "forces", "energy", "cell", "stress"])
def test_what_changed_after_writing_is_named(tmp_path: Path, name: str) -> None:
    """Offsets that move by an atom, for instance, give two frames that are valid each."""
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(4, stress=True), {})
    with h5py.File(path, "r+") as file:
        row = 1 if name == "offsets" else 0
        file[name][row] = file[name][row] + 1
    for read_stress in (True, False):
        with pytest.raises(DataError, match=r"a\.h5, frame 0: it is not as it was written \(wrong checksum\)"):
            read_frames(path, read_stress=read_stress)[0]


def test_a_flipped_bit_in_the_labels_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    frames = random_frames(3)
    write_hdf5(path, frames, {})
    content = bytearray(path.read_bytes())
    content[content.index(frames[2].forces.tobytes()) + 1] ^= 1
    path.write_bytes(content)
    read = read_frames(path)
    assert_same(read[1], frames[1])
    with pytest.raises(DataError, match=r"frame 2: it is not as it was written"):
        read[2]


@pytest.mark.parametrize("offsets", [[0, 3, 3, 6], [0, 5, 4, 6], [0, 7, 6, 6], [0, -1, 3, 6]])
def test_offsets_without_order_in_version_1(tmp_path: Path, offsets: list[int]) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, [frame for frame in random_frames(40) if len(frame) == 2][:3], {})
    as_version_1(path)
    with h5py.File(path, "r+") as file:
        file["offsets"][:] = offsets
    with pytest.raises(DataError, match=r"a\.h5, frame \d: the offsets give it"):
        list(read_frames(path))
    with pytest.raises(DataError, match=r"a\.h5, frame \d: the offsets give it"):
        Hdf5Frames(path).sizes()


def outside(path: Path, kind: str) -> None:
    """Energies that are the bytes of another file."""
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["energy"] = np.full(3, 42.0)
    with h5py.File(path, "r+") as file:
        del file["energy"]
        if kind == "external link":
            file["energy"] = h5py.ExternalLink(other.name, "energy")
        elif kind == "soft link":
            file["moved"] = np.full(3, 42.0)
            file["energy"] = h5py.SoftLink("/moved")
        elif kind == "external storage":
            file.create_dataset("energy", (3,), "f8", external=[(str(other), 0, 24)])
        else:
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(other, "energy", (3,))
            file.create_virtual_dataset("energy", layout)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external link", r"dataset 'energy' is a link to other\.h5; links are not followed"),
        ("soft link", "dataset 'energy' is a link to another place"),
        ("external storage", "dataset 'energy' keeps its numbers in other files"),
        ("virtual", "dataset 'energy' keeps its numbers in other files"),
    ],
)
def test_other_files_are_never_read(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {})
    as_version_1(path)  # without a checksum, it would be read
    outside(path, kind)
    with pytest.raises(DataError, match=message):
        read_frames(path)


WRONG_DATASETS = {
    "complex": np.zeros(3, complex),
    "text": np.array([b"a", b"b", b"c"]),
    "records": np.zeros(3, [("x", "f8")]),
    "scalar": 1.0,
    "booleans": np.zeros(3, bool),
    "objects": np.array(["a", "b", "c"], dtype=h5py.string_dtype()),
}


@pytest.mark.parametrize("name", ["energy", "numbers", "offsets", "pbc", "cell"])
@pytest.mark.parametrize("kind", WRONG_DATASETS)
def test_wrong_types_of_datasets(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {})
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = WRONG_DATASETS[kind]
    with pytest.raises(DataError, match=rf"a\.h5: (dataset '{name}'|the offsets)"):
        read_frames(path)


def test_a_group_and_charges_that_are_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {})
    as_version_1(path)
    with h5py.File(path, "r+") as file:
        numbers = file["numbers"][:]
        del file["numbers"]
        file["numbers"] = numbers + 0.7
    with pytest.raises(DataError, match=r"a\.h5, frame 0: atomic numbers are not whole"):
        read_frames(path)[0]
    with h5py.File(path, "r+") as file:
        del file["numbers"]
        file.create_group("numbers")
    with pytest.raises(DataError, match="dataset 'numbers' is a group"):
        read_frames(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", "one"),
        ("version", [1, 2]),
        ("version", 1.5),
        ("version", 0),
        ("format", 3),
        ("format", ["ponita_ff frames", "x"]),
        ("energy_unit", 3),
        ("energy_unit", ["eV", "eV"]),
        ("length_unit", ""),
        ("provenance", 3),
        ("provenance", "[]"),
        ("provenance", h5py.Empty("f8")),
    ],
)
def test_wrong_types_of_attributes(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(3), {})
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(DataError, match=r"a\.h5"):
        read_frames(path)


def test_a_frame_of_trillions_of_atoms_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, random_frames(1), {})
    with h5py.File(path, "r+") as file:
        for name, shape in (("numbers", ()), ("positions", (3,)), ("forces", (3,))):
            dtype = file[name].dtype
            del file[name]
            file.create_dataset(name, (10**12, *shape), dtype, chunks=(1024, *shape))  # nothing of it is written
        file["offsets"][1] = 10**12
    with pytest.raises(DataError, match=r"a\.h5, frame 0: the offsets give it the atoms 0 to 1000000000000"):
        read_frames(path)[0]
