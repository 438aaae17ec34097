"""Verdicts and reports."""

from __future__ import annotations

from ponita_ff.audit import AuditReport, CheckResult, Measurement


def test_an_estimate_near_its_limit_is_inconclusive() -> None:
    assert Measurement("drift", 5.0, "", 10.0, standard_error=4.0).verdict == "inconclusive"
    assert Measurement("drift", 5.0, "", 10.0, standard_error=1.0).verdict == "pass"
    assert Measurement("drift", -15.0, "", 10.0, standard_error=1.0).verdict == "fail"
    assert Measurement("drift", -15.0, "", 10.0, standard_error=4.0).verdict == "inconclusive"
    assert Measurement("drift", float("nan"), "", 10.0).verdict == "fail"


def test_limits_and_verdicts() -> None:
    assert Measurement("height", 3.0, "eV", 2.0, "minimum").verdict == "pass"
    assert Measurement("height", 1.0, "eV", 2.0, "minimum").verdict == "fail"
    assert Measurement("height", 1.0, "eV").verdict == "info"
    assert Measurement("height", None, "eV", 2.0, note="why").verdict == "inconclusive"


def test_a_report_collects_failures_and_what_is_inconclusive() -> None:
    bad = CheckResult([Measurement("drift", 5.0, "", 1.0), Measurement("torque", None, "", 1.0, note="none")])
    results = {"it": {"nve": bad, "nvt": CheckResult(error="ValueError"), "labels": CheckResult(skip_reason="no data")}}
    report = AuditReport(results, "H2O", {}, {})
    assert report.failures == ["it: nve: drift", "it: nvt: raised an error"]
    assert report.inconclusive == ["it: nve: torque: none", "it: labels: no data"]
    assert not report.passed
    assert list(report.for_check("nve")) == ["it"]
