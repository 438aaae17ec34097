"""Frames of many molecules for a general potential: conformers, dynamics, displacements, torsions, clusters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponita_ff.sample.run import SampleResult, sample
    from ponita_ff.sample.settings import SampleError, SampleSettings

__all__ = ["SampleError", "SampleResult", "SampleSettings", "sample"]

_HOMES = {
    "SampleError": "settings",
    "SampleResult": "run",
    "SampleSettings": "settings",
    "sample": "run",
}

if not TYPE_CHECKING:
    # Settings alone, as ``ponita-ff config`` prints them, need neither ASE nor RDKit.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
