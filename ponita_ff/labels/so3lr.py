"""SO3LR through so3krates-torch, which holds its weights (Kabylda et al. 2025)."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from copy import copy
from functools import cache

from ase.calculators.calculator import Calculator

__all__ = ["ELEMENTS", "calculator"]

#: Of its training; energies of other elements are numbers without meaning.
ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")

#: Å: all pairs of atoms interact, as molecules without periodicity must.
_LONG_RANGE = 1000.0


def calculator() -> Calculator:
    """A new calculator; all of a process share one network."""
    found = copy(_loaded())
    found.reset()
    return found


@cache
def _loaded() -> Calculator:
    import torch

    dtype = torch.get_default_dtype()
    try:
        # It prints the type of its numbers.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from so3krates_torch.calculator.so3 import SO3LRCalculator

            return SO3LRCalculator(device="cpu", r_max_lr=_LONG_RANGE)
    finally:
        torch.set_default_dtype(dtype)  # which it changes
