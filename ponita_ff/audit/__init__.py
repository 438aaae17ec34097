"""Audit of the physical soundness of any ASE calculators, side by side: measurements with limits, on one page."""

from ponita_ff.audit.page import render, write_report
from ponita_ff.audit.result import AuditReport, CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.run import CHECKS, Check, audit
from ponita_ff.audit.settings import QUICK, AuditError, AuditSettings

__all__ = [
    "CHECKS",
    "QUICK",
    "AuditError",
    "AuditReport",
    "AuditSettings",
    "Check",
    "CheckResult",
    "CheckSkipped",
    "Measurement",
    "audit",
    "render",
    "write_report",
]
