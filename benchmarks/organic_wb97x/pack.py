"""Pack a journal of labels into one small file.

    python pack.py --journal labels.jsonl --out labels.npz [--add earlier.npz]

Failed frames are left out. Arrays over the atoms of all frames, one frame after the other (``size`` atoms each):

- ``numbers`` (uint8)
- ``positions``: Å (float32; round to four decimals for the exact values)
- ``forces``: eV/Å (float32)

Arrays over frames, in the order of the journal:

- ``size``: atoms (uint8)
- ``energy``: total energy, eV (float64)
- ``smiles``, ``kind``, ``frame``: SMILES string (``A.B`` for a dimer), kind of frame, name ``SHARD:ROW``
- ``ani_energy``, ``ani_energy_spread``: mean and standard deviation of the energies of ANI-2x's networks, eV (float64)
- ``ani_force_spread``: root mean square over atoms of the spread of their forces, eV/Å (float32)
- ``ani_force_error``: mean absolute error of the components of ANI-2x's mean forces, eV/Å (float32)
- ``seconds``: time of the label, s (float32)

``method`` and ``pyscf`` list the levels of theory and versions that occur. ``sha256`` is the hash of the hashes of the
journal's lines; with ``--add``, of that of the earlier file and that of the journal.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from label import entries

PER_FRAME = ("energy", "ani_energy", "ani_energy_spread", "ani_force_spread", "ani_force_error", "seconds")


def packed(found: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays of labels that succeeded, in the order given.

    Args:
        found: Entries of the journal without ``failed``.
    """
    arrays = {
        "size": np.array([len(entry["numbers"]) for entry in found], np.uint8),
        "numbers": np.concatenate([entry["numbers"] for entry in found]).astype(np.uint8),
        "positions": np.concatenate([entry["positions"] for entry in found]).astype(np.float32),
        "forces": np.concatenate([entry["forces"] for entry in found]).astype(np.float32),
    }
    for key in PER_FRAME:
        arrays[key] = np.array([entry[key] for entry in found], np.float64 if "energy" in key else np.float32)
    for key in ("smiles", "kind", "frame"):
        arrays[key] = np.array([entry[key] for entry in found])
    for key in ("method", "pyscf"):
        arrays[key] = np.array(sorted({entry[key] for entry in found}))
    lines = "".join(entry["sha256"] for entry in found)
    return {**arrays, "sha256": np.array(hashlib.sha256(lines.encode()).hexdigest())}


def joined(earlier: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the labels of an earlier file, then new ones but for those of frames that it holds."""
    known = set(earlier["frame"].tolist())
    new = np.array([name not in known for name in arrays["frame"].tolist()], dtype=bool)
    of_atom = np.repeat(new, arrays["size"])
    result = {}
    for key, values in earlier.items():
        if key in ("method", "pyscf"):
            result[key] = np.unique(np.concatenate([values, arrays[key]]))
        elif key == "sha256":
            result[key] = np.array(hashlib.sha256(f"{values}{arrays[key]}".encode()).hexdigest())
        else:
            rows = of_atom if key in ("numbers", "positions", "forces") else new
            result[key] = np.concatenate([values, arrays[key][rows]])
    return result


def report(arrays: dict[str, np.ndarray], failed: int, size: int) -> None:
    """Print what the file holds.

    Args:
        arrays: From ``packed``.
        failed: Number of frames left out.
        size: Of the file, bytes.
    """
    systems = len(set(arrays["smiles"].tolist()))
    print(len(arrays["size"]), "labels of", systems, "systems;", failed, "failed;", end=" ")
    print(f"{size / 1e3:.0f} kB; {arrays['seconds'].mean():.1f} s a label;", end=" ")
    dimer = np.char.find(arrays["smiles"], ".") >= 0
    for name, rows in (("monomers", ~dimer), ("dimers", dimer)):
        if rows.any():
            error = 1000 * np.median(arrays["ani_force_error"][rows])
            print(f"{name}: {rows.sum()}, ANI-2x off by {error:.0f} meV/Å (median);", end=" ")
    print(dict(Counter(arrays["kind"].tolist())))


def main() -> None:
    """Write the file and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, required=True, help="labels from label.py (read)")
    parser.add_argument("--out", type=Path, required=True, help="packed file (.npz, replaced)")
    parser.add_argument("--add", type=Path, help="packed file whose labels come first")
    args = parser.parse_args()
    everything = entries(args.journal)
    found = [entry for entry in everything if "failed" not in entry]
    arrays = packed(found)
    if args.add is not None:
        with np.load(args.add) as file:
            arrays = joined({key: file[key] for key in file.files}, arrays)
    part = args.out.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(args.out)
    report(arrays, len(everything) - len(found), args.out.stat().st_size)


if __name__ == "__main__":
    main()
