"""Physical-health audit of any ASE calculator: what it gets wrong, measured, beside others."""

from ponita_ff.audit.page import render, write_report
from ponita_ff.audit.result import Measure, NotDone, Outcome, Report
from ponita_ff.audit.run import CHECKS, Check, audit
from ponita_ff.audit.settings import QUICK, AuditError, AuditSettings

__all__ = [
    "CHECKS",
    "QUICK",
    "AuditError",
    "AuditSettings",
    "Check",
    "Measure",
    "NotDone",
    "Outcome",
    "Report",
    "audit",
    "render",
    "write_report",
]
