"""Damaged files of every format: the frames that were written, or a `DataError` that names the file.

Never another exception, and never other numbers. What cannot be known is left out: a digit that changes in a text
file, and bytes of the labels in an ASE database, which has no checksums, are changed only to see that no other
exception comes.
"""

from __future__ import annotations

import gzip
import sqlite3
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from ponita_ff.data import DataError, Frame, read_frames, write_hdf5
from ponita_ff.data.structures import iter_structures

Count = Callable[[str], None]
FIELDS = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress")


@cache
def frames(periodic: bool) -> tuple[Frame, ...]:
    """Three labelled frames: water molecules, or crystals with a stress."""
    rng = np.random.default_rng(5)
    made = []
    for _ in range(3):
        stress = rng.normal(size=(3, 3))
        made.append(
            Frame(
                numbers=np.array([8, 1, 1]),
                positions=np.round(np.diag([0.3, 1.0, 2.0]) + 0.1 * rng.normal(size=(3, 3)), 6),
                cell=np.diag([5.0, 6.0, 7.5]) * periodic,
                pbc=np.array([True, True, False]) & periodic,
                energy=float(np.round(rng.normal(-20.0), 6)),
                forces=np.round(rng.normal(size=(3, 3)), 6),
                stress=stress + stress.T if periodic else None,
            )
        )
    return tuple(made)


def outcome(path: Path, expected: tuple[Frame, ...] | None) -> str:
    """ "accepted" or "refused"; without ``expected``, any frames will do."""
    try:
        found = list(read_frames(path))
    except DataError as error:
        assert path.name in str(error)
        return "refused"
    if expected is not None:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    return "accepted"


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of some bytes of a file: flipped bits, other bytes, bytes removed or put in, the end cut off."""
    kind = draw(st.sampled_from(["flip", "replace", "remove", "insert", "truncate"]))
    place, size = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 8))
    new = draw(st.binary(min_size=size, max_size=size))
    bit = draw(st.integers(0, 7))

    def edit(content: bytes) -> bytes:
        start = int(place * len(content))
        before, after = content[:start], content[start:]
        if kind == "flip":
            return before + bytes([after[0] ^ (1 << bit)]) + after[1:]
        if kind == "replace":
            return before + new + after[size:]
        if kind == "remove":
            return before + after[size:]
        return before + new + after if kind == "insert" else before

    return edit


# --- npz -----------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    some = frames(False)
    values = {"R": "positions", "E": "energy", "F": "forces"}
    found: dict[str, Any] = {key: np.array([getattr(f, name) for f in some]) for key, name in values.items()}
    return found | {"z": some[0].numbers, "e_unit": np.array("eV"), "r_unit": np.array("Ang")}


@cache
def written(name: str, periodic: bool = False) -> bytes:
    """The contents of a valid file, by suffix."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        images = [frame.to_atoms() for frame in frames(periodic)]
        if name.endswith(".npz"):
            (np.savez_compressed if "small" in name else np.savez)(path, **arrays())
        elif name.endswith(".h5"):
            write_hdf5(path, frames(periodic), {}, compression="gzip" if "small" in name else None)
        elif name.endswith(".db"):
            with ase.db.connect(path) as database:
                for atoms in images:
                    database.write(atoms)
        else:
            ase.io.write(path, images, format="extxyz")
            if name.endswith(".gz"):
                path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        return path.read_bytes()


@pytest.mark.parametrize("name", ["a.npz", "small.npz", "a.h5", "small.h5", "a.xyz.gz"])
@given(edit=edits())
def test_bytes_of_files_with_checksums(name: str, edit: Callable[[bytes], bytes], tmp_path: Path, count: Count) -> None:
    path = tmp_path / name
    path.write_bytes(edit(written(name)))
    count(outcome(path, frames(False)))


@pytest.mark.parametrize("name", ["a.xyz", "a.db"])
@given(edit=edits())
def test_bytes_of_files_without_checksums(
    name: str, edit: Callable[[bytes], bytes], tmp_path: Path, count: Count
) -> None:
    path = tmp_path / name
    path.write_bytes(edit(written(name)))
    count(outcome(path, None))


#: Conversions that lose something, or change a type to one that no label has.
CONVERSIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda a: a + 1j,
    "text": lambda a: a.astype(str),
    "bytes": lambda a: a.astype(bytes),
    "boolean": lambda a: a.astype(bool),
    "object": lambda a: a.astype(object),
    "time": lambda a: a.astype("m8[s]"),
    "records": lambda a: np.zeros(a.shape, [("x", "f8")]),
    "scalar": lambda a: a.ravel()[0],
    "empty": lambda a: a[:0],
    "shorter": lambda a: a[1:],
    "longer": lambda a: np.concatenate([a, a[:1]]),
    "flat": lambda a: np.ravel(a)[None],
    "one more axis": lambda a: a[..., None, None],
    "fraction": lambda a: a + 0.7,
    "NaN": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.nan, a),
    "huge": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, 1e300, a),
    "largest": lambda a: np.full(a.shape, np.finfo("f8").max),
    "unsigned": lambda a: np.full(a.shape, 2**64 - 1, np.uint64),
    "same": lambda a: a.astype(np.longdouble),
}
#: Which of them change numbers to others that could be right.
UNKNOWABLE = {("E", "fraction"), ("R", "fraction"), ("F", "fraction")}


@given(key=st.sampled_from(["R", "E", "F", "z"]), conversion=st.sampled_from(sorted(CONVERSIONS)), extra=st.booleans())
def test_arrays_of_npz(key: str, conversion: str, extra: bool, tmp_path: Path, count: Count) -> None:
    if (key, conversion) in UNKNOWABLE:
        return
    content = arrays()
    content[key] = CONVERSIONS[conversion](content[key])
    path = tmp_path / "a.npz"
    np.savez(path, **content, **({"name": np.array([None], dtype=object)} if extra else {}))
    found = outcome(path, frames(False))
    assert found == ("accepted" if conversion == "same" else "refused")
    count(found)


# --- extended XYZ --------------------------------------------------------------------------

#: Characters that mean something, or that Python takes for spaces and digits; the table of all takes seconds to make.
CHARACTERS = "aTF01-+.eE_:,;=\"'{}[]()\\# \t\v\x1c\x85\xa0ñÅ٣"
#: Names of entries: those that matter, others that ASE knows, and any.
KNOWN_KEYS = ["energy", "forces", "stress", "virial", "pbc", "Lattice", "Properties", "units", "energy_unit"]
KNOWN_KEYS += ["length_unit", "free_energy", "dipole", "uid", "name", "0", "", "Energy", '"pbc"', "p\\bc"]
KEYS = st.sampled_from(KNOWN_KEYS) | st.text(CHARACTERS, max_size=4)
ODD_VALUES = ["", '""', "T", "nan", "inf", "1e300", "-1e400", "1+2j", '"1 2"', "_JSON", '"_JSON [1, 2]"', '"_JSON {"']
ODD_VALUES += ["[1,2,3]", '"T T"', '"1 2 3 4 5 6 7 8 9"', '"', "'", "{", "eV", "zorkmid", "\\", "=", "9" * 400]
VALUES = st.sampled_from(ODD_VALUES) | st.text(CHARACTERS, max_size=6)
TEXT = st.text(CHARACTERS, max_size=12)


def same_structures(path: Path, images: list[Atoms]) -> None:
    try:
        found = list(iter_structures(path))
    except DataError as error:
        assert path.name in str(error)
        return
    assert len(found) == len(images)
    for one, other in zip(found, images, strict=True):
        for name in ("numbers", "positions", "cell", "pbc"):
            np.testing.assert_array_equal(np.asarray(getattr(one, name)), np.asarray(getattr(other, name)))


def check_xyz(lines: list[str], periodic: bool, tmp_path: Path) -> str:
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="", errors="surrogatepass")
    same_structures(path, [frame.to_atoms() for frame in frames(periodic)])
    return outcome(path, frames(periodic))


def lines_of(periodic: bool) -> list[str]:
    return written("a.xyz", periodic).decode().splitlines()


@given(
    periodic=st.booleans(),
    place=st.integers(0, 15),
    kind=st.sampled_from(["insert", "remove", "repeat", "cut"]),
    text=TEXT | st.sampled_from(["0", "1", "3", "-1", "1" * 12, "1" * 30, "VEC1 1 0 0", "H 0 0 0", "\t", "#"]),
)
def test_lines_of_xyz(periodic: bool, place: int, kind: str, text: str, tmp_path: Path, count: Count) -> None:
    lines = lines_of(periodic)
    if kind == "cut" and place % 5 == 0:
        return  # whole frames at the end: cannot be known
    changed = {
        "insert": [*lines[:place], text, *lines[place:]],
        "remove": lines[:place] + lines[place + 1 :],
        "repeat": [*lines[:place], *lines[place : place + 1] * 2, *lines[place + 1 :]],
        "cut": lines[:place],
    }
    count(check_xyz(changed[kind], periodic, tmp_path))


@given(periodic=st.booleans(), gaps=st.lists(st.sampled_from(["", " ", "\t ", "\r"]), min_size=4, max_size=12))
def test_blank_lines_of_xyz(periodic: bool, gaps: list[str], tmp_path: Path, count: Count) -> None:
    lines = lines_of(periodic)
    parts = [lines[:5], lines[5:10], lines[10:]]
    spaced = [*gaps[:1], *parts[0], *gaps[1:2], *parts[1], *gaps[2:3], *parts[2], *gaps[3:]]
    assert check_xyz(spaced, periodic, tmp_path) == "accepted"
    count("accepted")


@given(
    periodic=st.booleans(),
    frame=st.integers(0, 2),
    kind=st.sampled_from(["add", "add text", "replace", "remove"]),
    key=KEYS,
    value=VALUES,
    place=st.integers(0, 9),
)
def test_comment_lines_of_xyz(
    periodic: bool, frame: int, kind: str, key: str, value: str, place: int, tmp_path: Path, count: Count
) -> None:
    lines = lines_of(periodic)
    entries = split_entries(lines[5 * frame + 1])
    place %= len(entries)
    new = " ".join((value if kind == "add text" else f"{key}={value}").split())
    if kind.startswith("add"):
        entries.insert(place, new)
    elif kind == "remove":
        if entries[place].startswith(("Lattice", "pbc")):
            return  # another structure: cannot be known
        del entries[place]
    else:
        name = entries[place].partition("=")[0]
        if (name in {"energy", "pbc"} and is_number(value)) or (name != "Properties" and value.startswith('"1 2 3')):
            return  # another energy, cell or stress
        entries[place] = f"{name}={value}"
    lines[5 * frame + 1] = " ".join(entries)
    count(check_xyz(lines, periodic, tmp_path))


def split_entries(comment: str) -> list[str]:
    """The entries of a comment line that ASE wrote."""
    joined: list[str] = []
    for word in comment.split(" "):
        if joined and joined[-1].count('"') % 2:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def is_number(value: Any) -> bool:
    """Whether it is a number, or one flag or number in an extended XYZ file."""
    try:
        return str(value) in {"T", "F"} or abs(float(str(value).strip("\"'{}[]()"))) < 1e8
    except ValueError:
        return False


# --- HDF5 ----------------------------------------------------------------------------------


def _replace(file: h5py.File, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def _outside(file: h5py.File, name: str) -> None:
    """The dataset's numbers in a file beside it."""
    array = file[name][:]
    other = Path(file.filename).with_name("other")
    array.tofile(other)
    del file[name]
    file.create_dataset(name, array.shape, array.dtype, external=[(str(other), 0, array.nbytes)])


def _virtual(file: h5py.File, name: str) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as source:
        source[name] = file[name][:]
        layout = h5py.VirtualLayout(source[name].shape, source[name].dtype)
        layout[...] = h5py.VirtualSource(other, name, source[name].shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _linked(file: h5py.File, name: str) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as target:
        target[name] = file[name][:]
    del file[name]
    file[name] = h5py.ExternalLink(other.name, name)


def _soft(file: h5py.File, name: str) -> None:
    file.move(name, "moved")
    file[name] = h5py.SoftLink("/moved")


def _moved(file: h5py.File, name: str) -> None:
    array = file[name]
    array[1] = array[1] + 1


HDF5_CHANGES: dict[str, Callable[[h5py.File, str], None]] = {
    "outside": _outside,
    "virtual": _virtual,
    "external link": _linked,
    "soft link": _soft,
    "moved by one": _moved,
    "group": lambda file, name: (file.__delitem__(name), file.create_group(name), None)[-1],
    "missing": lambda file, name: file.__delitem__(name),
    "empty": lambda file, name: _replace(file, name, h5py.Empty("f8")),
    "reference": lambda file, name: _replace(file, name, np.full(3, file.ref, dtype=h5py.ref_dtype)),
    **{
        kind: lambda file, name, change=change: _replace(file, name, change(file[name][:]))
        for kind, change in CONVERSIONS.items()
        if kind not in {"text", "bytes", "object", "time", "same"}
    },
    "text": lambda file, name: _replace(file, name, file[name][:].astype(bytes)),
}
COLUMNS = ["numbers", "positions", "forces", "offsets", "energy", "cell", "pbc", "stress", "checksum"]


@given(change=st.sampled_from(sorted(HDF5_CHANGES)), name=st.sampled_from(COLUMNS), periodic=st.booleans())
def test_datasets_of_hdf5(change: str, name: str, periodic: bool, tmp_path: Path, count: Count) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(written("a.h5", periodic))
    with h5py.File(path, "r+") as file:
        if name not in file or (name == "pbc" and change in {"moved by one", "boolean"}):
            return
        HDF5_CHANGES[change](file, name)
    count(outcome(path, frames(periodic)))


ATTRIBUTES = st.sampled_from(["format", "version", "energy_unit", "length_unit", "provenance"])
OTHERS: list[Any] = [0, -1, 3, 10**9, 1.5, "", "eV", "2", b"eV", [1, 2], np.array(["a", "b"], dtype="S1"), True, None]


@given(name=ATTRIBUTES, value=st.sampled_from(OTHERS))
def test_attributes_of_hdf5(name: str, value: Any, tmp_path: Path, count: Count) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(written("a.h5"))
    with h5py.File(path, "r+") as file:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = h5py.Empty("f8") if value is True else value
    count(outcome(path, frames(False)))


# --- ASE databases -------------------------------------------------------------------------

DB_COLUMNS = ["numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "natoms", "id", "constraints"]
DB_COLUMNS += ["key_value_pairs", "data", "calculator_parameters", "momenta", "tags", "initial_magmoms"]
DB_VALUES: list[Any] = [None, "text", "", b"", b"1", b"12345678", b"\xff" * 72, 8, -1, 10**18, 1.5, float("inf"), "8"]


@given(
    column=st.sampled_from(DB_COLUMNS), value=st.sampled_from(DB_VALUES), row=st.integers(1, 3), periodic=st.booleans()
)
def test_columns_of_databases(column: str, value: Any, row: int, periodic: bool, tmp_path: Path, count: Count) -> None:
    if column == "energy" and is_number(value):
        return  # another energy
    path = tmp_path / "a.db"
    path.write_bytes(written("a.db", periodic))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=OFF")
    try:
        connection.execute(f"UPDATE systems SET {column} = ? WHERE id = ?", (value, row))
        connection.commit()
    except sqlite3.Error:
        return  # SQLite itself refuses it
    finally:
        connection.close()
    order = row if column == "id" else 0
    count(outcome(path, None if order else frames(periodic)))
