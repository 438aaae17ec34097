"""Where commands write: no file of somebody else and no input is overwritten, no folder is used by two runs at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ponita_ff.locks import Lock

__all__ = ["MARK_FILE", "OutputError", "check_outputs", "claim_folder", "is_claimed"]

#: In every folder that a command makes or fills: the names of the files that are the program's, and the lock.
MARK_FILE = ".ponita_ff"


class OutputError(ValueError):
    """A file that must not be overwritten; the message names it."""


def check_outputs(
    paths: Iterable[Path],
    inputs: Iterable[str | Path | None] = (),
    force: bool = False,
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Refuse to overwrite inputs, and files that this program did not write.

    Args:
        paths: Files that will be written.
        inputs: Files that the command reads; what is no file (None, the name of a molecule) is left out.
        force: Overwrite files of others, but never an input or a folder.
        is_ours: Whether an existing file, outside a folder that the program made, was written by this program.

    Raises:
        OutputError: Naming the file.
    """
    sources = [Path(source) for source in inputs if source is not None and Path(source).is_file()]
    for path in paths:
        if not path.exists():
            continue
        if path.is_dir():
            raise OutputError(f"{path} is a folder, where a file is to be written: give another --out")
        if any(path.samefile(source) for source in sources):
            raise OutputError(f"{path} is an input of this command and would be overwritten: give another --out")
        if not (force or is_claimed(path) or (is_ours is not None and is_ours(path))):
            raise OutputError(
                f"{path} exists, and this program did not write it: give another --out, move the file away, or give "
                "--force to overwrite it"
            )


def is_claimed(path: Path) -> bool:
    """Whether a file is one of those that the program wrote, or was about to write, in a folder of its own."""
    return path.name in _claimed(path.parent)


def _claimed(folder: Path) -> set[str]:
    try:
        return set(map(str, json.loads((folder / MARK_FILE).read_bytes())["files"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


@contextmanager
def claim_folder(folder: Path, names: Iterable[str] = ()) -> Iterator[Lock]:
    """Lock a folder, and note that files of these names in it are the program's.

    Args:
        folder: Created if missing.
        names: Names of files.

    Yields:
        The lock; its ``check`` finds out whether the folder was deleted meanwhile.

    Raises:
        LockedError: If another run is using the folder; the message names its process.
        OSError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write into the folder {folder}: {error.strerror}") from None
    files = _claimed(folder)  # before the lock rewrites the file
    with Lock(folder / MARK_FILE, f"the folder {folder}", keep=True) as lock:
        lock.update({"files": sorted(files | set(names))})
        yield lock
