"""One calculator through random structures and calls: it gives what a fresh one gives, and says what it refuses.

A case is a list of operations on one calculator. After each that succeeds, energy and forces (and stress, where it was
asked for) must equal those of a calculator without a past; after each that is refused, the results of the structure
before it must still be there.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError
from hypothesis import given
from hypothesis import strategies as st

from ponita_ff import PonitaCalculator
from ponita_ff.potential.potential import Potential

#: What a user may get for input that cannot be calculated.
REFUSALS = (ValueError, TypeError, CalculatorError, PropertyNotImplementedError)

#: Calculators by their options, as arguments; those that are made in milliseconds can be pickled in a case.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"dtype": "float32", "backend": "auto"},
    {"dtype": "float32", "backend": "auto", "skin": 0.0},
    {"dtype": "float32", "backend": "auto", "skin": 3.0, "rotations": 2},
    {"dtype": "float32", "backend": "auto", "committee": 2},
    {"dtype": "float64", "backend": "eager", "cheap": True},
    {"dtype": "float64", "backend": "eager", "committee": 2, "skin": 1.0, "cheap": True},
)

CELLS = ("none", "cubic", "left-handed", "skewed", "tiny", "singular", "zero", "nan", "flat")
OPERATIONS = (
    "energy", "forces", "stress", "move a little", "move far", "other atoms", "other cell", "other pbc", "bad position",
    "unknown element", "coincident", "no atoms", "unknown property", "broken array", "back", "warm up", "discard",
    "copy", "pickle",
)  # fmt: skip


@dataclass
class Maker:
    """Calculators of random weights, with one that is kept for each choice of options."""

    make_potential: Callable[..., Potential]

    def __post_init__(self) -> None:
        self.kept = cache(self.new)

    def new(self, option: int, which: str = "tested") -> PonitaCalculator:
        """A new calculator; ``which`` tells those apart that are kept."""
        values = {name: value for name, value in OPTIONS[option].items() if name not in ("committee", "cheap")}
        dtype = getattr(torch, values["dtype"])
        shape = {"dtype": dtype, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2, "zbl_cutoff": 1.0}
        number = OPTIONS[option].get("committee", 1)
        return PonitaCalculator([self.make_potential(seed=seed, **shape) for seed in range(number)], **values)

    def without_past(self, option: int) -> PonitaCalculator:
        """A new one, or, where that takes long, one without neighbour list and results."""
        if OPTIONS[option].get("cheap"):
            return self.new(option)
        calculator: PonitaCalculator = self.kept(option, "reference")
        calculator.discard_state()
        return calculator


@pytest.fixture(scope="module")
def maker(make_potential: Callable[..., Potential]) -> Maker:
    return Maker(make_potential)


def make_cell(kind: str, size: float, generator: np.random.Generator) -> np.ndarray:
    """A cell of a kind, fit for atoms in a box of that size, Å."""
    cell = size * np.eye(3)
    if kind == "left-handed":
        cell = cell[[1, 0, 2]]
    elif kind == "skewed":
        cell = cell + 0.4 * size * generator.normal(size=(3, 3))
    elif kind == "tiny":
        cell = cell * 1.2 / size
    elif kind == "singular":
        cell[2] = cell[0] + cell[1]
    elif kind == "flat":
        cell[2] *= 1e-6
    elif kind == "nan":
        cell[1, 1] = np.nan
    return cell * (0.0 if kind in ("none", "zero") else 1.0)


def make_atoms(generator: np.random.Generator, number: int, kind: str, pbc: tuple[bool, bool, bool]) -> Atoms:
    """Atoms of H, C and O in a box, which is small: some are near each other."""
    if kind == "tiny":
        number = min(number, 2)
    size = 1.7 * max(number, 1) ** (1 / 3) + 0.5
    positions = size * generator.random((number, 3))
    return Atoms(generator.choice([1, 6, 8], number), positions, cell=make_cell(kind, size, generator), pbc=pbc)


def change(atoms: Atoms, operation: str, generator: np.random.Generator, kind: str) -> Atoms:
    """The structure after an operation that changes it; a new one for those that ASE does not do in place."""
    if operation == "move a little":
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
    elif operation == "move far":
        atoms.positions += 10.0 ** generator.uniform(0, 10) * generator.normal(size=(1, 3))
    elif operation == "other atoms":
        return make_atoms(generator, int(generator.integers(1, 31)), kind, tuple(atoms.pbc))
    elif operation == "other cell":
        if not (kind == "tiny" and len(atoms) > 2):
            atoms.set_cell(make_cell(kind, 1.7 * len(atoms) ** (1 / 3) + 0.5, generator))
    elif operation == "other pbc":
        atoms.pbc = generator.random(3) < 0.5
    elif operation == "no atoms":
        return Atoms()
    elif len(atoms):
        where = int(generator.integers(len(atoms)))
        if operation == "bad position":
            atoms.positions[where, 1] = generator.choice([np.nan, np.inf, 1e300, -1e12])
        elif operation == "unknown element":
            atoms.numbers[where] = generator.choice([0, 7, 92])
        elif operation == "coincident":
            atoms.positions[where] = atoms.positions[0] + generator.choice([0.0, 1e-9, 1e-3]) * (where > 0)
        elif operation == "broken array":
            atoms.arrays["numbers"] = atoms.numbers[:-1]
    return atoms


def call(calculator: PonitaCalculator, operation: str, atoms: Atoms) -> None:
    """What an operation asks the calculator for."""
    if operation == "unknown property":
        calculator.get_property("dipole", atoms)
    elif operation == "warm up":
        calculator.warmup(atoms, stress=bool(atoms.pbc.all()))
    elif operation == "stress":
        calculator.get_property("stress", atoms)
    elif operation == "energy":
        calculator.get_property("energy", atoms)
    calculator.get_property("forces", atoms)


def compare(tested: PonitaCalculator, reference: PonitaCalculator, atoms: Atoms, stress: bool) -> None:
    """Results are equal as far as sums in the number format can be."""
    tolerance = 1e-4 if tested.potential.dtype == torch.float32 else 1e-9
    for name in ("energy", "forces", *(["stress"] if stress else [])):
        found, expected = tested.get_property(name, atoms), reference.get_property(name, atoms)
        # Energies of interaction: the references are added in double precision.
        size = 1.0 + np.abs(reference.results["forces"]).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size * (1 + len(atoms)), err_msg=name)
        assert np.isfinite(found).all()


CASES = st.tuples(
    st.integers(0, len(OPTIONS) - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(CELLS)), min_size=1, max_size=6),
)


@given(case=CASES)
def test_one_calculator(case: Any, maker: Maker, count: Callable[[str], None]) -> None:
    option, seed, number, pbc, operations = case
    calculator, generator = maker.kept(option), np.random.default_rng(seed)
    calculator.discard_state()
    start = ("cubic", "left-handed", "skewed", "tiny")[seed % 4]  # most cases begin with what can be calculated
    atoms = make_atoms(generator, number, start, pbc)
    good: tuple[Atoms, np.ndarray] | None = None
    accepted = True
    for operation, kind in operations:
        if operation == "discard":
            calculator.discard_state()
            good = None
        elif operation in ("copy", "pickle") and OPTIONS[option].get("cheap"):
            calculator = copy.deepcopy(calculator) if operation == "copy" else pickle.loads(pickle.dumps(calculator))
        elif operation == "back" and good is not None:
            atoms = good[0].copy()
        atoms = change(atoms, operation, generator, kind)
        try:
            call(calculator, operation, atoms)
        except REFUSALS as error:
            accepted = False
            assert len(str(error)) > 10, f"{type(error).__name__} without a sentence: {error}"
            with pytest.raises(REFUSALS):  # refused because of the structure, not of what was before
                call(maker.without_past(option), operation, atoms)
            with pytest.raises(REFUSALS):  # again, and not the results of the structure before
                call(calculator, operation, atoms)
            if good is not None and operation != "unknown property":
                # A new neighbour list may have another order, and sums are rounded in another way.
                close = (1e-4 if calculator.potential.dtype == torch.float32 else 1e-9) * (1 + np.abs(good[1]).max())
                np.testing.assert_allclose(calculator.get_property("forces", good[0]), good[1], rtol=0, atol=close)
            if "broken array" in (operation,):
                break  # ASE cannot copy these atoms any more
        else:
            compare(calculator, maker.without_past(option), atoms, operation == "stress")
            good = atoms.copy(), calculator.results["forces"].copy()
    count("accepted" if accepted else "refused")
