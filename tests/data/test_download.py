"""The download command's backend against servers on 127.0.0.1."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ponita_ff.data.download import _FILES, DownloadError, RemoteFile, available, download, download_file, remote_file


def archive(n_frames: int = 40, numbers: tuple[int, ...] = (8, 1, 1)) -> bytes:
    rng = np.random.default_rng(n_frames)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        z=np.array(numbers),
        R=rng.normal(scale=3.0, size=(n_frames, len(numbers), 3)),
        E=rng.normal(size=(n_frames, 1)),
        F=rng.normal(size=(n_frames, len(numbers), 3)),
        e_unit=np.array("kcal/mol"),
        r_unit=np.array("Ang"),
    )
    return buffer.getvalue()


CONTENT = archive()
FILE = RemoteFile("md22", "water", "md22_water.npz", "http://unused", n_frames=40, formula="H2O")
BARE = RemoteFile("d", "m", "a.npz", "http://unused")


@dataclass
class Behaviour:
    """What the server does; ``requests`` is what it was asked."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before hanging up, per request
    status: list[int] = field(default_factory=list)  # errors to answer first
    announce_length: bool = True
    honest_if_range: bool = True
    requests: list[dict[str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        it = self.behaviour
        it.requests.append(dict(self.headers))
        if it.status:
            self.send_error(it.status.pop(0))
            return
        begin = self._begin(it)
        if begin is not None and begin >= len(it.content):
            self.send_error(416)
            return
        body = it.content[begin or 0 :]
        self.send_response(200 if begin is None else 206)
        if begin is not None:
            n = len(it.content)
            self.send_header("Content-Range", f"bytes {begin}-{n - 1}/{n}")
        if it.etag is not None:
            self.send_header("ETag", it.etag)
        if it.announce_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: it.cut_after.pop(0)] if it.cut_after else body)
        self.close_connection = True

    def _begin(self, it: Behaviour) -> int | None:
        wanted = self.headers.get("Range")
        fresh = not it.honest_if_range or self.headers.get("If-Range") == it.etag
        if wanted is None or not it.ranges or not fresh:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))


class Server(NamedTuple):
    url: str
    behaviour: Behaviour


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")  # a proxy has no way to our loopback
    behaviour = Behaviour()
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Server(f"http://127.0.0.1:{httpd.server_port}", behaviour)
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def get(server: Server, folder: Path, file: RemoteFile = FILE, attempts: int = 3) -> Path:
    return download_file(file, folder, server.url, attempts=attempts, backoff_s=0.0, progress=False, timeout_s=5.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


DONE = ["md22_water.npz", "md22_water.npz.sha256"]


def test_whole_file(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = get(server, folder)
    assert path == folder / "md22_water.npz"
    assert path.read_bytes() == CONTENT
    assert names(folder) == DONE
    recorded = (folder / "md22_water.npz.sha256").read_text()
    assert recorded == f"{hashlib.sha256(CONTENT).hexdigest()}  md22_water.npz\n"
    assert len(server.behaviour.requests) == 1


def test_second_call_verifies_without_a_request(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    assert len(server.behaviour.requests) == 1
    (tmp_path / "md22_water.npz").write_bytes(CONTENT[:-1] + b"\1")
    with pytest.raises(DownloadError, match="recorded sha256"):
        get(server, tmp_path)


def test_resume_after_a_cut_in_one_call(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [1000, 500]
    assert get(server, tmp_path).read_bytes() == CONTENT
    asked = [request.get("Range") for request in server.behaviour.requests]
    assert asked == [None, "bytes=1000-", "bytes=1500-"]
    assert server.behaviour.requests[1]["If-Range"] == '"v1"'
    assert names(tmp_path) == DONE


def test_resume_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [1000]
    with pytest.raises(DownloadError, match=f"after 1000 of {len(CONTENT)} bytes"):
        get(server, tmp_path, attempts=1)
    assert names(tmp_path) == ["md22_water.npz.part", "md22_water.npz.part.json"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.requests[1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize("ranges", [False, True])
def test_server_without_range_or_validator(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.behaviour.cut_after = [1000]
    server.behaviour.ranges = ranges
    server.behaviour.etag = '"v1"' if not ranges else None
    assert get(server, tmp_path).read_bytes() == CONTENT
    # Without a validator nothing says that the rest belongs to what we have: no Range is asked.
    assert ("Range" in server.behaviour.requests[1]) == (not ranges)


@pytest.mark.parametrize("honest", [True, False])
def test_file_changed_between_the_pieces(server: Server, tmp_path: Path, honest: bool) -> None:
    server.behaviour.cut_after = [1000]
    with pytest.raises(DownloadError):
        get(server, tmp_path, attempts=1)
    server.behaviour.content = archive(40, (1, 1, 8))  # same length: only the ETag tells
    assert len(server.behaviour.content) == len(CONTENT)
    server.behaviour.etag = '"v2"'
    server.behaviour.honest_if_range = honest  # a server that ignores If-Range sends the rest
    assert get(server, tmp_path).read_bytes() == server.behaviour.content


def test_file_shrank_below_what_we_have(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [len(CONTENT) - 10]
    with pytest.raises(DownloadError):
        get(server, tmp_path, attempts=1)
    server.behaviour.content = archive(5)
    server.behaviour.honest_if_range = False  # answers 416
    file = RemoteFile("md22", "water", "md22_water.npz", "http://unused", n_frames=5)
    assert get(server, tmp_path, file).read_bytes() == archive(5)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_hashes_are_enforced(server: Server, tmp_path: Path, algorithm: str) -> None:
    right: Any = hashlib.new(algorithm, CONTENT).hexdigest()
    wrong: Any = hashlib.new(algorithm, b"other").hexdigest()
    with pytest.raises(DownloadError, match=f"{algorithm} is {right}, expected {wrong}"):
        get(server, tmp_path, replace(BARE, **{algorithm: wrong}))
    assert names(tmp_path) == [], "a wrong file must not be resumed or used"
    file = replace(BARE, **{algorithm: right.upper()})
    assert get(server, tmp_path, file).exists()


def test_wrong_size_is_found_before_the_transfer(server: Server, tmp_path: Path) -> None:
    file = RemoteFile("d", "m", "a.npz", "http://x", size=17)
    with pytest.raises(DownloadError, match=f"has {len(CONTENT)} bytes, expected 17"):
        get(server, tmp_path, file)
    assert len(server.behaviour.requests) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(39), "holds 39 frames, expected 40"),
        (archive(40, (16, 1, 1)), "holds H2S, expected H2O"),
        (b"<html>please log in</html>", "not a readable"),
    ],
)
def test_contents_are_checked(server: Server, tmp_path: Path, content: bytes, message: str) -> None:
    server.behaviour.content = content
    with pytest.raises(DownloadError, match=message):
        get(server, tmp_path)
    assert names(tmp_path) == []


def test_truncated_body_every_time(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [100, 100, 100]
    with pytest.raises(DownloadError, match="connection ended after 100 of"):
        get(server, tmp_path)
    assert len(server.behaviour.requests) == 3
    assert "md22_water.npz" not in names(tmp_path)


def test_truncated_body_of_unknown_length(server: Server, tmp_path: Path) -> None:
    server.behaviour.announce_length = False
    server.behaviour.cut_after = [2000]
    with pytest.raises(DownloadError, match="not a readable"):
        get(server, tmp_path)
    assert names(tmp_path) == []
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.behaviour.status = [503, 429]
    get(server, tmp_path / "a")
    assert len(server.behaviour.requests) == 3
    server.behaviour.status = [404]
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "b")
    assert len(server.behaviour.requests) == 4


def test_back_off_is_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("ponita_ff.data.download.time.sleep", pauses.append)
    server.behaviour.status = [503] * 8
    with pytest.raises(DownloadError, match="503"):
        download_file(FILE, tmp_path, server.url, attempts=8, backoff_s=1.0, progress=False)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_no_server_says_how_to_do_it_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(DownloadError) as caught:
        download("rmd17", "ethanol", tmp_path, url, attempts=2, backoff_s=0.0, progress=False)
    text = str(caught.value)
    assert f"{url}/rmd17_ethanol.npz" in text
    assert str(tmp_path / "rmd17_ethanol.npz") in text
    assert "refused" in text and "by hand" in text and "67201791 bytes" in text


def test_file_placed_by_hand_is_verified(server: Server, tmp_path: Path) -> None:
    (tmp_path / "md22_water.npz").write_bytes(archive(39))
    with pytest.raises(DownloadError, match="holds 39 frames, expected 40; remove the file"):
        get(server, tmp_path)
    assert names(tmp_path) == ["md22_water.npz"]
    (tmp_path / "md22_water.npz").write_bytes(CONTENT)
    get(server, tmp_path)
    assert names(tmp_path) == DONE
    assert not server.behaviour.requests


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(server, tmp_path / "file" / "folder")
    (tmp_path / "md22_water.npz.part").mkdir()
    with pytest.raises(DownloadError, match="cannot be written"):
        get(server, tmp_path)


def test_too_little_room_is_found_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("ponita_ff.data.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=f"{len(CONTENT)} bytes are needed and 10 are free"):
        get(server, tmp_path)


def test_disk_full_in_the_middle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ponita_ff.data.download.os.fsync", full)
    with pytest.raises(DownloadError, match="disk is full"):
        get(server, tmp_path)
    assert "md22_water.npz.part" in names(tmp_path)
    assert len(server.behaviour.requests) == 1, "a full disk is no reason to ask again"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: download("md17", "ethanol", d), "unknown dataset 'md17'; known: rmd17, md22"),
        (lambda d: download("rmd17", "ethan", d), "unknown molecule 'ethan'.*aspirin.*uracil"),
        (lambda d: download("rmd17", "ethanol", d, "file:///etc"), "only http"),
        (lambda d: download("rmd17", "ethanol", d, attempts=0), "at least 1"),
    ],
)
def test_bad_arguments(tmp_path: Path, call: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        call(tmp_path / "unused")
    assert not (tmp_path / "unused").exists()


def test_names_are_found_in_any_spelling() -> None:
    assert remote_file("MD22", "ac_ala3_nhme").filename == "md22_Ac-Ala3-NHMe.npz"
    assert remote_file("md22", "double walled nanotube").formula == "C326H44"
    assert remote_file("rmd17", "Salicylic acid").filename == "rmd17_salicylic.npz"
    assert len([n for n in available()["rmd17"] if "index" not in n and n != "archive"]) == 10
    assert len(available()["md22"]) == 7


def test_table_is_consistent_in_itself() -> None:
    """Sizes are those of uncompressed arrays: three of (n, 3) and three numbers per frame."""
    atoms = {"aspirin": 21, "azobenzene": 24, "benzene": 12, "ethanol": 9, "malonaldehyde": 9}
    atoms |= {"naphthalene": 18, "paracetamol": 20, "salicylic": 16, "toluene": 15, "uracil": 12}
    for name, n in atoms.items():
        file = _FILES["rmd17"][name]
        assert file.size is not None and file.n_frames is not None
        headers = file.size - file.n_frames * 8 * (9 * n + 3)
        assert 1500 < headers < 2500, name
    for files in _FILES.values():
        for file in files.values():
            assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
