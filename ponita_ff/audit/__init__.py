"""Audit of the physical soundness of any ASE calculators, side by side: measurements with limits, on one page."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    # Settings alone, as ``ponita-ff config`` prints them, need no torch.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
