"""Which molecules may be in the data: neutral, closed shell, known elements, not held out for tests.

SMILES are compared by the first block of their InChIKeys, which ignores stereochemistry and mobile hydrogen atoms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from rdkit import Chem, RDLogger
from rdkit.Chem.Scaffolds import MurckoScaffold

RDLogger.DisableLog("rdApp.*")


def _listed(text: str) -> list[str]:
    return text.split()


#: Atomic numbers.
ELEMENTS = frozenset({1, 6, 7, 8, 9, 16, 17})

#: Held out: the molecules of rMD17, malonaldehyde's enol, acetylacetone and its enol, N-methylacetamide, tropolone,
#: 3-(benzyloxy)pyridin-2-one and 3-(benzyloxy)pyridin-2-amine (3BPA).
TESTS = _listed(
    "CCO CC(=O)Oc1ccccc1C(=O)O c1ccccc1 c1ccc2ccccc2c1 CC(=O)Nc1ccc(O)cc1 O=C(O)c1ccccc1O Cc1ccccc1 "
    "O=c1cc[nH]c(=O)[nH]1 O=CCC=O O=CC=CO c1ccc(N=Nc2ccccc2)cc1 CC(=O)C=C(C)O CC(=O)CC(C)=O CNC(C)=O O=c1cccccc1O "
    "O=c1[nH]cccc1OCc1ccccc1 Nc1ncccc1OCc1ccccc1"
)

#: Monomers of S66. A dimer of two of them is not in the data.
S66 = _listed("O CO CN CNC(C)=O c1ccccc1 c1ccncc1 O=c1cc[nH]c(=O)[nH]1 CC(=O)O CC(N)=O C=C C#C CC(C)(C)C CCCCC C1CCCC1")

#: Small molecules that lists of fragments lack, for monomers and dimers.
SMALL = _listed(
    "O C N S F Cl [H][H] O=C=O C#N C=O CO CN CF CCl CS C=C C#C CC OO NN NO COC CSC CNC CC=O CC#N CC=C NC=O NC(N)=O "
    "NC(N)=S O=CO COC=O C=NO C[N+](=O)[O-] CS(C)=O CS(C)(=O)=O CS(N)(=O)=O ClC(Cl)Cl FC(F)F FC(F)(F)F FCCl FC(F)Cl "
    "C=CF C=CCl C=CC#N C1CO1 C1CN1 C1CS1 C1CC1 C=C=O CN=C=O CC=S"
)

#: Unusual molecules, not for random dimers.
ODD = _listed(
    "N#N [C-]#[O+] OF OCl ClCl NCl NF SS S=C=S O=C=S O=S=O [O-][N+]#N N=C=O N=C=S C=[N+]=[N-] CN=C=S CN=[N+]=[N-] "
    "C[N+]#[C-] O=CF O=CCl COO CON CNN ClC(Cl)(Cl)Cl C#CF C#CCl FC=CF OCF OCCl NC#N N#CC#N FC#N ClC#N SC#N FSF ClSCl "
    "CSCl CSF O=NO ON=O CON=O CN=O C=NC C=N C=NN N=N CN=NC C=S C=C=C COS CSO O=S(=O)(F)F O=S(Cl)Cl O=C(F)F O=C(Cl)Cl "
    "OC(=O)O CNO CSN OCO NCO NCN"
)


def parsed(smiles: str, heavy: int) -> Chem.Mol | None:
    """Parse a SMILES string if the molecule may be in the data.

    Args:
        smiles: One molecule.
        heavy: Largest number of heavy atoms.

    Returns:
        The molecule. None if it is not one neutral, closed-shell molecule of ``ELEMENTS`` without isotopes, if it is
        too large, or if an atom has a formal charge without an opposite charge on a neighbour. Nitro groups and azides
        pass, other zwitterions do not.
    """
    mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0 or mol.GetNumHeavyAtoms() > heavy or Chem.GetFormalCharge(mol):
        return None
    if len(Chem.GetMolFrags(mol)) != 1:
        return None
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() not in ELEMENTS or atom.GetNumRadicalElectrons() or atom.GetIsotope():
            return None
        charge = atom.GetFormalCharge()
        if charge and not any(other.GetFormalCharge() * charge < 0 for other in atom.GetNeighbors()):
            return None
    return mol


def skeleton(mol: Chem.Mol) -> str:
    """Return the first block of the InChIKey: without stereochemistry and mobile hydrogen atoms."""
    return Chem.MolToInchiKey(mol)[:14]


@lru_cache
def skeletons(smiles: tuple[str, ...]) -> frozenset[str]:
    """Return ``skeleton`` of each of several SMILES strings."""
    return frozenset(skeleton(Chem.MolFromSmiles(one)) for one in smiles)


def bucket(text: str) -> int:
    """Return 0 to 99: the first eight bytes (big-endian) of the SHA-256 of a string, modulo 100."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100


def held_out(mol: Chem.Mol, percent: int = 5) -> bool:
    """Tell whether a molecule is held out for tests.

    Args:
        mol: The molecule.
        percent: Share of Murcko scaffolds that are held out. An acyclic molecule counts as its own scaffold.

    Returns:
        True for the molecules of ``TESTS``, and for those whose scaffold's ``bucket`` is below ``percent``.
    """
    return is_test(mol) or of_held_out_scaffold(mol, percent)


def is_test(mol: Chem.Mol) -> bool:
    """Tell whether a molecule is one of ``TESTS``."""
    return skeleton(mol) in skeletons(tuple(TESTS))


def of_held_out_scaffold(mol: Chem.Mol, percent: int = 5) -> bool:
    """Tell whether the scaffold of a molecule is held out; see ``held_out``."""
    keys = {MurckoScaffold.MurckoScaffoldSmiles(mol=mol)}
    if keys == {""}:
        keys = {Chem.MolToSmiles(mol, isomericSmiles=isomeric) for isomeric in (True, False)}
    return any(bucket(key) < percent for key in keys)


def forbidden_pair(first: Chem.Mol, second: Chem.Mol) -> bool:
    """Tell whether both molecules are monomers of S66."""
    return all(skeleton(mol) in skeletons(tuple(S66)) for mol in (first, second))


def usable(lines: Iterable[str], heavy: int, tests: bool = False) -> dict[str, Chem.Mol]:
    """Return the molecules that may be in the data, or with ``tests`` those of held-out scaffolds instead.

    Args:
        lines: A SMILES string each; what follows after a blank is ignored.
        heavy: Largest number of heavy atoms.
        tests: Whether to return the others, without ``TESTS`` themselves.

    Returns:
        Molecules by canonical SMILES, in the order given, without duplicates.
    """
    found: dict[str, Chem.Mol] = {}
    for line in lines:
        mol = parsed(line.split()[0], heavy) if line.strip() else None
        if mol is None or is_test(mol):
            continue
        if of_held_out_scaffold(mol) == tests:
            found.setdefault(Chem.MolToSmiles(mol), mol)
    return found


def pairs(lines: Iterable[str], heavy: int) -> list[tuple[str, str]]:
    """Return the pairs that may be in the data.

    Args:
        lines: ``A.B`` each, the SMILES strings of two molecules.
        heavy: Largest number of heavy atoms of both together.

    Returns:
        Sorted canonical SMILES of each pair, in the order given, without duplicates.
    """
    found = {}
    for line in lines:
        parts = line.split()[0].split(".") if line.strip() else []
        mols = [parsed(part, heavy) for part in parts]
        if len(mols) != 2 or None in mols or sum(mol.GetNumHeavyAtoms() for mol in mols) > heavy:
            continue
        if not any(map(held_out, mols)) and not forbidden_pair(*mols):
            found[tuple(sorted(map(Chem.MolToSmiles, mols)))] = None
    return list(found)


def read(path: Path) -> list[str]:
    """Return the lines of a file that are not empty."""
    return [line for line in path.read_text().splitlines() if line.strip()]
