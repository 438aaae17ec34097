"""Choose and order frames for expensive labels: a broad choice, and frames where the networks of ANI-2x differ.

    python choose.py --frames FOLDER --order order.txt --number 2000 [--seed 1]

Each prefix of the list is a balanced set: one frame in three is a dimer, elements take turns, and a molecule comes
again only when the frames of other molecules interest less. The interest of a frame is half the rank of its spread of
forces and half chance, so that ordinary frames occur as well; large and unusual molecules get less. A list that exists
is kept and grows at its end.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from ase.data import covalent_radii
from molecules import ODD, usable

#: Elements in turn; "any" is any molecule.
TURNS = ("any", "N", "O", "S", "any", "O", "F", "N", "any", "Cl")
ELEMENT = {7: "N", 8: "O", 9: "F", 16: "S", 17: "Cl"}
#: Wanted shares of the kinds, relative.
KINDS = {
    "md": 1.0,
    "modes": 0.7,
    "bond": 0.6,
    "min": 0.2,
    "dimer-md": 1.0,
    "dimer-scan": 1.0,
    "contact": 0.7,
    "dimer-min": 0.3,
}
#: Taken off the interest: per earlier frame of the molecule; times the rank of the cost; of an unusual molecule.
AGAIN, LARGE, UNUSUAL = 0.3, 0.25, 0.35
#: Left out, in dimers too: unlike anything that ANI-2x knows.
AVOIDED = frozenset({"[H][H]", "C1=CC=C1"})
#: eV/Å. A larger spread interests no more; a frame with a larger component of a force is left out.
LARGEST_SPREAD, LARGEST_FORCE = 0.5, 15.0


def load(folder: Path) -> dict[str, np.ndarray]:
    """Read what the choice needs of all frames without overlapping atoms or forces above ``LARGEST_FORCE``.

    Args:
        folder: Folder of the shards.

    Returns:
        Arrays over frames: ``name`` (``SHARD:ROW``), ``smiles``, ``kind``, ``energy`` (eV), ``atoms``, ``cost`` (number
        of basis functions), ``spread`` (of the networks' forces, root mean square over atoms, eV/Å), ``elements``.
    """
    found = defaultdict(list)
    for path in sorted(folder.glob("shard_????.npz")):
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        ends = np.cumsum(arrays["size"])
        for row, (end, size) in enumerate(zip(ends, arrays["size"], strict=True)):
            part = slice(end - size, end)
            numbers = arrays["numbers"][part]
            if np.abs(arrays["forces"][part]).max() > LARGEST_FORCE:
                continue
            if touching(numbers, arrays["positions"][part].astype(float)):
                continue
            found["name"].append(f"{int(path.stem[-4:])}:{row}")
            found["smiles"].append(str(arrays["smiles"][row]))
            found["kind"].append(str(arrays["kind"][row]))
            found["energy"].append(arrays["energy"][row])
            found["atoms"].append(int(size))
            found["cost"].append(sum({1: 2, 16: 19, 17: 19}.get(int(z), 15) for z in numbers))
            found["spread"].append(float(np.sqrt((arrays["force_spread"][part].astype(float) ** 2).mean())))
            found["elements"].append("".join(sorted({ELEMENT.get(int(z), "") + " " for z in numbers})))
    return {key: np.array(value) for key, value in found.items()}


def touching(numbers: np.ndarray, positions: np.ndarray) -> bool:
    """Tell whether a pair of atoms is closer than 0.6 times the sum of its covalent radii.

    Args:
        numbers: Atomic numbers, shape (n,).
        positions: Å, shape (n, 3).
    """
    i, j = np.triu_indices(len(numbers), 1)
    distance = np.linalg.norm(positions[i] - positions[j], axis=1)
    return bool((distance < 0.6 * (covalent_radii[numbers[i]] + covalent_radii[numbers[j]])).any())


def sane(data: dict[str, np.ndarray]) -> np.ndarray:
    """Return which frames may be chosen: not in ``AVOIDED``, and not far above the molecule's lowest frame.

    Args:
        data: From ``load``.

    Returns:
        Boolean, shape (frames,). The limit of the energy is 3 eV plus 0.25 eV per atom.
    """
    lowest: dict[str, float] = {}
    for smiles, energy in zip(data["smiles"], data["energy"], strict=True):
        lowest[smiles] = min(energy, lowest.get(smiles, energy))
    above = data["energy"] - np.array([lowest[smiles] for smiles in data["smiles"]])
    avoided = np.array([not AVOIDED.isdisjoint(smiles.split(".")) for smiles in data["smiles"]])
    return (above < 3.0 + 0.25 * data["atoms"]) & ~avoided


def interest(data: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the interest of each frame, shape (frames,); ranks are within monomers and within dimers.

    Args:
        data: From ``load``.
        rng: For the share of chance.
    """
    score = rng.random(len(data["name"])) * 0.5
    dimer = np.array(["." in smiles for smiles in data["smiles"]])
    for group in (dimer, ~dimer):
        spread = np.minimum(data["spread"][group], LARGEST_SPREAD)
        score[group] += 0.5 * ranks(spread) - LARGE * ranks(data["cost"][group])
    score -= UNUSUAL * np.isin(data["smiles"], list(usable(ODD, 7)))
    return score + 0.15 * rng.random(len(score)) ** (1 / np.array([KINDS[kind] for kind in data["kind"]]))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0 to 1; equal values have the same."""
    return np.searchsorted(np.sort(values), values) / max(1, len(values) - 1)


class Chooser:
    """Takes the most interesting frame left of monomers or dimers with an element.

    Args:
        data: From ``load``.
        score: Interest of each frame, shape (frames,).
    """

    def __init__(self, data: dict[str, np.ndarray], score: np.ndarray) -> None:
        self.data = data
        self.left: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for row in np.argsort(score, kind="stable")[::-1]:
            self.left["." in data["smiles"][row], data["smiles"][row]].append(int(row))
        self.score, self.times, self.kinds = score, Counter(), Counter()
        self.members: dict[tuple[bool, str], list[str]] = defaultdict(list)
        for (dimer, smiles), rows in self.left.items():
            for element in {*data["elements"][rows[0]].split(), "any"}:
                self.members[dimer, element].append(smiles)

    def value(self, row: int) -> float:
        """Return the interest of a frame, less if its molecule or its kind has been taken often."""
        kind = str(self.data["kind"][row])
        dimer = "." in self.data["smiles"][row]
        total = sum(KINDS[one] for one in KINDS if (one.startswith("dimer") or one == "contact") == dimer)
        taken = sum(n for one, n in self.kinds.items() if (one.startswith("dimer") or one == "contact") == dimer)
        excess = self.kinds[kind] / max(taken, 20) - KINDS[kind] / total
        return self.score[row] - AGAIN * self.times[str(self.data["smiles"][row])] - 2.0 * excess

    def take(self, dimer: bool, element: str) -> str | None:
        """Take a frame and return its name; None if there is none left.

        Args:
            dimer: Whether to take a dimer.
            element: Symbol of a hetero element, or "any".
        """
        rows = [row for smiles in self.members[dimer, element] for row in self.left[dimer, smiles][:6]]
        if not rows:
            return None
        return self.use(max(rows, key=self.value))

    def use(self, row: int) -> str:
        """Count a frame as taken and return its name."""
        smiles = str(self.data["smiles"][row])
        self.left["." in smiles, smiles].remove(row)
        self.times[smiles] += 1
        self.kinds[str(self.data["kind"][row])] += 1
        return str(self.data["name"][row])


def main() -> None:
    """Write the list and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="folder of the shards from frames.py")
    parser.add_argument("--order", type=Path, required=True, help="list to write or to lengthen")
    parser.add_argument("--number", type=int, default=2000, help="length of the list (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the share of chance (default: %(default)s)")
    args = parser.parse_args()
    data = load(args.frames)
    good = sane(data)
    data = {key: value[good] for key, value in data.items()}
    chooser = Chooser(data, interest(data, np.random.default_rng(args.seed)))
    order = args.order.read_text().split() if args.order.exists() else []
    rows = {name: row for row, name in enumerate(data["name"])}
    for name in order:
        if name in rows:
            chooser.use(rows[name])
    for turn in range(len(order), args.number):
        dimer, element = turn % 3 == 2, TURNS[(turn // 3 + turn % 3) % len(TURNS)]
        name = chooser.take(dimer, element) or chooser.take(dimer, "any")
        if name is not None:
            order.append(name)
    args.order.with_suffix(".part").write_text("\n".join(order) + "\n")
    args.order.with_suffix(".part").replace(args.order)
    report(data, order, rows)


def report(data: dict[str, np.ndarray], order: list[str], rows: dict[str, int]) -> None:
    """Print what the first 300, the first 1,000 and all frames of the list hold.

    Args:
        data: From ``load``.
        order: Names of frames; those that are not in the data are not counted.
        rows: Index into the data of each name.
    """
    for number in (300, 1000, len(order)):
        part = [rows[name] for name in order[:number] if name in rows]
        kinds = Counter(data["kind"][part].tolist())
        elements = Counter(element for row in part for element in data["elements"][row].split())
        print(len(part), "frames of", len(set(data["smiles"][part])), "systems;", dict(kinds), dict(elements), end="; ")
        print(f"spread {np.mean(data['spread'][part]):.3f} (all {np.mean(data['spread']):.3f}) eV/Å,", end=" ")
        print(f"basis functions {np.mean(data['cost'][part]):.0f}")


if __name__ == "__main__":
    main()
