"""Label frames with PySCF, in the order of a list, into a journal.

    python label.py --frames FOLDER --order order.txt --journal labels.jsonl [--pid label.pid]

A line of the list is ``SHARD:ROW``. The list is read again before each frame, so it may grow while this runs. A line of
the journal is a JSON object; its ``sha256`` is the hash of the object without it (keys sorted, no blanks). Each line is
on the disc before the next frame begins. A run that was stopped goes on when it is started again: frames in the
journal, failed ones too, are skipped, and a line that was cut short is ignored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import kohn_sham
import numpy as np
import pyscf


def line_of(entry: dict[str, Any]) -> str:
    """Return the journal's line of an entry, with its hash."""
    return json.dumps({**entry, "sha256": digest(entry)}, sort_keys=True, separators=(",", ":")) + "\n"


def digest(entry: dict[str, Any]) -> str:
    """Return the SHA-256 of an entry without its ``sha256``."""
    bare = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def entries(journal: Path) -> list[dict[str, Any]]:
    """Return the entries of a journal that are whole and have the right hash; none if there is no file."""
    found = []
    for line in journal.read_text().splitlines() if journal.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("sha256") == digest(entry):
            found.append(entry)
    return found


@cache
def shard(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a shard, and as ``start`` the first atom of each frame."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays["start"] = np.concatenate([[0], np.cumsum(arrays["size"])])
    return arrays


def frame(folder: Path, name: str) -> dict[str, Any]:
    """Return a frame as an entry without labels.

    Args:
        folder: Folder of the shards.
        name: ``SHARD:ROW``.

    Returns:
        Numbers, positions (Å) and the values of ANI-2x (eV, eV/Å). ``ani_force_error`` holds ANI-2x's forces, shape
        (n, 3), until ``labelled`` replaces them by their error.
    """
    number, row = map(int, name.split(":"))
    arrays = shard(folder / f"shard_{number:04d}.npz")
    part = slice(arrays["start"][row], arrays["start"][row + 1])
    return {
        "frame": name,
        "smiles": str(arrays["smiles"][row]),
        "kind": str(arrays["kind"][row]),
        "numbers": arrays["numbers"][part].tolist(),
        "positions": np.round(arrays["positions"][part].astype(float), 4).tolist(),
        "ani_energy": float(arrays["energy"][row]),
        "ani_energy_spread": round(float(arrays["energy_spread"][row]), 6),
        "ani_force_spread": round(float(np.sqrt(np.mean(arrays["force_spread"][part].astype(float) ** 2))), 6),
        "ani_force_error": arrays["forces"][part].astype(float),
    }


def labelled(entry: dict[str, Any]) -> dict[str, Any]:
    """Label an entry from ``frame``.

    Returns:
        The entry with ``energy`` (eV) and ``forces`` (eV/Å, six decimals), or with the reason as ``failed``; with the
        time (s), the level of theory and PySCF's version.
    """
    start, teacher = time.time(), entry.pop("ani_force_error")
    try:
        energy, forces = kohn_sham.label(np.array(entry["numbers"]), np.array(entry["positions"]))
        entry.update(energy=energy, forces=np.round(forces, 6).tolist())
        entry["ani_force_error"] = round(float(np.abs(forces - teacher).mean()), 6)
    except Exception as error:  # one bad frame must not stop the others
        entry["failed"] = f"{type(error).__name__}: {error}"
    return {**entry, "seconds": round(time.time() - start, 2), "pyscf": pyscf.__version__, "method": kohn_sham.METHOD}


def append(journal: Path, entry: dict[str, Any]) -> None:
    """Append one line, which is on the disc when this returns."""
    with journal.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line cut short
                file.write(b"\n")
        file.write(line_of(entry).encode())
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Label the frames of the list that the journal lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="folder of the shards from frames.py")
    parser.add_argument("--order", type=Path, required=True, help="list of frames from choose.py")
    parser.add_argument("--journal", type=Path, required=True, help="file of the labels (.jsonl, appended to)")
    parser.add_argument("--pid", type=Path, help="file to write the process id to")
    args = parser.parse_args()
    if args.pid:
        args.pid.write_text(f"{os.getpid()}\n")
    done = {entry["frame"] for entry in entries(args.journal)}
    while True:
        todo = next((name for name in args.order.read_text().split() if name not in done), None)
        if todo is None:
            break
        entry = labelled(frame(args.frames, todo))
        append(args.journal, entry)
        done.add(todo)
        result = entry.get("failed") or f"{1000 * entry['ani_force_error']:.0f} meV/Å from ANI-2x"
        print(len(done), todo, entry["smiles"], entry["kind"], f"{entry['seconds']:.1f} s,", result, flush=True)


if __name__ == "__main__":
    main()
