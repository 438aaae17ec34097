"""The text of XYZ files: each line is read or refused, and no file can make the reader hang or fill memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ponita_ff.data import DataError
from ponita_ff.data.xyz import iter_texts

WATER = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


def parse(path: Path) -> list[int]:
    """Numbers of atoms of all frames."""
    return [len(text.parse()[0]) for text in iter_texts(path)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_frames_know_their_place(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.xyz{suffix}"
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(suffix, bytes)
    path.write_bytes(compress(f"{WATER}\n  \n{WATER}\n".encode()))
    texts = list(iter_texts(path))
    assert [(text.number, text.line, text.text) for text in texts] == [(0, 1, WATER), (1, 8, WATER)]
    assert texts[1].source == f"a.xyz{suffix}, frame 1"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.xyz"):
        parse(path)


def test_line_ends_and_missing_end(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    for text in (WATER.replace("\n", "\r\n"), WATER.replace("\n", "\r"), WATER.rstrip(), f" {WATER}"):
        path.write_text(text, newline="")
        assert parse(path) == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{WATER}H 0 0 0\n", r"frame 1 \(line 6\): .* expected the number of its atoms, found 'H 0 0 0'"),
        (f"{WATER}{WATER[:-15]}", r"frame 1 \(line 6\): .*3 atoms, but the file ends after 2 lines"),
        (WATER.replace("H 0.96", "\nH 0.96"), r"frame 0 \(line 1\): .*atom 1: expected 4 columns, found 0"),
        (WATER.replace("0.96 0 0", "0.96 0"), "atom 1: expected 4 columns, found 3"),
        (WATER.replace("0.96", "x"), "could not convert"),
        (WATER.replace("H", "Xy"), "frame 0 .*Xy"),
        (WATER.replace("3", "3.0", 1), "expected the number of its atoms, found '3.0'"),
        (WATER.replace("3", "-3", 1), "expected the number of its atoms, found '-3'"),
        (WATER.replace("3", "٣", 1), "expected the number"),
        (WATER.replace("3", "9" * 5000, 1), "9999 atoms, but the file ends after 3 lines"),
        (WATER.replace("3", "1" + "0" * 12, 1), "1000000000000 atoms, but the file ends after 3 lines"),
        ("0", "0 atoms, but the file ends"),
        (WATER.replace("water", "Properties=species:S:1:pos:R"), "not a list of name:type:columns"),
        (WATER.replace("water", "Properties=species:S:1:pos:R:999999999999"), "'999999999999' columns"),
        (WATER.replace("water", "Lattice=T"), "Lattice"),
        (f"{WATER.replace('water', 'pbc=T')}VEC1 5 0 0\n", r"pbc= in the comment line is not read.*VEC1"),
        ("\0" * 2_000_000, r"a\.xyz, line 1: longer than 1000000 characters"),
    ],
)
def test_what_is_not_a_frame(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(text, encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(DataError, match=message) as caught:
        parse(path)
    assert "a.xyz" in str(caught.value) and len(str(caught.value)) < 700
    assert time.perf_counter() - start < 5


def test_text_of_another_encoding_and_devices(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes(WATER.replace("water", "length in Å").encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.xyz: not readable as text \(UnicodeDecodeError"):
        parse(path)
    with pytest.raises(DataError, match="/dev/zero: not a file"):
        parse(Path("/dev/zero"))


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz.gz"
    path.write_bytes(gzip.compress(b"\0" * 30_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match="longer than"):
        parse(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15_000_000


def test_free_text_and_more_columns_are_no_errors(tmp_path: Path) -> None:
    """As CP2K, QM9 and people write them."""
    path = tmp_path / "a.xyz"
    cp2k, qm9 = " i = 0, time = 0.0, E = -17.1, E = 3", "gdb 1\t157.7 157.7"
    for comment in ("", cp2k, qm9, "5'-GMP \"in water", "energy=1 energy="):
        path.write_text(WATER.replace("water", comment).replace("0.96 0 0", "0.96 0 0 0.123"))
        assert parse(path) == [3]


def test_vectors_of_the_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(f"{WATER}VEC1 5 0 0\nVEC2 0 6 0\n{WATER}")
    first, second = (text.parse()[0] for text in iter_texts(path))
    np.testing.assert_array_equal(first.cell.array, np.diag([5.0, 6.0, 0.0]))
    assert first.pbc.tolist() == [True, True, False] and not second.pbc.any()
