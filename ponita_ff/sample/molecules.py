"""The molecules of a run: read from SMILES and structure files, judged, and held out for tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from ponita_ff.files import exists, why_not_a_file
from ponita_ff.labels.methods import LabelError, Method
from ponita_ff.labels.structures import read_structures
from ponita_ff.sample.methods import method_of
from ponita_ff.sample.settings import HoldOutSettings, MoleculeSettings, SampleError
from ponita_ff.settings import shown

__all__ = ["HoldOut", "Molecule", "Skipped", "in_order", "read_molecules", "scaffold_bucket", "usable"]

_SMILES_FILES = (".smi", ".smiles")
_BLOCK = re.compile(r"[A-Z]{14}(-[A-Z]{10}-[A-Z])?")
_INSTALL = "RDKit, which is not installed: pip install 'ponita-ff[sample]' (or pip install rdkit)"


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule, or a crystal, that frames start from.

    Attributes:
        source: Where it is from, e.g. ``"molecules.smi, line 7"``.
        numbers: Atomic numbers, of the structure or with the hydrogen atoms that a SMILES string leaves out.
        charge: In elementary charges.
        multiplicity: 2S + 1.
        smiles: Canonical SMILES; None for a structure that has none.
        structure: Geometry; None for a molecule that is to be embedded.
    """

    source: str
    numbers: tuple[int, ...]
    charge: int
    multiplicity: int
    smiles: str | None = None
    structure: Atoms | None = None

    @property
    def key(self) -> str:
        """SHA-256 of what its frames depend on, besides settings: not of its source."""
        digest = hashlib.sha256(f"{self.charge} {self.multiplicity} {self.smiles}\n".encode())
        if self.structure is not None:
            atoms = self.structure
            digest.update(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.astype("<i8").tobytes())
            for values in (atoms.positions, atoms.cell.array):
                digest.update((values + 0.0).astype("<f8").tobytes())  # −0 is 0
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """SMILES, or else the source."""
        return self.smiles or self.source

    @property
    def heavy_atoms(self) -> int:
        """Number of atoms other than hydrogen."""
        return sum(number > 1 for number in self.numbers)

    def atoms(self) -> Atoms:
        """Its atoms; all at the origin if it is to be embedded."""
        return Atoms(self.numbers) if self.structure is None else self.structure.copy()


@dataclass(frozen=True)
class Skipped:
    """Something of the input that is not used, and why."""

    source: str
    name: str
    reason: str


class _Unusable(ValueError):
    """Why a molecule is not used."""


# --------------------------------------------------------------------------------------------------- reading


def read_molecules(inputs: Iterable[str | Path | Atoms]) -> tuple[list[tuple[Molecule, ...]], list[Skipped]]:
    """Read molecules.

    Args:
        inputs: Files of SMILES (``.smi``: one a line, what follows a blank is a name; ``A.B`` is a cluster), files of
            structures that ASE reads, SMILES strings, or ASE's atoms.

    Returns:
        Each molecule alone in a tuple, and the molecules of a cluster together; without duplicates, in the order of the
        input. What was left out: SMILES that RDKit cannot parse, and duplicates.

    Raises:
        SampleError: A file that cannot be read; a text that is neither a file nor SMILES; SMILES without RDKit.
        LabelError, DataError: A structure that cannot be read.
    """
    found: dict[tuple[str, ...], tuple[Molecule, ...]] = {}
    skipped: list[Skipped] = []
    for one in _entries(inputs):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        key = tuple(molecule.key for molecule in one)
        first = found.setdefault(key, one)
        if first is not one:
            skipped.append(Skipped(one[0].source, _name(one), f"the same as {first[0].source}"))
    return list(found.values()), skipped


def _name(molecules: Sequence[Molecule]) -> str:
    return ".".join(molecule.name for molecule in molecules)


def _entries(inputs: Iterable[str | Path | Atoms]) -> Iterator[tuple[Molecule, ...] | Skipped]:
    for number, given in enumerate(inputs):
        if isinstance(given, Atoms):
            yield (_of_structure(read_structures([given])[1][0], f"structure {number}"),)
        elif not exists(Path(given)):
            yield _given_smiles(str(given))
        elif Path(given).suffix.lower() in _SMILES_FILES:
            yield from _smiles_file(Path(given))
        else:
            prefix, structures = read_structures(Path(given))
            for frame, atoms in enumerate(structures):
                yield (_of_structure(atoms, f"{prefix}frame {frame}"),)


def _given_smiles(text: str) -> tuple[Molecule, ...]:
    if text.lower().endswith(_SMILES_FILES):
        raise SampleError(f"{text:.300}: there is no such file")
    try:
        return _of_smiles(text, "SMILES given")
    except _Unusable as error:
        raise SampleError(f"{text:.300} is neither a file nor SMILES: {error}") from None


def _smiles_file(path: Path) -> Iterator[tuple[Molecule, ...] | Skipped]:
    for number, text in _lines(path):
        source = f"{path.name}, line {number}"
        if number == 1 and text.split()[0].lower() == "smiles":  # names of columns
            continue
        try:
            yield _of_smiles(text.split()[0], source)
        except _Unusable as error:
            yield Skipped(source, text.split()[0], str(error))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without empty ones and comments."""
    problem = why_not_a_file(path)
    if problem is not None:
        raise SampleError(f"{path}: {problem}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and not line.startswith("#"):
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise SampleError(f"{path}: not a text file (UTF-8) with SMILES, one a line") from None
    except OSError as error:
        raise SampleError(f"cannot read {path}: {error.strerror}") from None


def _of_smiles(text: str, source: str) -> tuple[Molecule, ...]:
    chem = _rdkit("SMILES need")
    mol = _parsed(text)
    if mol is None:
        raise _Unusable("RDKit cannot parse it")
    parts = [
        Molecule(
            source,
            tuple(atom.GetAtomicNum() for atom in chem.AddHs(part).GetAtoms()),
            chem.GetFormalCharge(part),
            1 + sum(atom.GetNumRadicalElectrons() for atom in part.GetAtoms()),
            _plain_smiles(part),
        )
        for part in chem.GetMolFrags(mol, asMols=True)
    ]
    return in_order(parts)


def in_order(molecules: Iterable[Molecule]) -> tuple[Molecule, ...]:
    """The molecules of a cluster in an order that does not depend on how it was written."""
    return tuple(sorted(molecules, key=lambda molecule: (molecule.smiles or "", molecule.key)))


def _plain_smiles(mol: Any) -> str:
    """Canonical SMILES; where possible without backslashes, which not every reader of extended XYZ keeps."""
    chem = _rdkit("SMILES need")
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    canonical: str = chem.MolToSmiles(mol)
    if "\\" not in canonical:
        return canonical
    others = chem.MolToRandomSmilesVect(chem.MolFromSmiles(canonical), 200, randomSeed=1)
    return min((text for text in others if "\\" not in text), default=canonical)


def _of_structure(atoms: Atoms, source: str) -> Molecule:
    """A structure; its comments ``charge``, ``multiplicity`` and ``smiles`` count.

    Raises:
        SampleError: Comments that cannot be so.
    """
    charge, smiles = atoms.info.get("charge", 0), atoms.info.get("smiles")
    electrons = int(atoms.numbers.sum()) - (int(charge) if _is_whole(charge) else 0)
    # The electrons of a crystal's cell do not tell: those of metals are not paired one by one.
    multiplicity = atoms.info.get("multiplicity", 1 if atoms.pbc.any() else 1 + electrons % 2)
    if not (_is_whole(charge) and _is_whole(multiplicity) and multiplicity >= 1):
        raise SampleError(f"{source}: charge={charge!r} and multiplicity={multiplicity!r}: expected whole numbers")
    return Molecule(
        source,
        tuple(atoms.numbers.tolist()),
        int(charge),
        int(multiplicity),
        smiles if isinstance(smiles, str) else None,
        Atoms(atoms.numbers, atoms.positions, cell=atoms.cell if atoms.pbc.any() else None, pbc=atoms.pbc),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and float(value).is_integer()


def _parsed(smiles: str) -> Any:
    """RDKit's molecule; None if it cannot be parsed. RDKit prints nothing."""
    chem = _rdkit("SMILES need")
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        mol = chem.MolFromSmiles(smiles)
    return mol if mol is not None and mol.GetNumAtoms() else None


def _rdkit(what: str) -> Any:
    if find_spec("rdkit") is None:
        raise SampleError(f"{what} {_INSTALL}")
    from rdkit import Chem

    return Chem


# -------------------------------------------------------------------------------------------------- judging


def usable(
    entries: Sequence[tuple[Molecule, ...]], settings: MoleculeSettings, hold_out: HoldOut, method: Method
) -> tuple[list[tuple[Molecule, ...]], list[Skipped]]:
    """The molecules and clusters that may be used, and the others with the reason.

    Args:
        entries: From `read_molecules`.
        settings: Which molecules are used.
        hold_out: Which ones are held out.
        method: It must be able to calculate them.

    Raises:
        SampleError: Symbols that are no elements.
        LabelError: The method's program is not installed, or the method itself is wrong.
    """
    unknown = [symbol for symbol in settings.elements or () if symbol not in atomic_numbers or symbol == "X"]
    if unknown:
        raise SampleError(f"molecules.elements: {unknown[0]!r} is no symbol of an element, e.g. C")
    method.check([])
    found, skipped = [], []
    for molecules in entries:
        try:
            for molecule in molecules:
                _check(molecule, settings, hold_out, method)
            if len(molecules) > 1:
                _check_cluster(molecules, hold_out)
            found.append(molecules)
        except (_Unusable, LabelError) as error:
            reason = str(error).removeprefix(f"{molecules[0].source}: ")
            skipped.append(Skipped(molecules[0].source, _name(molecules), reason))
    return found, skipped


def _check(molecule: Molecule, settings: MoleculeSettings, hold_out: HoldOut, method: Method) -> None:
    if 0 in molecule.numbers:
        raise _Unusable("an atom of it is no element")
    for number in sorted(set(molecule.numbers)):
        if settings.elements is not None and chemical_symbols[number] not in settings.elements:
            raise _Unusable(f"{chemical_symbols[number]} is not among molecules.elements")
    if settings.max_heavy_atoms is not None and molecule.heavy_atoms > settings.max_heavy_atoms:
        raise _Unusable(f"{molecule.heavy_atoms} heavy atoms, above molecules.max_heavy_atoms")
    if not settings.charged and (molecule.charge or _has_lone_charge(molecule)):
        raise _Unusable("charged (molecules.charged is false)")
    if not settings.open_shell and molecule.multiplicity != 1:
        raise _Unusable("open-shell (molecules.open_shell is false)")
    if hold_out.any_alone:
        reason = hold_out.reason(molecule)
        if reason:
            raise _Unusable(reason)
    method_of(method, molecule.charge, molecule.multiplicity).check([(molecule.source, molecule.atoms())])


def _has_lone_charge(molecule: Molecule) -> bool:
    """Whether an atom has a formal charge, and no neighbour an opposite one."""
    if molecule.structure is not None or molecule.smiles is None:
        return False
    for atom in _parsed(molecule.smiles).GetAtoms():
        charge = atom.GetFormalCharge()
        if charge and not any(other.GetFormalCharge() * charge < 0 for other in atom.GetNeighbors()):
            return True
    return False


def _check_cluster(molecules: Sequence[Molecule], hold_out: HoldOut) -> None:
    if sum(molecule.multiplicity > 1 for molecule in molecules) > 1:
        raise _Unusable("more than one open-shell molecule in a cluster, whose multiplicity is not known")
    if hold_out.forbids_cluster(molecules):
        raise _Unusable("held out: all its molecules are in hold_out.clusters")


# ------------------------------------------------------------------------------------------------- hold-outs


def scaffold_bucket(text: str) -> int:
    """0 to 99: the first eight bytes (big-endian) of the SHA-256 of a text, modulo 100."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100


class HoldOut:
    """Molecules that are kept for tests.

    Args:
        settings: Which ones.

    Raises:
        SampleError: An entry that is neither SMILES nor an InChIKey; no RDKit.
    """

    def __init__(self, settings: HoldOutSettings) -> None:
        listed = [("hold_out.molecules", text) for text in settings.molecules]
        if settings.file is not None:
            listed += [(f"{settings.file}, line {line}", text.split()[0]) for line, text in _lines(settings.file)]
        self._alone = frozenset(_block(*one) for one in listed)
        self._clusters = frozenset(_block("hold_out.clusters", text) for text in settings.clusters)
        self._percent = settings.scaffold_percent
        self._blocks: dict[str, str] = {}

    @property
    def any_alone(self) -> bool:
        """Whether any molecule is held out."""
        return bool(self._alone or self._percent)

    def reason(self, molecule: Molecule) -> str | None:
        """Why a molecule is held out; None if it is not."""
        mol = _with_bonds(molecule)
        if mol is None:
            return "its bonds cannot be found, so that it is not known whether it is held out"
        if self._alone and _inchi_block(mol) in self._alone:
            return "held out: its InChIKey is listed"
        if self._percent and any(scaffold_bucket(key) < self._percent for key in _scaffolds(mol)):
            return f"held out: its scaffold is among {self._percent} %"
        return None

    def forbids_cluster(self, molecules: Sequence[Molecule]) -> bool:
        """Whether all molecules are among those that must not be in a cluster of each other."""
        return bool(self._clusters) and all(self._block_of(molecule) in self._clusters for molecule in molecules)

    def _block_of(self, molecule: Molecule) -> str:
        if molecule.key not in self._blocks:
            mol = _with_bonds(molecule)
            self._blocks[molecule.key] = "" if mol is None else _inchi_block(mol)
        return self._blocks[molecule.key]


def _block(source: str, text: str) -> str:
    if _BLOCK.fullmatch(text):
        return text[:14]
    _rdkit("hold-outs need")
    mol = _parsed(text)
    if mol is None:
        raise SampleError(f"{source}: {shown(text)} is neither SMILES nor an InChIKey")
    return _inchi_block(mol)


def _with_bonds(molecule: Molecule) -> Any:
    """RDKit's molecule, for a structure with bonds found from the geometry; None where that fails."""
    chem = _rdkit("hold-outs need")
    if molecule.smiles is not None:
        return _parsed(molecule.smiles)
    assert molecule.structure is not None
    if molecule.structure.pbc.any():
        return None
    from rdkit.Chem import rdDetermineBonds
    from rdkit.rdBase import BlockLogs

    rows = zip(molecule.structure.symbols, molecule.structure.positions, strict=True)
    text = "\n".join(f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in rows)
    with BlockLogs():
        try:
            mol = chem.MolFromXYZBlock(f"{len(molecule.numbers)}\n\n{text}\n")
            rdDetermineBonds.DetermineBonds(mol, charge=molecule.charge)
            return chem.RemoveHs(mol)
        except (ValueError, RuntimeError):  # no bonds of whole orders fit the charge
            return None


def _inchi_block(mol: Any) -> str:
    """First block of the InChIKey: without stereochemistry and mobile hydrogen atoms."""
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        return str(_rdkit("hold-outs need").MolToInchiKey(mol))[:14]


def _scaffolds(mol: Any) -> set[str]:
    """SMILES of the Murcko scaffold; of an acyclic molecule its own, with and without stereochemistry."""
    from rdkit.Chem.Scaffolds import MurckoScaffold

    chem = _rdkit("hold-outs need")
    scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=mol)
    return {scaffold} if scaffold else {chem.MolToSmiles(mol, isomericSmiles=one) for one in (True, False)}
