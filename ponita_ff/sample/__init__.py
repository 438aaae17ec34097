"""Frames of many molecules for a general potential: conformers, dynamics, displacements, torsions, clusters."""

from typing import TYPE_CHECKING

from ponita_ff.lazy import loader

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
    __getattr__ = loader(__name__, _HOMES)
