"""The HTML page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import ponita_ff.audit
from ponita_ff.audit import CHECKS, AuditReport, CheckResult, Measurement, render, write_report
from ponita_ff.audit.page import format_number

#: Elements of HTML that have no end tag.
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Tests that elements are nested correctly, and collects texts and images."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[str] = []
        self.feed(source)
        assert self.open == []

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def files(crystal_report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Page and JSON file."""
    return write_report(crystal_report, tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def source(files: tuple[Path, Path]) -> str:
    """HTML of the page."""
    return files[0].read_text(encoding="utf-8")


def test_all_measurements_are_there(crystal_report: AuditReport, source: str) -> None:
    text = Reader(source).text
    for check in CHECKS.values():
        assert check.title in text
        assert check.description in text
    for results in crystal_report.results.values():
        for result in results.values():
            for measurement in result.measurements:
                assert measurement.name in text and measurement.unit in text
                if measurement.value is not None:
                    assert format_number(measurement.value) in text
    assert "not selected by the user" in text
    assert "THE SIGN IS WRONG" in text


def test_the_summary_counts(crystal_report: AuditReport, source: str) -> None:
    text = Reader(source).text
    for name, results in crystal_report.results.items():
        passed = sum(m.verdict == "pass" for result in results.values() for m in result.measurements)
        failed = sum(len(result.failures) for result in results.values())
        assert f"{name} : {passed} passed, {failed} failed, 0 not judged, 5 checks skipped" in text
        assert failed == (name != "EMT")


def test_what_was_not_judged_heads_the_page_and_is_no_pass(crystal_report: AuditReport) -> None:
    short = Measurement("NVE drift at 1 fs", 5.0, "", 4.0, standard_error=3.0, note="the run is too short")
    for measurements, verdict in (([short], "not judged"), ([], "pass")):
        checks = {**dict.fromkeys(CHECKS, CheckResult()), "nve": CheckResult(measurements)}
        report = AuditReport({"it": checks}, "Cu4", crystal_report.settings, crystal_report.versions)
        head = Reader(render(report)).text.split("Skipped")[0].partition("K. ")[2]
        assert head.startswith(f"{verdict} it : 0 passed, 0 failed, {len(measurements)} not judged, 0 checks skipped")
        assert ("Not judged: NVE drift at 1 fs." in head) == bool(measurements)
        assert (
            report.passed
            and report.not_judged == ["it: nve: NVE drift at 1 fs: the run is too short"][: len(measurements)]
        )


def test_the_page_is_self_contained_and_escaped(source: str) -> None:
    reader = Reader(source)
    assert len(reader.images) == 5
    assert all(image.startswith("data:image/png;base64,") for image in reader.images)
    assert not re.search(r"(src|href)=\"(?!data:|#)", source) and "@import" not in source and "http" not in source
    assert "<wrong> & stress" in reader.text and "<wrong>" not in source


def test_errors_and_missing_measurements_are_shown(crystal_report: AuditReport) -> None:
    results = {name: dict(checks) for name, checks in crystal_report.results.items()}
    results["EMT"]["forces"] = CheckResult(error="ValueError: <no>")
    results["EMT"]["rotations"] = CheckResult(results["EMT"]["rotations"].measurements[:1])
    report = AuditReport(results, "Cu4", crystal_report.settings, crystal_report.versions)
    text = Reader(render(report)).text
    assert "The calculator raised ValueError: <no>" in text
    assert "fail ValueError: <no>" in text
    assert "–" in text


def test_the_json_file_holds_everything(files: tuple[Path, Path]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads(files[1].read_text(encoding="utf-8"), parse_constant=refuse)
    assert values["passed"] is False
    assert values["failures"] == ["<wrong> & stress: stress: stress, largest difference from ΔE/VΔε"]
    assert values["settings"]["rotations"]["number"] == 8
    assert set(values["calculators"]) == {"EMT", "<wrong> & stress"}
    stress = values["calculators"]["EMT"]["stress"]
    (measure,) = stress["measurements"]
    assert measure["verdict"] == "pass" and measure["unit"] == "eV/Å³" and measure["value"] < measure["limit"]
    assert np.shape(stress["arrays"]["numerical"]) == (6,)
    assert values["calculators"]["EMT"]["nve"]["skip_reason"] == "not selected by the user"
    assert set(values["versions"]) == {"ponita-ff", "ase", "numpy"}


def test_the_template_is_part_of_the_package() -> None:
    assert (Path(ponita_ff.audit.__file__).parent / "page.html.jinja").is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-6.372, "−6.37"),
        (1234.5, "1234"),
        (1.3e-15, "1.3·10⁻¹⁵"),
        (0.00123, "0.00123"),
        (2e6, "2.0·10⁶"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
