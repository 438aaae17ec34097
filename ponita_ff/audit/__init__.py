"""Audit of the physical soundness of any ASE calculators, side by side: measurements with limits, on one page."""

from typing import TYPE_CHECKING

from ponita_ff.lazy import loader

if TYPE_CHECKING:
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

_HOMES = {
    "AuditError": "settings",
    "AuditReport": "result",
    "AuditSettings": "settings",
    "CHECKS": "run",
    "Check": "run",
    "CheckResult": "result",
    "CheckSkipped": "result",
    "Measurement": "result",
    "QUICK": "settings",
    "audit": "run",
    "render": "page",
    "write_report": "page",
}

if not TYPE_CHECKING:
    __getattr__ = loader(__name__, _HOMES)
