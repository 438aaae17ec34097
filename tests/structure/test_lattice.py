"""Checks of positions, cells, periodicity and cutoffs: what passes, and the message for what does not."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from neighbour_cases import PBCS, random_cell

from ponita_ff.structure.lattice import (
    MAX_COORDINATE,
    MAX_IMAGES,
    MIN_THICKNESS,
    as_floats,
    check_cell,
    check_cutoff,
    check_lattice,
    check_pbc,
    check_positions,
    complete_cell,
    is_number,
)

BOX = 5.0 * np.eye(3)
TRICLINIC = np.array([[4.1, 0.3, -0.2], [1.2, 3.8, 0.4], [-0.7, 0.9, 4.4]])


def refused(message: str) -> Any:
    """Raises a ValueError whose message holds this text."""
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize("value", [1, 1.5, -2, math.inf, math.nan, np.float32(1), np.int64(3)])
def test_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, np.bool_(True), "1", None, 1j, [1.0], np.ones(1)])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)


def test_as_floats_converts_whole_numbers_and_leaves_float64_alone() -> None:
    for values in ([[1, 2]], np.array([[1, 2]], dtype=np.uint8), np.array([[1, 2]], dtype=np.float32)):
        array = as_floats(values, "x")
        assert array.dtype == np.float64
        assert array.tolist() == [[1.0, 2.0]]
    exact = np.ones(3)
    assert as_floats(exact, "x") is exact


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([True, False], "dtype is bool"),
        ([1j], "dtype is complex128"),
        (["a"], "dtype is <U1"),
        (None, "dtype is object"),
        ([[1.0], [1.0, 2.0]], "inhomogeneous"),
    ],
)
def test_as_floats_names_the_argument_and_the_reason(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^positions must be an array of real numbers, but .*{reason}"):
        as_floats(values, "positions")


@pytest.mark.parametrize(("cutoff", "expected"), [(None, math.inf), (math.inf, math.inf), (4, 4.0), (1e-9, 1e-9)])
def test_cutoffs(cutoff: Any, expected: float) -> None:
    checked = check_cutoff(cutoff)
    assert checked == expected
    assert type(checked) is float


@pytest.mark.parametrize("cutoff", [0.0, -0.0, -1, math.nan, -math.inf, "4", True, [4.0]])
def test_wrong_cutoffs(cutoff: Any) -> None:
    with refused(
        f"cutoff must be a length in Å greater than 0, but is {cutoff!r}: pass a positive number, or None for all "
        "pairs of a molecule"
    ):
        check_cutoff(cutoff)


def test_positions_up_to_the_largest_coordinate() -> None:
    points = np.array([[MAX_COORDINATE, -MAX_COORDINATE, 0.0]])
    assert check_positions(points) is points
    assert check_positions(np.empty((0, 3))).shape == (0, 3)
    assert check_positions([[1, 2, 3]]).dtype == np.float64


@pytest.mark.parametrize("shape", [(3,), (0,), (4, 2), (3, 4), (2, 2, 3), ()])
def test_positions_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with refused(f"positions must have shape (N, 3), one row for each atom, but have shape {shape}"):
        check_positions(np.zeros(shape))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (math.nextafter(MAX_COORDINATE, math.inf), "larger than 1e+09 Å"),
        (-2e9, "larger than 1e+09 Å"),
    ],
)
def test_wrong_positions_name_the_first_such_atom(value: float, problem: str) -> None:
    points = np.zeros((5, 3))
    points[2, 1] = points[4, 0] = value
    with refused(f"position of atom 2 is {[0.0, value, 0.0]}, {problem}: check the input structure and its units"):
        check_positions(points)


@pytest.mark.parametrize(
    ("pbc", "expected"),
    [
        (True, [True] * 3),
        (False, [False] * 3),
        (np.bool_(True), [True] * 3),
        ([True, False, True], [True, False, True]),
        ((False, False, True), [False, False, True]),
    ],
)
def test_periodicity(pbc: Any, expected: list[bool]) -> None:
    flags = check_pbc(pbc)
    assert flags.dtype == np.bool_
    assert flags.tolist() == expected


@pytest.mark.parametrize("pbc", [1, 0, None, "xyz", [1, 0, 1], [True, False], [True], [[True] * 3]])
def test_wrong_periodicity(pbc: Any) -> None:
    with refused(f"pbc must be True, False or three bools, but is {pbc!r}"):
        check_pbc(pbc)


def test_cells_are_taken_as_they_are() -> None:
    assert check_cell(TRICLINIC) is TRICLINIC
    assert check_cell([[1, 0, 0], [0, 0, 0], [0, 0, 2]]).tolist() == [[1.0, 0, 0], [0, 0, 0], [0, 0, 2.0]]


@pytest.mark.parametrize("shape", [(3,), (6,), (3, 2), (4, 3), (1, 3, 3)])
def test_cells_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with refused(f"cell must have shape (3, 3) with the cell vectors as rows, but has shape {shape}"):
        check_cell(np.ones(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_cells_that_are_not_finite(value: float) -> None:
    cell = BOX.copy()
    cell[1, 2] = value
    with refused(f"cell must be finite, but is {cell.tolist()}"):
        check_cell(cell)
    with refused("cell must be an array of real numbers, but dtype is <U1"):
        check_cell([["a"] * 3] * 3)


@pytest.mark.parametrize("pbc", PBCS)
def test_lattices_that_fit(pbc: tuple[bool, bool, bool]) -> None:
    cell, flags = check_lattice(TRICLINIC, pbc, 4.0)
    assert np.array_equal(cell, TRICLINIC)
    assert tuple(flags) == pbc
    # Vectors along open directions may be missing.
    check_lattice(np.where(np.array(pbc)[:, None], TRICLINIC, 0.0), pbc, 4.0)


def test_a_molecule_needs_no_cell_whatever_the_cutoff() -> None:
    for cutoff in (4.0, math.inf):
        cell, flags = check_lattice(None, False, cutoff)
        assert np.array_equal(cell, np.zeros((3, 3)))
        assert not flags.any()
    assert np.array_equal(check_lattice(np.zeros((3, 3)), False, 4.0)[0], np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("pbc", "axes"), [(True, "a and b and c"), ([False, True, False], "b"), ([True, False, True], "a and c")]
)
def test_all_pairs_of_a_crystal_are_refused(pbc: Any, axes: str) -> None:
    with refused(
        f"cutoff is None or infinite (all pairs) but pbc is True along {axes}, where atoms have infinitely many "
        "images: pass a finite cutoff or pbc=False"
    ):
        check_lattice(BOX, pbc, math.inf)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("missing", ["vector", "cell"])
def test_periodic_directions_without_a_vector(axis: int, missing: str) -> None:
    name = "abc"[axis]
    cell = None
    if missing == "vector":
        cell = BOX.copy()
        cell[axis] = 0.0
    with refused(
        f"pbc is True along {name} but cell vector {name} is zero or missing: pass a cell with that vector or set pbc "
        f"to False along {name}"
    ):
        check_lattice(cell, np.arange(3) == axis, 4.0)


@pytest.mark.parametrize("cutoff", [0.5, 4.0, 2000.0])
def test_the_thinnest_cell(cutoff: float) -> None:
    thinnest = max(MIN_THICKNESS, cutoff / MAX_IMAGES)
    for axis in range(3):
        for pbc in (True, np.arange(3) == axis):
            lengths = np.full(3, 5000.0)
            lengths[axis] = thinnest * 1.001
            check_lattice(np.diag(lengths), pbc, cutoff)
            lengths[axis] = thinnest * 0.999
            found = f"thickness along {'abc'[axis]} is {lengths[axis]:.3g} Å"
            with refused(f"{found}, at least {thinnest:.3g} Å is needed with cutoff {cutoff:g} Å"):
                check_lattice(np.diag(lengths), pbc, cutoff)


def test_flat_cells_of_long_vectors_are_refused() -> None:
    generator = np.random.default_rng(0)
    for first, second in itertools.permutations(range(3), 2):
        cell = random_cell(generator)
        cell[first] = -0.7 * cell[second]
        flat = np.isin(np.arange(3), (first, second))
        for pbc in (True, flat):
            with pytest.raises(ValueError, match=r"the cell is singular or too flat.* Pass linearly independent cell"):
                check_lattice(cell, pbc, 4.0)
        check_lattice(cell, np.arange(3) == first, 4.0)  # the other one is not used
    cell = random_cell(generator)
    cell[2] = 0.3 * cell[0] - 1.1 * cell[1]
    with refused("the cell is singular or too flat"):
        check_lattice(cell, True, 4.0)
    check_lattice(cell, (True, True, False), 4.0)


@pytest.mark.parametrize("pbc", PBCS)
def test_open_directions_are_completed_by_unit_vectors_normal_to_all_others(pbc: tuple[bool, bool, bool]) -> None:
    flags = np.array(pbc)
    cell = random_cell(np.random.default_rng(1))
    before = cell.copy()
    completed = complete_cell(cell, flags)
    assert np.array_equal(cell, before)
    assert np.array_equal(completed[flags], cell[flags])
    added = completed[~flags]
    assert np.abs(added @ added.T - np.eye(len(added))).max(initial=0.0) < 1e-14
    assert np.abs(added @ cell[flags].T).max(initial=0.0) < 1e-13
    assert abs(np.linalg.det(completed)) > 0.1
