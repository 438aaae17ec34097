"""Splits: disjoint, reproducible, recorded, tied to their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ponita_ff.data import (
    DataError,
    Split,
    file_sha256,
    files_sha256,
    joined_split,
    random_split,
    read_index_file,
    rmd17_archive_split,
    rmd17_split,
)


def test_sets_are_disjoint_and_have_their_sizes() -> None:
    split = random_split(20, 10, 5, 3, seed=1)
    assert (len(split.train), len(split.validation), len(split.test)) == (10, 5, 3)
    assert len({*split.train, *split.validation, *split.test}) == 18


def test_seed_decides() -> None:
    assert random_split(50, 20, 10, seed=4) == random_split(50, 20, 10, seed=4)
    assert random_split(50, 20, 10, seed=4).train != random_split(50, 20, 10, seed=5).train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 5), "train set would have 0"),
        ((10, 5, 0), "validation set would have 0"),
        ((10, -1, 5), "train set would have -1"),
        ((10, 5, 3, -2), "test set would have -2"),
        ((10, 6, 3, 2), r"6 training \+ 3 validation \+ 2 test = 11 .* there are 10"),
    ],
)
def test_impossible_sizes(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        random_split(*arguments)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (((), (1,), ()), "train set is empty"),
        (((1,), (), ()), "validation set is empty"),
        (((1, 2), (2, 3), ()), "frame 2 is in train and again in validation"),
        (((1, 1), (2,), ()), "frame 1 is in train and again in train"),
        (((1,), (2,), (10,)), r"test set holds frame 10.*\(0\.\.9\)"),
        (((-1,), (2,), ()), "train set holds frame -1"),
    ],
)
def test_bad_indices(sets: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train, validation, test = sets
        Split(train, validation, test, n_frames=10)


def test_apply_selects_and_checks_the_length() -> None:
    frames: Any = list(range(10))  # any sequence will do
    train, validation, test = Split((3, 1), (0,), (9,), n_frames=10).apply(frames)
    assert (list(train), list(validation), list(test)) == ([3, 1], [0], [9])
    with pytest.raises(DataError, match=r"made for 10 frames.*has 9"):
        Split((3, 1), (0,), (9,), n_frames=10).apply(frames[:9])


def test_rmd17_protocol() -> None:
    split = rmd17_split(seed=3)
    assert (len(split.train), len(split.validation), split.test) == (950, 50, ())
    assert {*split.train, *split.validation} == set(range(1000))
    for n in (100_000, 999):
        with pytest.raises(DataError, match=f"1000 official training frames; got {n}"):
            rmd17_split(n)


def test_rmd17_protocol_in_the_full_archive() -> None:
    train, test = list(range(0, 100_000, 100)), list(range(1, 100_000, 100))
    split = rmd17_archive_split(train, test, 100_000, seed=3)
    assert {*split.train, *split.validation} == set(train)
    assert split.train == tuple(100 * i for i in rmd17_split(seed=3).train)
    assert split.test == tuple(test)
    with pytest.raises(DataError, match="again in test"):
        rmd17_archive_split(train, train, 100_000)
    with pytest.raises(DataError, match="99988 frames"):
        rmd17_archive_split(train, [99_990], 99_988)


def test_joined_split_is_each_dataset_s_own() -> None:
    parts = [random_split(10, 5, 3, 1, seed=2), random_split(7, 2, 2, seed=2)]
    joined = joined_split(parts, source_sha256="both")
    assert joined.train == parts[0].train + tuple(10 + i for i in parts[1].train)
    assert joined.validation == parts[0].validation + tuple(10 + i for i in parts[1].validation)
    assert joined.test == parts[0].test
    assert (joined.n_frames, joined.seed, joined.source_sha256) == (17, 2, "both")


def test_split_of_several_files(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text(file.name)
    split = random_split(5, 3, 2, source_sha256=files_sha256(files))
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json", source=files) == split
    with pytest.raises(DataError, match="made for a file with SHA-256"):
        Split.load(tmp_path / "split.json", source=files[::-1])


def test_save_and_load(tmp_path: Path) -> None:
    source, path = tmp_path / "data.npz", tmp_path / "split.json"
    source.write_bytes(b"frames")
    split = random_split(20, 10, 5, 3, seed=1, source_sha256=file_sha256(source))
    split.save(path)
    assert Split.load(path, source=source) == split
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "split.json"]
    with pytest.raises(DataError, match="give it"):
        Split.load(path, source=None)
    source.write_bytes(b"other frames")
    with pytest.raises(DataError, match=r"SHA-256.*data\.npz has"):
        Split.load(path, source=source)


def test_split_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    random_split(5, 3, 2).save(path)
    assert Split.load(path, source=None) == random_split(5, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "cats"}, "not a split file"),
        ({"version": 2}, "version 2"),
        ({"train": []}, "train set is empty"),
        ({"train": ["a"]}, r"train\.0 is 'a': Input should be a valid integer"),
        ({"train": [1.0, 2]}, r"train\.0 is 1\.0: Input should be a valid integer"),
        ({"validation": [True]}, r"validation\.0 is True"),
        ({"train": "012"}, r"train is '012'"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"n_frames": None}, "split.json"),
    ],
)
def test_damaged_split_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "split.json"
    random_split(5, 3, 2).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        Split.load(path, source=None)


def test_unreadable_split_files(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    with pytest.raises(DataError, match="not a readable"):
        Split.load(path, source=None)
    for text in ("{", "[" * 100_000, "\0"):
        path.write_text(text)
        with pytest.raises(DataError, match="not a readable"):
            Split.load(path, source=None)
    for endless in (Split.load, read_index_file):
        with pytest.raises(DataError, match=r"/dev/zero: not a .*larger than"):
            endless(Path("/dev/zero"), **({"source": None} if endless == Split.load else {}))


def test_index_files(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    path.write_text("5\n0\n7\n")
    assert read_index_file(path) == (5, 0, 7)
    for text in ("", "1\n1\n", "1.5\n", "-1\n", "a\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"index\.csv"):
            read_index_file(path)
