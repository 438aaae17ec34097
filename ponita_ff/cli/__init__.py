"""The command ``ponita-ff``: one module a command, loaded when it is asked for."""

from __future__ import annotations

import os

# On a machine that others use too, OpenMP's spinning threads slow torch many times over, and threads that sleep at once
# cost as much on a quiet one where waking is slow: so they spin for some microseconds (GNU's OpenMP) and then sleep.
# This must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from ponita_ff.cli.group import main

__all__ = ["main"]
