"""The audit as a whole: which checks run, and what a calculator's errors become."""

from __future__ import annotations

import json

from ase import Atoms
from ase.calculators.emt import EMT
from audit_calculators import Anisotropic, Failing, Springs

from ponita_ff.audit import AuditReport, AuditSettings, audit


def test_a_correct_calculator_passes_all_checks(molecule_report: AuditReport) -> None:
    assert molecule_report.failures == []
    done = [check for check, result in molecule_report.results["springs"].items() if result.measurements]
    assert done == ["labels", "rotations", "forces", "smoothness", "short_range", "modes", "nve", "nvt", "domain"]
    assert len(molecule_report.inconclusive) == 1 and "not periodic" in molecule_report.inconclusive[0]
    assert molecule_report.structure == "H2O, 3 atoms"


def test_a_correct_crystal_passes_all_checks(copper: Atoms, fast: AuditSettings) -> None:
    short = AuditSettings.make(fast.model_dump(), {"nve": {"picoseconds": 0.1}, "nvt": {"picoseconds": 0.05}})
    report = audit({"EMT": EMT()}, copper, None, short)
    assert report.failures == []
    assert report.results["EMT"]["stress"].measurements[0].verdict == "pass"
    assert {line.split(": ")[1] for line in report.inconclusive} == {"labels", "rotations", "domain"}


def test_what_a_calculator_raises_is_a_failure_of_that_check_only(water: Atoms, fast: AuditSettings) -> None:
    report = audit({"it": Failing(Springs(water))}, water, None, fast, only=["short_range", "forces"])
    assert report.failures == ["it: short_range: raised an error"]
    assert "far outside" in (report.results["it"]["short_range"].error or "")


def test_the_same_seed_gives_the_same_numbers(water: Atoms) -> None:
    def numbers(seed: int) -> str:
        settings = AuditSettings.make(
            {"seed": seed, "nvt": {"temperature_factors": [1.0], "picoseconds": 0.05}, "rotations": {"number": 3}}
        )
        report = audit({"it": Anisotropic(Springs(water))}, water, None, settings, ["rotations", "nvt"])
        return json.dumps(report.as_dict()["calculators"])

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)
