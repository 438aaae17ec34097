"""Write the training data of the general potential: teacher's labels and DFT labels, as HDF5 files.

    python dataset.py --shards frames teacher --labels labels.npz --tests tests --out data [--spread 0.5]

Needs ponita_ff and RDKit. Files in the folder:

- ``teacher.h5``: frames of the shards, labelled by ANI-2x
- ``teacher_validation.h5``: those of scaffolds that are not trained on, to make choices with
- ``dft.h5``, ``dft_validation.h5``: the same for the labels by PySCF
- ``tests.h5``: frames of scaffolds that are held out for tests, which ``frames.py`` leaves out of all others
- ``molecules.smi``: the SMILES of every molecule and dimer in all of these with its number of frames

Frames of the shards on which ANI-2x's networks disagree are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from molecules import bucket
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from ponita_ff.data import Frame, file_sha256, write_hdf5

#: Buckets of scaffolds: those below the first are held out for tests, those up to the second validate.
TESTS, VALIDATION = 5, 7


@cache
def validates(smiles: str) -> bool:
    """Tell whether the frames of a molecule, or of a dimer ``A.B`` with it, are kept for validation."""
    return any(_validates(part) for part in smiles.split("."))


@cache
def _validates(smiles: str) -> bool:
    mol = Chem.MolFromSmiles(smiles)
    scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=mol) or Chem.MolToSmiles(mol, isomericSmiles=False)
    return TESTS <= bucket(scaffold) < VALIDATION


def name_of(path: Path) -> str:
    """Return the name of a file with its folder's: shards of all plans have the same names."""
    return f"{path.absolute().parent.name}/{path.name}"


def frames_of(path: Path, chosen: Callable[[str], bool], largest: float) -> Iterator[Frame]:
    """Yield the frames of a shard, or of packed labels.

    Args:
        path: The file.
        chosen: Tells by SMILES whether a frame is wanted.
        largest: Frames of a shard with a larger spread of the forces of an atom are left out, eV/Å.
    """
    with np.load(path) as file:
        data = {key: file[key] for key in file.files}
    ends = np.cumsum(data["size"].astype(int))
    for row, (end, size) in enumerate(zip(ends, data["size"].astype(int), strict=True)):
        atoms = slice(end - size, end)
        if not chosen(str(data["smiles"][row])):
            continue
        if "force_spread" in data and data["force_spread"][atoms].max() > largest:
            continue
        yield Frame(
            numbers=data["numbers"][atoms].astype(np.int64),
            # The exact values: they were rounded to four decimals before the labels were calculated.
            positions=np.round(data["positions"][atoms].astype(np.float64), 4),
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            energy=float(data["energy"][row]),
            forces=data["forces"][atoms].astype(np.float64),
            source=f"{name_of(path)}, frame {row}",
        )


def count_molecules(files: list[Path]) -> Counter[str]:
    """Return the number of frames of each molecule and dimer."""
    found: Counter[str] = Counter()
    for path in files:
        with np.load(path) as file:
            found.update(file["smiles"].tolist())
    return found


def write(path: Path, files: list[Path], chosen: Callable[[str], bool], largest: float, method: str) -> None:
    """Write one of the files and say how many frames it has."""
    origin = {"method": method, "files": {name_of(file): file_sha256(file) for file in files}, "spread": largest}
    frames = (frame for file in files for frame in frames_of(file, chosen, largest))
    print(path, write_hdf5(path, frames, origin), "frames", flush=True)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="folders of frames.py")
    parser.add_argument("--labels", type=Path, help="packed labels of pack.py")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], help="folders of frames.py --plan tests")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--spread", type=float, default=0.5, help="eV/Å, see above (default: %(default)s)")
    args = parser.parse_args()
    shards = [file for folder in args.shards for file in sorted(folder.glob("shard_????.npz"))]
    sources = [("teacher", shards, "ANI-2x"), ("dft", [args.labels] if args.labels else [], "wB97X/6-31G(d)")]
    for name, files, method in sources:
        if files:
            write(args.out / f"{name}.h5", files, lambda smiles: not validates(smiles), args.spread, method)
            write(args.out / f"{name}_validation.h5", files, validates, args.spread, method)
    if tests := [file for folder in args.tests for file in sorted(folder.glob("shard_????.npz"))]:
        write(args.out / "tests.h5", tests, lambda smiles: True, args.spread, "ANI-2x")
    counts = count_molecules(shards + ([args.labels] if args.labels else []) + tests)
    (args.out / "molecules.smi").write_text("".join(f"{smiles} {counts[smiles]}\n" for smiles in sorted(counts)))


if __name__ == "__main__":
    main()
