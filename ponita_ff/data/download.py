"""Download of public datasets: interrupted transfers are resumed, and every file is verified.

A published size or hash is checked where there is one; one that is not known for certain is None. Always checked are
the length that the server announces, and that the file can be opened and holds the expected molecule and number of
frames. The SHA-256 of a verified file is recorded beside it (``<file>.sha256``) and checked at each later use.

Why not pooch (1.9): it sends no Range requests. Its ``stream_download`` writes to a temporary file that it deletes
after an error, so that a transfer of 1 GB that breaks begins again from zero. It verifies a hash that is known
beforehand, which here only part of the files have, and it would add requests as a dependency.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from ase.formula import Formula

from ponita_ff.data.frames import DataError, file_sha256
from ponita_ff.data.npz import NpzFrames
from ponita_ff.data.splits import read_index_file
from ponita_ff.progress import progress_bar
from ponita_ff.units import Units

__all__ = ["DownloadError", "RemoteFile", "available", "download", "download_file", "remote_file"]

_LOG = logging.getLogger(__name__)

_CHUNK = 1 << 18
_USER_AGENT = "ponita-ff (dataset download)"
_RETRIABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(RuntimeError):
    """A file that could not be downloaded, stored or verified; the message says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """What is known of one public file; None means not known.

    Attributes:
        dataset, name: Names by which the user selects it.
        filename: Name under which it is stored.
        url: Address of the file.
        size: Size in bytes.
        md5, sha256: Published hashes, hexadecimal; checked where given.
        n_frames: Frames in an ``.npz`` file, or lines in an index file.
        formula: Composition of the molecule, e.g. ``"C2H6O"``.
    """

    dataset: str
    name: str
    filename: str
    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    n_frames: int | None = None
    formula: str | None = None


# --- known files ---------------------------------------------------------------------------

# rMD17: figshare article 12672038 (CC0). File ids, sizes and MD5 are those figshare lists for the
# article. They were taken from public projects that agree with each other. The sizes equal those of
# 100,000 (azobenzene: 99,988) frames of uncompressed float64 arrays with headers.
_RMD17_MOLECULES: tuple[tuple[str, str, int, int, int, str], ...] = (
    # name, formula, frames, figshare file id, size in bytes, MD5
    ("aspirin", "C9H8O4", 100_000, 62265757, 153_601_803, "17fd6fb69066888613f7e16b358a7553"),
    ("azobenzene", "C12H10N2", 99_988, 62265754, 175_180_782, "be79df918468eb3579aa73a0becf7390"),
    ("benzene", "C6H6", 100_000, 62265739, 88_801_794, "18c9242bc90fbf28215f6dd81e650f16"),
    ("ethanol", "C2H6O", 100_000, 62265733, 67_201_791, "eb837fb8deb27d4e0d52f71a03aff776"),
    ("malonaldehyde", "C3H4O2", 100_000, 62265736, 67_201_791, "cdc1d70c0c34062ddde6e5071eb6fe21"),
    ("naphthalene", "C10H8", 100_000, 62265751, 132_001_800, "0efba19c9907e3852318b1e6008b3b9e"),
    ("paracetamol", "C8H9NO2", 100_000, 62265760, 146_401_802, "ba10784f7b67635427085f6d7ec2dd97"),
    ("salicylic", "C7H6O3", 100_000, 62265748, 117_601_798, "900fedf242da438400fa4293348d7dd1"),
    ("toluene", "C7H8", 100_000, 62265742, 110_401_797, "0f2913d51f8149c90ab28d697a076f64"),
    ("uracil", "C4H4N2O2", 100_000, 62265745, 88_801_794, "992a4479c28a07e0cce6da964805be31"),
)

# The official split 01 (1,000 indices each). Their hashes are not known for sure.
_RMD17_INDICES = (("index_train_01", 62265793), ("index_test_01", 62265781))

# MD22: Chmiela et al., Sci. Adv. 9, eadf0873 (2023); sizes and hashes are not published.
_MD22_MOLECULES: tuple[tuple[str, str, int], ...] = (
    # name, formula, frames
    ("Ac-Ala3-NHMe", "C12H22N4O4", 85_109),
    ("DHA", "C22H32O2", 69_753),
    ("stachyose", "C24H42O21", 27_272),
    ("AT-AT", "C20H22N14O4", 20_001),
    ("AT-AT-CG-CG", "C38H42N30O8", 10_153),
    ("buckyball-catcher", "C120H28", 6_102),
    ("double-walled_nanotube", "C326H44", 5_032),
)

_FIGSHARE = "https://ndownloader.figshare.com/files/"
_MD22 = "http://www.quantum-machine.org/gdml/repo/datasets/"

_RMD17_ARCHIVE = RemoteFile(
    dataset="rmd17",
    name="archive",
    filename="rmd17.tar.bz2",
    url=_FIGSHARE + "23950376",
    size=1_066_301_513,
    md5="cb1a927628d96f2e966025da4fb63d18",
    sha256="cddeea2ec2c4b22a9de16a9a65a3eeedac5b29da9c99c20bbff0153912bf922b",
)


def _known_files() -> dict[str, dict[str, RemoteFile]]:
    rmd17 = [
        RemoteFile(
            "rmd17",
            name,
            f"rmd17_{name}.npz",
            f"{_FIGSHARE}{file_id}",
            size=size,
            md5=md5,
            n_frames=n_frames,
            formula=formula,
        )
        for name, formula, n_frames, file_id, size, md5 in _RMD17_MOLECULES
    ]
    rmd17 += [
        RemoteFile("rmd17", name, f"{name}.csv", f"{_FIGSHARE}{file_id}", n_frames=1000)
        for name, file_id in _RMD17_INDICES
    ]
    md22 = [
        RemoteFile(
            "md22",
            name,
            f"md22_{name}.npz",
            f"{_MD22}md22_{name}.npz",
            n_frames=n_frames,
            formula=formula,
        )
        for name, formula, n_frames in _MD22_MOLECULES
    ]
    return {
        "rmd17": {file.name: file for file in (*rmd17, _RMD17_ARCHIVE)},
        "md22": {file.name: file for file in md22},
    }


_FILES: Mapping[str, Mapping[str, RemoteFile]] = _known_files()

# Both sets are documented in these units. MD22 files also state them, and the reader checks that they agree.
_NPZ_UNITS = Units("kcal/mol", "Angstrom")


def available() -> dict[str, tuple[str, ...]]:
    """Names of the files of each dataset, as `download` takes them."""
    return {dataset: tuple(files) for dataset, files in _FILES.items()}


def remote_file(dataset: str, molecule: str) -> RemoteFile:
    """The entry of a file; case and ``-``/``_``/space are ignored.

    Raises:
        DownloadError: Unknown name; the message lists the known ones.
    """
    files = _FILES.get(dataset.lower())
    if files is None:
        raise DownloadError(f"unknown dataset {dataset!r}; known: {', '.join(_FILES)}")
    by_key = {_name_key(name): file for name, file in files.items()}
    file = by_key.get(_name_key(molecule).removesuffix("acid"))
    if file is None:
        raise DownloadError(f"unknown molecule {molecule!r} of {dataset}; known: {', '.join(files)}")
    return file


def _name_key(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


# --- download ------------------------------------------------------------------------------


def download(
    dataset: str,
    molecule: str,
    directory: str | Path,
    base_url: str | None = None,
    *,
    progress: bool = True,
    attempts: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Download one file of a public dataset, or verify the one that is already there.

    Args:
        dataset, molecule: See `available`.
        directory: Folder for the file; created if missing.
        base_url: A mirror: the file is downloaded from ``<base_url>/<filename>`` instead of its usual address.
        progress: Show a progress bar (never shown if stderr is not a terminal).
        attempts: Largest number of attempts; bytes received are kept, and the transfer is resumed.
        backoff_s: Pause before the second attempt in s; doubled for each further one, up to 30 s.
        timeout_s: Timeout in s while the server sends nothing.

    Returns:
        The verified file.

    Raises:
        DownloadError: Unknown name; no connection (the message says how to place the file by hand); a folder that
            cannot be written or is full; a file that is not the expected one.
    """
    return download_file(
        remote_file(dataset, molecule),
        directory,
        base_url,
        progress=progress,
        attempts=attempts,
        backoff_s=backoff_s,
        timeout_s=timeout_s,
    )


def download_file(
    file: RemoteFile,
    directory: str | Path,
    base_url: str | None = None,
    *,
    progress: bool = True,
    attempts: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Download any `RemoteFile`; arguments and errors as for `download`."""
    if attempts < 1:
        raise DownloadError(f"attempts is {attempts}, expected at least 1")
    url = file.url if base_url is None else f"{base_url.rstrip('/')}/{quote(file.filename)}"
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses are supported")
    directory = Path(directory)
    target = directory / file.filename
    with _local_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if target.exists():
        verify(target, file)
        _LOG.info("%s is already there and verified", target)
        return target
    transfer = _Transfer(file, url, target, timeout_s, progress)
    _retry(transfer.fetch_remaining, attempts, backoff_s, lambda error: _manual_instructions(file, url, target, error))
    part = transfer.part
    try:
        verify(part, file)
    except DownloadError:
        # It is not known which bytes are wrong, so that resuming could never repair the file.
        transfer.discard()
        raise
    with _local_errors(target):
        part.replace(target)
    transfer.remove_state()
    _record_hash(target)
    return target


def _manual_instructions(file: RemoteFile, url: str, target: Path, error: Exception) -> DownloadError:
    return DownloadError(
        f"{url} could not be downloaded: {error}\n"
        f"Without a network, download it on another machine and copy it by hand:\n"
        f"  from  {url}\n"
        f"  to    {target.absolute()}\n"
        f"then run the same command again; it will verify the file ({_known_properties(file)})."
    )


def _known_properties(file: RemoteFile) -> str:
    known = []
    if file.size is not None:
        known.append(f"{file.size} bytes")
    known += [f"{k} {v}" for k in ("sha256", "md5") if (v := getattr(file, k)) is not None]
    if file.n_frames is not None:
        known.append(f"{file.n_frames} frames" + (f" of {file.formula}" if file.formula else ""))
    return ", ".join(known) or "contents"


def _retry(
    action: Callable[[], None],
    attempts: int,
    backoff_s: float,
    give_up: Callable[[Exception], DownloadError],
) -> None:
    for number in range(1, attempts + 1):
        try:
            action()
            return
        except _TransientError as error:
            if number == attempts:
                raise give_up(error) from error
            pause = min(backoff_s * 2 ** (number - 1), 30.0)
            _LOG.warning("%s; attempt %d of %d in %.0f s", error, number + 1, attempts, pause)
            time.sleep(pause)
        except _FinalError as error:
            raise give_up(error) from error


# --- one transfer --------------------------------------------------------------------------


class _TransientError(Exception):
    """An error that another attempt may not meet."""


class _FinalError(Exception):
    """An error that every attempt would meet."""


class _Transfer:
    """A partial file and the state that resuming it needs.

    ``<file>.part`` holds the bytes, ``<file>.part.json`` the address, total size and validator (ETag or date) that
    came with them. Bytes are appended only if the server confirms by that validator that the file is still the same
    version (RFC 9110, sections 13.1.5 and 14).
    """

    def __init__(self, file: RemoteFile, url: str, target: Path, timeout_s: float, progress: bool) -> None:
        self.file, self.url, self.timeout_s, self.progress = file, url, timeout_s, progress
        self.part = target.with_name(target.name + ".part")
        self._state_path = target.with_name(target.name + ".part.json")

    def discard(self) -> None:
        """Remove the partial file and its state."""
        self.part.unlink(missing_ok=True)
        self.remove_state()

    def remove_state(self) -> None:
        """Remove the saved state."""
        self._state_path.unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        usable = isinstance(state, dict) and state.get("url") == self.url
        return state if usable and state.get("validator") and self.part.exists() else {}

    def fetch_remaining(self) -> None:
        """Download the missing bytes, or all of them if the transfer cannot be resumed.

        Raises:
            _TransientError, _FinalError: An error of the network or the server.
            DownloadError: The folder cannot be written.
        """
        state = self._state()
        if state and self.part.stat().st_size == state.get("total"):
            return
        begin = self.part.stat().st_size if state else 0
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        if begin:
            headers |= {"Range": f"bytes={begin}-", "If-Range": str(state["validator"])}
        try:
            # A new opener reads the current proxy settings; urlopen keeps those of the first call.
            opener = urllib.request.build_opener()
            request = urllib.request.Request(self.url, headers=headers)
            with opener.open(request, timeout=self.timeout_s) as response:
                self._receive(response, begin, state)
        except urllib.error.HTTPError as error:
            self._raise_http_error(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _TransientError(f"{type(reason).__name__}: {reason}") from error

    def _raise_http_error(self, error: urllib.error.HTTPError) -> None:
        error.close()
        text = f"the server answers {error.code} {error.reason}"
        if error.code == 416:  # the file on the server is now shorter than the partial file
            self.discard()
            raise _TransientError(text) from error
        if error.code in _RETRIABLE_STATUS:
            raise _TransientError(text) from error
        raise _FinalError(text) from error

    def _receive(self, response: http.client.HTTPResponse, begin: int, state: dict[str, Any]) -> None:
        length = response.headers.get("Content-Length")
        expected = int(length) if length is not None and length.isdigit() else None
        total: int | None
        if response.status == 206:
            total = self._check_continuation(response, begin, state)
        elif response.status == 200:
            # No support for Range, or the file changed: the server sends it from the beginning.
            begin, total = 0, expected
        else:
            raise _TransientError(f"the server answers {response.status} {response.reason}")
        if self.file.size is not None and total is not None and total != self.file.size:
            self.discard()
            raise _FinalError(f"the file on the server has {total} bytes, expected {self.file.size}")
        if begin == 0:
            self._begin_part(response, total)
        received = self._write(response, begin, total)
        if expected is not None and received != expected:
            raise _TransientError(f"the connection ended after {received} of {expected} bytes")
        if total is not None and begin + received != total:
            raise _TransientError(f"{begin + received} of {total} bytes have arrived")

    def _check_continuation(self, response: http.client.HTTPResponse, begin: int, state: dict[str, Any]) -> int:
        """The total size, after a check that a response 206 continues the partial file."""
        text = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", text.strip())
        validator = _validator(response)
        same = validator is None or validator == state.get("validator")
        if match is None or int(match[1]) != begin or int(match[2]) != state.get("total") or not same:
            self.discard()
            raise _TransientError("the file changed on the server; starting again")
        return int(match[2])

    def _begin_part(self, response: http.client.HTTPResponse, total: int | None) -> None:
        state = {"url": self.url, "total": total, "validator": _validator(response)}
        with _local_errors(self.part):
            # The data first: after a crash in between, the empty file starts again at byte 0, whatever the state says.
            self.part.write_bytes(b"")
            self._state_path.write_text(json.dumps(state), encoding="utf-8")
            free = shutil.disk_usage(self.part.parent).free
        if total is not None and free < total:
            raise DownloadError(f"{self.part.parent}: {total} bytes are needed and {free} are free")

    def _write(self, response: http.client.HTTPResponse, begin: int, total: int | None) -> int:
        received = 0
        with _local_errors(self.part):
            handle: IO[bytes] = self.part.open("ab")
        bar = progress_bar(
            self.progress,
            total=total,
            initial=begin,
            unit="B",
            unit_scale=True,
            desc=self.file.filename,
        )
        with handle, bar:
            while chunk := response.read(_CHUNK):
                with _local_errors(self.part):
                    handle.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
            with _local_errors(self.part):
                handle.flush()
                os.fsync(handle.fileno())
        return received


def _validator(response: http.client.HTTPResponse) -> str | None:
    """A value for ``If-Range``: a strong ETag, or the date of the last change."""
    etag = response.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


@contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    """Turn errors of local files into `DownloadError`; errors of the network are handled elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{path.parent}: the disk is full. Free some space and run the command again; the bytes received so "
                "far are kept"
            ) from error
        raise DownloadError(f"{path}: cannot be written: {error}") from error


# --- verification --------------------------------------------------------------------------


def verify(path: Path, file: RemoteFile) -> None:
    """Check a file against everything that is known of it.

    A file under its final name is also compared with the SHA-256 recorded beside it. If none is recorded (a file
    placed by hand), it is recorded now.

    Raises:
        DownloadError: Size, hash, molecule or number of frames is not the expected one, or the file cannot be opened.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise DownloadError(f"{path}: has {size} bytes, expected {file.size}; {_remedy(path)}")
    record = path.with_name(path.name + ".sha256")
    known = {"sha256": file.sha256, "md5": file.md5}
    if record.exists():
        known["recorded sha256"] = record.read_text(encoding="utf-8").split(" ")[0].strip()
    for name, expected in known.items():
        if expected is None:
            continue
        found = _digest(path, name.rpartition(" ")[2])
        if found != expected.lower():
            raise DownloadError(f"{path}: {name} is {found}, expected {expected}; {_remedy(path)}")
    try:
        _check_structure(path, file)
    except DataError as error:
        raise DownloadError(f"{error}; {_remedy(path)}") from error
    if path.name == file.filename and not record.exists():
        _record_hash(path)


def _remedy(path: Path) -> str:
    if path.suffix == ".part":
        return "it was discarded; run the command again, or report the address if this persists"
    return "remove the file (and the .sha256 beside it) and run the command again"


def _digest(path: Path, algorithm: str) -> str:
    if algorithm == "sha256":
        return file_sha256(path)
    with path.open("rb") as handle:
        # Not for security: the archive publishes MD5 only.
        return hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _record_hash(path: Path) -> None:
    """Write the hash in the format of ``sha256sum --check``."""
    record = path.with_name(path.name + ".sha256")
    with _local_errors(record):
        record.write_text(f"{file_sha256(path)}  {path.name}\n", encoding="utf-8")


def _check_structure(path: Path, file: RemoteFile) -> None:
    if file.filename.endswith(".csv"):
        _check_count(path, len(read_index_file(path)), file, "lines")
    elif file.filename.endswith(".npz"):
        frames = NpzFrames(path, units=_NPZ_UNITS)
        _check_count(path, len(frames), file, "frames")
        found = frames[0].to_atoms().get_chemical_formula("hill")
        if file.formula is not None and Formula(found).count() != Formula(file.formula).count():
            raise DataError(f"{path}: holds {found}, expected {file.formula}")


def _check_count(path: Path, found: int, file: RemoteFile, what: str) -> None:
    if found == 0 or (file.n_frames is not None and found != file.n_frames):
        raise DataError(f"{path}: holds {found} {what}, expected {file.n_frames or 'some'}")
