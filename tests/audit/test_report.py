"""The page, the JSON file, the settings and the command: what they hold, and what a user's mistake gets."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from click.testing import CliRunner, Result

from ponita_ff.audit import CHECKS, QUICK, AuditError, AuditSettings, Report, audit, write_report
from ponita_ff.audit.calculators import make_calculator, make_calculators
from ponita_ff.audit.page import format_value
from ponita_ff.cli import main

#: Elements of HTML that have no end.
VOID = {"meta", "img", "br"}

CHEAP = ["rotations", "forces", "modes", "stress", "short_range"]


class Reader(HTMLParser):
    """Checks that elements are nested as they should be, and collects texts and images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: Path) -> Reader:
    """A page, parsed."""
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def made_report(made: ModuleType) -> Report:
    """Copper by EMT, and by EMT with a wrong stress, whose name is not fit for HTML as it is."""
    settings = AuditSettings.make({"rotations": {"number": 5}, "forces": {"max_atoms": 1}})
    calculators = {"EMT": EMT(), "<wrong> & stress": made.WrongStress(EMT())}
    return audit(calculators, bulk("Cu", cubic=True), None, settings, CHEAP)


def test_the_page_holds_every_number_side_by_side_and_nothing_from_outside(made_report: Report, tmp_path: Path) -> None:
    page, _ = write_report(made_report, tmp_path / "out")
    reader = read(page)
    text = " ".join(reader.texts)
    source = page.read_text(encoding="utf-8")
    assert len(reader.images) == len(CHEAP)
    assert all(image.startswith("data:image/png;base64,") for image in reader.images)
    assert not re.search(r"(src|href)=\"(?!data:|#)", source) and "<script" not in source and "@import" not in source
    assert "<wrong> & stress" in text and "<wrong>" not in source
    for check in CHECKS.values():
        assert check.title in text
    for outcome in made_report.outcomes["EMT"].values():
        for measure in outcome.measures:
            assert measure.name in text and measure.unit in text
            if measure.value is not None:
                assert format_value(measure.value) in text
    assert "no labelled frames" not in text and "left out by the user" in text
    assert "THE SIGN IS WRONG" in text


def test_the_json_file_holds_everything(made_report: Report, tmp_path: Path) -> None:
    _, numbers = write_report(made_report, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads(numbers.read_text(encoding="utf-8"), parse_constant=refuse)
    assert values["passed"] is False
    assert values["failures"] == ["<wrong> & stress: stress: stress, largest difference from ΔE/VΔε"]
    assert values["settings"]["rotations"]["number"] == 5
    assert set(values["calculators"]) == {"EMT", "<wrong> & stress"}
    stress = values["calculators"]["EMT"]["stress"]
    (measure,) = stress["measures"]
    assert measure["verdict"] == "pass" and measure["unit"] == "eV/Å³" and measure["value"] < measure["limit"]
    assert np.shape(stress["arrays"]["numerical"]) == (6,)
    assert values["calculators"]["EMT"]["nve"]["not_done"] == "left out by the user"
    assert set(values["versions"]) == {"ponita-ff", "ase", "numpy"}


def test_the_same_seed_gives_the_same_numbers(made: ModuleType, water: Atoms) -> None:
    def numbers(seed: int) -> str:
        settings = AuditSettings.make(
            {"seed": seed, "nvt": {"factors": [1.0], "picoseconds": 0.05}, "rotations": {"number": 3}}
        )
        report = audit({"it": made.Anisotropic(made.Springs(water))}, water, None, settings, ["rotations", "nvt"])
        return json.dumps(report.as_dict()["calculators"])

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


def test_settings_are_layers_and_refuse_what_they_do_not_know() -> None:
    settings = AuditSettings.make(QUICK, {"nve": {"limit": 2.0}})
    assert settings.nve.limit == 2.0 and settings.nve.picoseconds == QUICK["nve"]["picoseconds"]
    with pytest.raises(AuditError, match=r"(?s)mine.yaml.*  seed: .*  nve.limt: "):
        AuditSettings.make({"nve": {"limt": 1}, "seed": -1}, source="mine.yaml")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-6.372, "−6.37"), (1234.5, "1234"), (1.3e-15, "1.3·10⁻¹⁵"), (0.00123, "0.00123"), (2e6, "2.0·10⁶")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_value(value) == text


def test_calculators_by_name(tmp_path: Path, tiny_potential_path: Path) -> None:
    argon = make_calculator("ase.calculators.lj:LennardJones{sigma: 3.4, rc: 9.0}")
    assert argon.parameters["sigma"] == 3.4
    texts = [str(tiny_potential_path), "ase.calculators.emt:EMT"]
    assert list(make_calculators(texts)) == [str(tiny_potential_path), "EMT"]
    committee = make_calculator(f"{tiny_potential_path},{tiny_potential_path}")
    assert "forces_std" in committee.implemented_properties


# ------------------------------------------------------------------------------------------ the command


def call(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.fixture(scope="module")
def copper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled crystal, as structure and as data."""
    path = tmp_path_factory.mktemp("audit") / "copper.xyz"
    frames = []
    for seed in range(5):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.03, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return path


def test_exit_code_0_where_all_limits_hold(copper_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("ase.calculators.emt:EMT", "--data", copper_file, "--quick", "--out", out, "--no-progress")
    result = call(*arguments, "--only", "labels,rotations,modes")
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"audit.html", "audit.json"}
    assert "net torque, largest: periodic" in result.output  # never silently passed
    assert call(*arguments, "--only", "labels,rotations,modes", "--strict").exit_code == 1


def test_exit_code_1_where_one_is_broken(copper_file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "strict.yaml"
    settings.write_text(yaml.safe_dump({"modes": {"reference": [1.0] * 9}}), encoding="utf-8")
    arguments = ("ase.calculators.emt:EMT", "--structure", copper_file, "--out", tmp_path, "--only", "modes")
    result = call(*arguments, "--settings", settings, "--no-progress")
    assert result.exit_code == 1, result.output
    assert "FAILED    EMT: modes: frequencies, RMS difference from reference" in result.output
    result = call(*arguments, "--settings", settings, "--set", "modes.reference_limit=1e6", "--no-progress")
    assert result.exit_code == 0, result.output


def test_our_own_potential_with_the_lengths_as_options(tiny_potential_path: Path, tmp_path: Path) -> None:
    arguments = (tiny_potential_path, "--structure", "CH3OH", "--quick", "--nve-ps", 0.2, "--nvt-ps", 0.1)
    result = call(*arguments, "--temperature", 100, "--only", "nve,nvt,stress", "--out", tmp_path, "--no-progress")
    assert result.exit_code in (0, 1), result.output
    values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert values["settings"]["nve"]["picoseconds"] == 0.2 and values["settings"]["nvt"]["picoseconds"] == 0.1
    checks = values["calculators"][str(tiny_potential_path)]
    assert [m["name"] for m in checks["nve"]["measures"]] == ["NVE drift at 0.5 fs", "NVE drift at 1 fs"]
    assert checks["nve"]["error"] is None and checks["nvt"]["error"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "POTENTIAL"),
        (["no-such", "--structure", "H2O"], "'no-such' is neither a file nor a shipped potential"),
        (["ase.calculators.emt:EMTT", "--structure", "H2O"], "cannot find ase.calculators.emt:EMTT"),
        (["no_such_package.thing:Calc", "--structure", "H2O"], "expected package.module:Name"),
        (["ase.calculators.emt:EMT{asap: [}", "--structure", "H2O"], "keyword arguments"),
        (["ase.build:molecule", "--structure", "H2O"], "cannot make ase.build:molecule"),
        (["ase.atoms:Atoms", "--structure", "H2O"], "expected an ASE calculator"),
        (["ase.calculators.emt:EMT"], "--structure FILE"),
        (["ase.calculators.emt:EMT", "--structure", "nowhere.xyz"], "--structure nowhere.xyz"),
        (["ase.calculators.emt:EMT", "--structure", "SiH4"], "EMT cannot calculate energy and forces"),
        (["ase.calculators.emt:EMT", "--data", "nowhere.xyz"], "nowhere.xyz"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--settings", "nowhere.yaml"], "nowhere.yaml"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--set", "nve.lim=1"], "nve.lim"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--set", "nve=1"], "nve"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--nve-ps", "-1"], "nve.picoseconds"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--only", "nvee"], "no such check: nvee"),
        (["ase.calculators.emt:EMT", "ase.calculators.emt:EMT", "--structure", "H2O"], "named twice"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--energy-unit", "eV"], "--length-unit"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = call(*arguments, "--out", tmp_path / "out", "--no-progress", "--quick")
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_structure_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "structure.xyz"
    path.write_text("this is no structure", encoding="utf-8")
    result = call("ase.calculators.emt:EMT", "--structure", path)
    assert result.exit_code == 2
    assert f"--structure {path}: ASE cannot read it" in result.output.replace("\n", " ")
