"""Molecules from files: each is used, or left out with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ponita_ff.labels import find_method
from ponita_ff.sample import SampleError
from ponita_ff.sample import molecules as module
from ponita_ff.sample.methods import method_for
from ponita_ff.sample.molecules import HoldOut, Molecule, read_molecules, scaffold_bucket, usable
from ponita_ff.sample.settings import HoldOutSettings, MoleculeSettings

ANY = find_method(EMT)


@pytest.fixture
def rdkit() -> Any:
    """RDKit's main module, where it is installed."""
    return pytest.importorskip("rdkit.Chem")


def judged(
    *texts: str | Path | Atoms, method: Any = ANY, hold_out: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[str], dict[str, str]]:
    """Names of what is used; reasons of what is not."""
    entries, skipped = read_molecules(texts)
    held = HoldOut(HoldOutSettings(**(hold_out or {})))
    used, refused = usable(entries, MoleculeSettings(**settings), held, method)
    names = [".".join(one.name for one in group) for group in used]
    return names, {one.name: one.reason for one in [*skipped, *refused]}


def test_a_file_of_smiles(rdkit: Any, tmp_path: Path) -> None:
    path = tmp_path / "molecules.smi"
    path.write_text(
        "smiles name\nOCC ethanol\n\n# a comment\nCCO\tagain\nnonsense\nCO.O a complex\nO.CO again\n", "utf-8"
    )
    entries, skipped = read_molecules([path])
    assert [[one.smiles for one in group] for group in entries] == [["CCO"], ["CO", "O"]]
    assert entries[0][0].source == "molecules.smi, line 2"
    assert sorted(entries[0][0].numbers) == [1] * 6 + [6, 6, 8]
    assert [(one.source, one.reason) for one in skipped] == [
        ("molecules.smi, line 5", "the same as molecules.smi, line 2"),
        ("molecules.smi, line 6", "RDKit cannot parse it"),
        ("molecules.smi, line 8", "the same as molecules.smi, line 7"),
    ]


def test_what_a_molecule_is_does_not_depend_on_how_it_was_written(rdkit: Any) -> None:
    keys = {read_molecules([text])[0][0][0].key for text in ("OCC", "C(O)C", "[CH3:7][CH2][OH]")}
    assert len(keys) == 1


@pytest.mark.parametrize(("text", "avoidable"), [(r"F/C=C\F", True), (r"C/N=C(\C)CC", True), (r"C/C=C\C=C/C", False)])
def test_stereochemistry_is_kept_without_backslashes(rdkit: Any, text: str, avoidable: bool) -> None:
    found = read_molecules([text])[0][0][0].smiles
    assert found is not None and ("\\" not in found) == avoidable
    canonical = [rdkit.MolToSmiles(rdkit.MolFromSmiles(one)) for one in (text, found)]
    assert canonical[0] == canonical[1]


def test_texts_that_are_nothing(rdkit: Any, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="nonsense is neither a file nor SMILES"):
        read_molecules(["nonsense"])
    with pytest.raises(SampleError, match=r"there is no such file"):
        read_molecules([tmp_path / "CCO.smi"])
    (tmp_path / "binary.smi").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SampleError, match=r"binary.smi: not a text file"):
        read_molecules([tmp_path / "binary.smi"])
    with pytest.raises(SampleError, match="not a file"):
        list(module._lines(tmp_path))


def test_without_rdkit_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SampleError, match=r"SMILES need RDKit, which is not installed: pip install 'ponita-ff\[sample"):
        read_molecules(["CCO"])
    with pytest.raises(SampleError, match="hold-outs need RDKit"):
        judged(molecule("H2O"), hold_out={"scaffold_percent": 5})
    assert judged(molecule("H2O"))[0] == ["structure 0"]  # structures need none


def test_reasons(rdkit: Any) -> None:
    names, reasons = judged(
        *("CCO", "CCCCCC", "[Na+]", "[NH3+]CC([O-])=O", "C[N+](=O)[O-]", "[CH3]", "CS", "*C", "[O][O]"),
        elements=["H", "C", "N", "O", "Na"],
        max_heavy_atoms=5,
    )
    assert names == ["CCO", "C[N+](=O)[O-]"]
    assert reasons == {
        "CCCCCC": "6 heavy atoms, above molecules.max_heavy_atoms",
        "[Na+]": "charged (molecules.charged is false)",
        "[NH3+]CC(=O)[O-]": "charged (molecules.charged is false)",
        "[CH3]": "open-shell (molecules.open_shell is false)",
        "CS": "S is not among molecules.elements",
        "*C": "an atom of it is no element",
        "[O][O]": "open-shell (molecules.open_shell is false)",
    }
    with pytest.raises(SampleError, match="'Xx' is no symbol of an element"):
        judged("C", elements=["Xx"])


def test_ions_and_radicals_only_by_methods_that_know_charges(rdkit: Any, tiny_potential_path: Path) -> None:
    pytest.importorskip("tblite")
    asked = {"charged": True, "open_shell": True}
    assert judged("[NH4+]", "[CH3]", "O", method=method_for("gfn2-xtb"), **asked)[0] == ["[NH4+]", "[CH3]", "O"]
    names, reasons = judged("[OH-]", "[CH3]", "O", method=method_for(str(tiny_potential_path)), **asked)
    assert names == ["O"]
    assert reasons["[OH-]"].endswith("knows no charge (-1) and multiplicity (1)")
    assert reasons["[CH3]"].endswith("knows no charge (0) and multiplicity (2)")
    _, reasons = judged("[CH3].[CH3]", method=method_for("gfn2-xtb"), **asked)
    assert list(reasons.values()) == ["more than one open-shell molecule in a cluster, whose multiplicity is not known"]


def test_structures_and_what_they_say(tmp_path: Path) -> None:
    water, radical, ion = molecule("H2O"), molecule("CH3"), molecule("OH")
    ion.info = {"charge": -1, "smiles": "[OH-]"}
    ase.io.write(tmp_path / "some.xyz", [water, radical, ion, water], format="extxyz")
    entries, skipped = read_molecules([tmp_path / "some.xyz"])
    found = [group[0] for group in entries]
    assert [(one.name, one.charge, one.multiplicity) for one in found] == [
        ("some.xyz, frame 0", 0, 1),
        ("some.xyz, frame 1", 0, 2),
        ("[OH-]", -1, 1),
    ]
    assert [one.reason for one in skipped] == ["the same as some.xyz, frame 0"]
    ion.info = {"charge": 0.5}
    with pytest.raises(SampleError, match=r"structure 0: charge=0.5 .* expected whole numbers"):
        read_molecules([ion])


def test_a_key_is_that_of_the_geometry() -> None:
    water = molecule("H2O")
    moved = water.copy()
    moved.positions[0, 0] += 1e-6
    keys = [read_molecules([atoms])[0][0][0].key for atoms in (water, water.copy(), moved, bulk("Cu"))]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_hold_out_by_inchikey(rdkit: Any, tmp_path: Path) -> None:
    listed = {"molecules": ["Oc1ccccn1", "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"]}  # a tautomer of 2-pyridone; ethanol
    names, reasons = judged("CCO", "O=c1cccc[nH]1", "CO", "CCO.O", "C[C@H](O)F", hold_out=listed)
    assert names == ["CO", "C[C@H](O)F"]
    assert set(reasons.values()) == {"held out: its InChIKey is listed"}
    assert set(reasons) == {"CCO", "O=c1cccc[nH]1", "CCO.O"}
    (tmp_path / "tests.smi").write_text("C[C@@H](O)F the mirror image\n", "utf-8")
    assert judged("C[C@H](O)F", "CO", hold_out={"file": tmp_path / "tests.smi"})[0] == ["CO"]
    with pytest.raises(SampleError, match="'nonsense' is neither SMILES nor an InChIKey"):
        HoldOut(HoldOutSettings(molecules=["nonsense"]))


def test_hold_out_of_structures_by_the_bonds_of_their_geometry(rdkit: Any) -> None:
    names, reasons = judged(molecule("CH3CH2OH"), molecule("CH3OH"), bulk("Cu"), hold_out={"molecules": ["CCO"]})
    assert names == ["structure 1"]
    assert reasons["structure 0"] == "held out: its InChIKey is listed"
    assert "it is not known whether it is held out" in reasons["structure 2"]


def test_hold_out_by_scaffold(rdkit: Any) -> None:
    # int.from_bytes(hashlib.sha256(b"c1ccccc1").digest()[:8], "big") % 100, as for the data of organic_wb97x
    assert scaffold_bucket("c1ccccc1") == 24
    benzenes, others = ["Cc1ccccc1", "Oc1ccccc1"], ["c1ccncc1"]
    percent = scaffold_bucket("c1ccccc1") + 1
    with_it = judged(*benzenes, *others, hold_out={"scaffold_percent": percent})
    without = judged(*benzenes, *others, hold_out={"scaffold_percent": percent - 1})
    assert not set(benzenes) & set(with_it[0]) and set(benzenes) <= set(without[0])
    # An acyclic molecule is its own scaffold, with or without stereochemistry.
    plain, marked = scaffold_bucket("CC(O)F"), scaffold_bucket("C[C@H](O)F")
    assert judged("C[C@H](O)F", hold_out={"scaffold_percent": min(plain, marked) + 1})[0] == []
    assert judged("C[C@H](O)F", hold_out={"scaffold_percent": min(plain, marked)})[0] == ["C[C@H](O)F"]


def test_clusters_of_molecules_that_may_be_used_alone(rdkit: Any) -> None:
    names, reasons = judged("O", "CO.O", "O.CC", hold_out={"clusters": ["CO", "O"]})
    assert names == ["O", "CC.O"]
    assert reasons == {"CO.O": "held out: all its molecules are in hold_out.clusters"}


def test_heavy_atoms() -> None:
    assert Molecule("", (1, 6, 1, 1, 8, 1), 0, 1).heavy_atoms == 2
