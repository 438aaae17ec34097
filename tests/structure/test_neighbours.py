"""Neighbour lists against ASE's own, brute force and themselves."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from neighbour_cases import BOX, GOOD, PBCS, Floats, cutoffs_at_a_distance, random_cell
from numpy.typing import NDArray

from ponita_ff.structure import neighbours as module
from ponita_ff.structure.neighbours import NeighbourList, SkinCache, neighbour_list

AXES = "abc"
ase_list: Any = primitive_neighbor_list


def rows(edges: NeighbourList) -> NDArray[np.int64]:
    """Edges as rows (i, j, Sx, Sy, Sz), shape (E, 5)."""
    return np.column_stack([edges.receivers, edges.senders, edges.shifts])


def edge_set(i: Any, j: Any, shifts: Any) -> set[tuple[int, ...]]:
    return set(map(tuple, np.column_stack([i, j, shifts]).tolist()))


def check_invariants(edges: NeighbourList, positions: Floats, cell: Floats | None) -> None:
    """All that must hold for any list, whatever the system."""
    count = len(edges.receivers)
    assert edges.receivers.shape == edges.senders.shape == edges.reverse.shape == (count,)
    assert edges.shifts.shape == (count, 3)
    for array in (edges.receivers, edges.senders, edges.shifts, edges.reverse):
        assert array.dtype == np.int64
    # Sorted by receiver, sender, shift, and therefore without duplicates if strictly ascending.
    table = rows(edges)
    assert np.array_equal(np.lexsort(table.T[::-1]), np.arange(count))
    assert len(np.unique(table, axis=0)) == count
    assert not ((edges.receivers == edges.senders) & ~edges.shifts.any(axis=1)).any()
    # Reverse is an involution, and is what its name says.
    reverse = edges.reverse
    assert np.array_equal(reverse[reverse], np.arange(count))
    assert np.array_equal(edges.receivers[reverse], edges.senders)
    assert np.array_equal(edges.shifts[reverse], -edges.shifts)
    vectors = edges.vectors(positions, cell)
    assert np.array_equal(vectors[reverse], -vectors)
    assert (np.linalg.norm(vectors, axis=1) < edges.cutoff).all()
    matrix = np.zeros((3, 3)) if cell is None else cell
    expected = positions[edges.senders] - positions[edges.receivers] + edges.shifts @ matrix
    assert np.allclose(vectors, expected, rtol=0, atol=1e-9)


def assert_same(a: NeighbourList, b: NeighbourList) -> None:
    for name in ("receivers", "senders", "shifts", "reverse"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.num_atoms, a.cutoff) == (b.num_atoms, b.cutoff)


def brute_force(positions: Floats, cutoff: float, cell: Floats, pbc: Any) -> set[tuple[int, ...]]:
    """Every pair and image, of atoms that may be up to a few cells outside."""
    reach = 12
    found = set()
    ranges = [range(-reach, reach + 1) if periodic else range(1) for periodic in pbc]
    for shift in itertools.product(*ranges):
        deltas = positions[None] - positions[:, None] + np.array(shift) @ cell
        for i, j in np.argwhere(np.linalg.norm(deltas, axis=-1) < cutoff).tolist():
            if i != j or any(shift):
                found.add((i, j, *shift))
    return found


# ---------------------------------------------------------------------------- against ASE


@pytest.mark.parametrize("pbc", PBCS)
def test_same_as_ase_on_random_systems(pbc: tuple[bool, bool, bool]) -> None:
    """8 x 40 systems: triclinic, small, left-handed, unwrapped, zero open cell vectors."""
    rng = np.random.default_rng([1, *pbc])
    handedness = set()
    smaller = 0
    for trial in range(40):
        cell = random_cell(rng)
        handedness.add(np.sign(np.linalg.det(cell)))
        # ASE gets the full cell in any case: it can return wrong pairs, after minutes, if two
        # cell vectors are zero. Open cell vectors must not change the list anyway.
        full = cell.copy()
        if trial % 3 == 0:
            cell[~np.array(pbc)] = 0.0
        cutoff = rng.uniform(1.0, 6.0)
        smaller += bool((np.linalg.norm(cell, axis=1) < cutoff).any())
        natoms = int(rng.integers(1, 31)) if trial % 10 else 1
        # Far outside: some cells along periodic directions, some tens of Å along open ones.
        spread = rng.choice([0.0, 1.0, 30.0]) * rng.normal(size=(natoms, 1))
        positions = (rng.uniform(size=(natoms, 3)) + np.round(spread)) @ full
        edges = neighbour_list(positions, cutoff, cell, pbc)
        check_invariants(edges, positions, cell)
        i, j, d, s = ase_list("ijdS", pbc, full, positions, cutoff + 1e-9)
        sure = d < cutoff - 1e-9
        found = edge_set(edges.receivers, edges.senders, edges.shifts)
        assert edge_set(i[sure], j[sure], s[sure]) <= found <= edge_set(i, j, s)
    assert handedness == {-1.0, 1.0}
    assert smaller > 5


@pytest.mark.parametrize("pbc", PBCS)
def test_same_as_brute_force(pbc: tuple[bool, bool, bool]) -> None:
    """ASE and matscipy share their algorithm; this does not."""
    rng = np.random.default_rng([2, *pbc])
    for _ in range(2):
        cell = random_cell(rng, 2.0, 4.0)
        positions = rng.uniform(-2, 2, size=(5, 3)) @ cell
        edges = neighbour_list(positions, 3.0, cell, pbc)
        expected = brute_force(positions, 3.0, cell, pbc)
        assert edge_set(edges.receivers, edges.senders, edges.shifts) == expected


def test_large_molecule_uses_bins_and_agrees_with_dense() -> None:
    """The two methods for molecules give the same arrays, bit for bit."""
    rng = np.random.default_rng(3)
    none = np.zeros(3, dtype=bool)
    for natoms in (2, 30, module.DENSE_ATOMS, module.DENSE_ATOMS + 1):
        for flatten in (False, True):  # planar molecules have no shrink-wrapped cell
            positions = rng.uniform(-9, 9, size=(natoms, 3)) * ([1, 1, 0] if flatten else 1)
            dense = module._dense(positions, 4.0)
            assert_same(module._binned(positions, 4.0, np.zeros((3, 3)), none), dense)
            assert_same(neighbour_list(positions, 4.0), dense)
            check_invariants(dense, positions, None)


def test_wrapping_changes_shifts_only() -> None:
    """Whole translations of atoms, even millions, leave every displacement as it was."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        cell = np.round(random_cell(rng) * 64) / 64  # exact arithmetic below
        positions = np.round(rng.uniform(size=(12, 3)) @ cell * 64) / 64
        moves = rng.integers(-2_000_000, 2_000_000, size=(12, 3))
        a = neighbour_list(positions, 4.01, cell, True)
        b = neighbour_list(positions + moves @ cell, 4.01, cell, True)
        shifts = b.shifts + moves[b.senders] - moves[b.receivers]
        assert np.array_equal(rows(a)[:, :2], rows(b)[:, :2])
        assert np.array_equal(a.shifts, shifts)
        check_invariants(b, positions + moves @ cell, cell)


def test_atoms_outside_along_open_directions_have_no_shift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the engine itself would report one, as some versions of matscipy do."""
    engine = vars(module)["_matscipy_neighbour_list"]

    def reports_shifts(*args: Any, **kwargs: Any) -> Any:
        i, j, shifts = engine(*args, **kwargs)
        shifts[:, ~kwargs["pbc"]] += (i - j)[:, None]
        return i, j, shifts

    monkeypatch.setattr(module, "_matscipy_neighbour_list", reports_shifts)
    monkeypatch.setattr(module, "DENSE_ATOMS", 0)
    for pbc in PBCS[:-1]:
        positions = np.array([[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5], [7.0, 7.0, 7.0], [7.5, 7, 7]])
        edges = neighbour_list(positions, 1.9, 6.0 * np.eye(3), pbc)
        assert (edges.shifts[:, ~np.array(pbc)] == 0).all()
        assert {(0, 1), (1, 0), (2, 3), (3, 2)} <= set(map(tuple, rows(edges)[:, :2].tolist()))


def test_huge_vacuum_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding the search box changes nothing but the memory, for open and periodic directions."""
    rng = np.random.default_rng(5)
    for pbc in PBCS:
        cell = random_cell(rng, 2e6, 3e6)
        centres = rng.uniform(size=(6, 3)) @ cell
        centres[0] = 0.0  # a cluster across all boundaries
        positions = np.concatenate([rng.normal(size=(15, 3)) * 1.5 + c for c in centres])
        cutoff = 3.0
        edges = neighbour_list(positions, cutoff, cell, pbc)
        check_invariants(edges, positions, cell)
        assert len(edges.receivers) == len(module._dense(positions, cutoff).receivers) > 300
    # A box dense enough to produce spurious pairs when folded.
    for pbc in PBCS:
        cell = random_cell(rng, 12.0, 15.0)
        positions = rng.uniform(-1, 2, size=(200, 3)) @ cell
        expected = neighbour_list(positions, 2.0, cell, pbc)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MIN_BINS", 1)
            patch.setattr(module, "BINS_PER_ATOM", 0.1)
            assert (module._search_box(positions, 2.0, cell, np.array(pbc))[2] > 1).any()
            assert_same(neighbour_list(positions, 2.0, cell, pbc), expected)


@pytest.mark.parametrize("pbc", PBCS)
def test_search_box_holds_all_atoms_along_open_directions(pbc: tuple[bool, bool, bool]) -> None:
    """Atoms outside would all end up in the outermost bins: right, but quadratically slow."""
    rng = np.random.default_rng(13)
    cell = random_cell(rng)
    positions = rng.normal(size=(300, 3)) * 20 + 500
    box, fractional, _ = module._search_box(positions, 3.0, cell, np.array(pbc))
    inside = fractional[:, ~np.array(pbc)]
    assert ((inside >= 0) & (inside < 1)).all()
    assert abs(np.linalg.det(box)) > 1.0


def test_memory_of_vacuum_is_bounded() -> None:
    folds = module._search_box(
        np.array([[0.0, 0, 0], [1e6, 1e6, 1e6]]), 5.0, np.zeros((3, 3)), np.zeros(3, dtype=bool)
    )[2]
    assert (1e6 / 5.0 / folds).prod() <= module.MIN_BINS


def test_lexsort_fallback_sorts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order does not depend on whether the sort keys fit into one integer."""
    rng = np.random.default_rng(6)
    cell = random_cell(rng, 2.0, 4.0)
    positions = rng.uniform(-2, 2, size=(9, 3)) @ cell
    expected = neighbour_list(positions, 5.0, cell, True)
    monkeypatch.setattr(math, "prod", lambda values: 2**63)
    assert_same(neighbour_list(positions, 5.0, cell, True), expected)


# ---------------------------------------------------------------------------- special systems


@pytest.mark.parametrize(("cell", "pbc"), [(None, False), (np.eye(3) * 4, True)])
def test_no_atoms(cell: Floats | None, pbc: bool) -> None:
    edges = neighbour_list(np.empty((0, 3)), 5.0, cell, pbc)
    check_invariants(edges, np.empty((0, 3)), cell)
    assert edges.num_atoms == 0 and len(edges.receivers) == 0


def test_one_atom() -> None:
    assert len(neighbour_list([[1.0, 2.0, 3.0]], 5.0).receivers) == 0
    assert len(neighbour_list([[1.0, 2.0, 3.0]], None).receivers) == 0
    # Simple cubic: 6 images at 2 Å, 12 at 2.83 Å, 8 at 3.46 Å, 6 at 4 Å.
    for cutoff, count in ((1.9, 0), (2.0, 0), (2.1, 6), (3.0, 18), (3.5, 26), (4.1, 32)):
        edges = neighbour_list([[1.0, 2.0, 3.0]], cutoff, 2.0 * np.eye(3), True)
        assert len(edges.receivers) == count
    wire = neighbour_list([[1.0, 2.0, 3.0]], 4.1, np.diag([0.0, 0.0, 2.0]), [False, False, True])
    assert wire.shifts.tolist() == [[0, 0, -2], [0, 0, -1], [0, 0, 1], [0, 0, 2]]
    assert wire.reverse.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("cutoff", [None, math.inf])
def test_all_pairs_of_a_molecule(cutoff: float | None) -> None:
    rng = np.random.default_rng(7)
    for natoms in (2, 9, module.DENSE_ATOMS + 5):
        positions = rng.normal(size=(natoms, 3)) * 1e8
        edges = neighbour_list(positions, cutoff)
        check_invariants(edges, positions, None)
        assert len(edges.receivers) == natoms * (natoms - 1)
        assert edges.cutoff == math.inf


def test_direction_of_an_edge() -> None:
    """Receiver 0, sender 1 at +x: the displacement points from receiver to sender."""
    edges = neighbour_list([[0.0, 0, 0], [1.0, 0, 0]], 2.0)
    assert rows(edges)[:, :2].tolist() == [[0, 1], [1, 0]]
    assert edges.vectors([[0.0, 0, 0], [1.0, 0, 0]]).tolist() == [[1, 0, 0], [-1, 0, 0]]
    # Across the boundary: atom 1 at x = 3 is at -1 from atom 0 when shifted by -1 cell.
    edges = neighbour_list([[0.0, 0, 0], [3.0, 0, 0]], 1.5, 4.0 * np.eye(3), [True, False, False])
    assert rows(edges).tolist() == [[0, 1, -1, 0, 0], [1, 0, 1, 0, 0]]
    assert edges.vectors([[0.0, 0, 0], [3.0, 0, 0]], 4.0 * np.eye(3))[0].tolist() == [-1, 0, 0]


def test_accepts_other_dtypes_and_does_not_keep_or_change_inputs() -> None:
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 3, 0]], dtype=np.int32)
    edges = neighbour_list(positions, 2)
    assert len(edges.receivers) == 2
    assert len(neighbour_list(positions.astype(np.float32), np.float64(2)).receivers) == 2
    cell, points = np.diag([5.0, 0.0, 0.0]), positions * 3.0
    before = cell.copy(), points.copy()
    neighbour_list(points, 4.0, cell, [True, False, False])
    assert np.array_equal(cell, before[0]) and np.array_equal(points, before[1])


# ---------------------------------------------------------------------------- at the cutoff


def test_pairs_within_rounding_of_the_cutoff() -> None:
    """A cutoff within 1 ulp of a distance: the list is symmetric, and strict to the last bit."""
    seen = {False: 0, True: 0}
    for positions, cell, pbc, loose, edge, distance, cutoff in cutoffs_at_a_distance(400):
        edges = neighbour_list(positions, cutoff, cell, pbc)
        check_invariants(edges, positions, cell)
        found = rows(loose)[edge].tolist() in rows(edges).tolist()
        assert found == (distance < cutoff)
        seen[found] += 1
        cached = SkinCache(cutoff, 0.4).neighbours(positions, [1, 1], cell, pbc)
        assert_same(cached, edges)
    assert min(seen.values()) > 100


def test_dense_list_is_strict_at_the_cutoff() -> None:
    positions = np.array([[0.0, 0, 0], [3.0, 4.0, 0.0]])
    assert len(neighbour_list(positions, 5.0).receivers) == 0
    assert len(neighbour_list(positions, math.nextafter(5.0, 6)).receivers) == 2


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 2, 3), (0,)])
def test_error_positions_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"positions must have shape \(N, 3\)"):
        neighbour_list(np.zeros(shape), 5.0)


@pytest.mark.parametrize("positions", [[["x", "y", "z"]], [[1j, 0, 0]], [[0, 0, 0], [0]], None])
def test_error_positions_not_numbers(positions: Any) -> None:
    with pytest.raises(ValueError, match="positions must be an array of real numbers"):
        neighbour_list(positions, 5.0)


@pytest.mark.parametrize(("bad", "text"), [(math.nan, "not finite"), (-math.inf, "not finite"), (2e9, "larger than")])
def test_error_positions_values_name_first_atom(bad: float, text: str) -> None:
    positions = GOOD.copy()
    positions[2, 1] = positions[3, 0] = bad
    with pytest.raises(ValueError, match=f"position of atom 2 is .*{text}"):
        neighbour_list(positions, 5.0)
    with pytest.raises(ValueError, match="atom 2"):
        neighbour_list(positions, 5.0, BOX, True)
    with pytest.raises(ValueError, match="atom 2"):
        neighbour_list(positions, None)


@pytest.mark.parametrize("cutoff", [0, -1.0, math.nan, -math.inf, "5", True, [5.0]])
def test_error_cutoff(cutoff: Any) -> None:
    with pytest.raises(ValueError, match="cutoff must be a length in Å greater than 0"):
        neighbour_list(GOOD, cutoff)
    with pytest.raises(ValueError, match="cutoff must be a length in Å greater than 0"):
        SkinCache(cutoff)


@pytest.mark.parametrize("cutoff", [None, math.inf])
def test_error_all_pairs_with_pbc(cutoff: float | None) -> None:
    with pytest.raises(ValueError, match=r"pbc is True along b, .*pass a finite cutoff"):
        neighbour_list(GOOD, cutoff, BOX, [False, True, False])
    with pytest.raises(ValueError, match="pass a finite cutoff"):
        SkinCache(cutoff).update(GOOD, np.ones(4), BOX, True)


@pytest.mark.parametrize("pbc", [1, "xyz", [True, True], [1, 1, 0], None, [[True, True, True]]])
def test_error_pbc(pbc: Any) -> None:
    with pytest.raises(ValueError, match="pbc must be True, False or three bools"):
        neighbour_list(GOOD, 5.0, BOX, pbc)


@pytest.mark.parametrize("axis", range(3))
def test_error_missing_cell_vector(axis: int) -> None:
    name = AXES[axis]
    cell = BOX.copy()
    cell[axis] = 0.0
    pbc = np.arange(3) == axis
    text = f"pbc is True along {name} but cell vector {name} is zero or missing"
    for periodic in (True, pbc):
        with pytest.raises(ValueError, match=text):
            neighbour_list(GOOD, 5.0, cell, periodic)
    with pytest.raises(ValueError, match=text):
        neighbour_list(GOOD, 5.0, None, pbc)
    neighbour_list(GOOD, 5.0, cell, ~pbc)  # fine along the others


def test_error_singular_cell() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        cell = random_cell(rng)
        cell[2] = cell[:2].T @ rng.normal(size=2)
        with pytest.raises(ValueError, match="singular or too flat"):
            neighbour_list(GOOD, 5.0, cell, True)
        cell = random_cell(rng)
        cell[1] = -0.7 * cell[0]
        for pbc in (True, [True, True, False]):
            with pytest.raises(ValueError, match="singular or too flat"):
                neighbour_list(GOOD, 5.0, cell, pbc)
        neighbour_list(GOOD, 5.0, cell, [True, False, True])  # the dependent one is not used
    with pytest.raises(ValueError, match="thickness along c is 1e-05 Å"):
        neighbour_list(GOOD, 5.0, np.diag([5.0, 5.0, 1e-5]), True)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (np.ones(3), r"cell must have shape \(3, 3\)"),
        (np.ones((3, 2)), r"cell must have shape \(3, 3\)"),
        (np.full((3, 3), math.nan), "cell must be finite"),
        ([["a"] * 3] * 3, "cell must be an array of real numbers"),
    ],
)
def test_error_cell(cell: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        neighbour_list(GOOD, 5.0, cell, True)


def test_error_vectors() -> None:
    edges = neighbour_list(GOOD, 4.0, BOX, True)
    with pytest.raises(ValueError, match=r"positions must have shape \(4, 3\)"):
        edges.vectors(GOOD[:3], BOX)
    with pytest.raises(ValueError, match="cell is None but this neighbour list has edges that"):
        edges.vectors(GOOD)


@pytest.mark.parametrize("skin", [-0.1, math.nan, math.inf, "1", None, True])
def test_error_skin(skin: Any) -> None:
    with pytest.raises(ValueError, match="skin must be a finite length"):
        SkinCache(5.0, skin)


def test_error_numbers() -> None:
    with pytest.raises(ValueError, match=r"numbers must have shape \(4,\)"):
        SkinCache(5.0).update(GOOD, [1, 1, 1])


# ---------------------------------------------------------------------------- SkinCache


def test_skin_cache_over_a_random_walk() -> None:
    """300 steps with in-place moves, wraps and changes of everything: always the fresh list."""
    rng = np.random.default_rng(10)
    cache = SkinCache(4.0, skin=0.8)
    cell = random_cell(rng, 5.0, 9.0)
    positions = rng.uniform(size=(20, 3)) @ cell
    numbers = rng.integers(1, 9, size=20)
    pbc = np.array([True, True, True])
    changes = 0
    for step in range(300):
        positions += rng.normal(size=positions.shape) * 0.05
        rebuilds = cache.rebuilds
        must_rebuild = True
        if step % 37 == 5:  # wrap back, in place
            inside = positions @ np.linalg.inv(cell)
            inside[:, pbc] -= np.floor(inside[:, pbc])
            must_rebuild = bool(np.abs(inside @ cell - positions).max() > 1.0)
            positions[:] = inside @ cell
        elif step % 41 == 7:
            cell *= 1.0 + 1e-12
        elif step % 43 == 9:
            pbc[step % 3] ^= True
        elif step % 47 == 11:
            numbers[step % len(numbers)] += 1
        elif step % 53 == 13:
            positions = np.concatenate([positions, positions[:1] + 1.5])
            numbers = np.append(numbers, 1)
        elif step % 59 == 17:
            positions, numbers = positions[:-1].copy(), numbers[:-1].copy()
        else:
            must_rebuild = step == 0
        changes += must_rebuild
        edges = cache.neighbours(positions, numbers, cell, pbc)
        assert_same(edges, neighbour_list(positions, 4.0, cell, pbc))
        check_invariants(edges, positions, cell)
        if must_rebuild:
            assert cache.rebuilds == rebuilds + 1
        superset, rebuilt = cache.update(positions, numbers, cell, pbc)
        assert not rebuilt
        assert superset.cutoff == pytest.approx(4.8)
        assert set(map(tuple, rows(edges))) <= set(map(tuple, rows(superset)))
    assert changes > 25
    assert changes < cache.rebuilds < 150


def test_skin_cache_molecule_rebuilds_seldom() -> None:
    rng = np.random.default_rng(11)
    for cutoff in (3.0, None):
        cache = SkinCache(cutoff)
        positions = rng.uniform(0, 4, size=(9, 3))
        for _ in range(100):
            positions += rng.normal(size=(9, 3)) * 0.02
            assert_same(cache.neighbours(positions, np.ones(9)), neighbour_list(positions, cutoff))
        assert cache.rebuilds == 1 if cutoff is None else 2 <= cache.rebuilds < 40


def test_skin_cache_threshold() -> None:
    """Half the skin, of one atom, since the last build (not since the last call)."""
    positions = np.array([[0.0, 0, 0], [3.0, 0, 0]])
    cache = SkinCache(5.0, skin=0.5)
    outcomes = []
    for x in (0.0, 0.1, 0.2, 0.2499, 0.2501, 0.4, 0.5000, 0.5003):
        positions[1, 2] = x
        outcomes.append(cache.update(positions, [1, 1])[1])
    assert outcomes == [True, False, False, False, True, False, False, True]
    assert cache.rebuilds == 3


def test_skin_cache_worst_case_approach() -> None:
    """Two atoms that approach head-on by almost half the skin each are not missed."""
    rng = np.random.default_rng(12)
    for _ in range(300):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        start = rng.normal(size=3) * 1e5
        apart = rng.uniform(5.5, 5.5 + 1e-9)
        positions = np.array([start, start + apart * direction])
        cache = SkinCache(5.0, skin=0.5)
        cache.update(positions, [1, 1])
        for fraction in (0.5 - 1e-9, 0.5, 0.5 + 1e-9):
            moved = positions + fraction * 0.5 * np.array([direction, -direction])
            assert_same(cache.neighbours(moved, [1, 1]), neighbour_list(moved, 5.0))


@pytest.mark.parametrize("changed", ["cell", "pbc", "numbers", "count", "wrap"])
def test_skin_cache_rebuilds_on_any_change(changed: str) -> None:
    positions = np.array([[0.1, 0.2, 0.3], [2.0, 2.0, 2.0]])
    numbers = np.array([6, 8])
    cell, pbc = 5.0 * np.eye(3), np.array([True, True, False])
    cache = SkinCache(3.0, skin=1.0)
    assert cache.update(positions, numbers, cell, pbc)[1]
    assert not cache.update(positions, numbers, cell, pbc)[1]
    # All changed in place, as an ASE Atoms object would be: the cache must hold copies.
    if changed == "cell":
        cell[1, 0] = 1e-15
    elif changed == "pbc":
        pbc[1] = False
    elif changed == "numbers":
        numbers[:] = numbers[::-1].copy()
    elif changed == "wrap":
        positions[0, 0] += 5.0
    else:
        positions, numbers = positions[:1], numbers[:1]
    edges, rebuilt = cache.update(positions, numbers, cell, pbc)
    assert rebuilt and cache.rebuilds == 2
    assert_same(edges, neighbour_list(positions, 4.0, cell, pbc))


def test_skin_zero_always_rebuilds() -> None:
    cache = SkinCache(5.0, skin=0)
    for count in range(1, 4):
        assert_same(cache.neighbours(GOOD, np.ones(4)), neighbour_list(GOOD, 5.0))
        assert cache.rebuilds == count


def test_skin_cache_raises_on_nan_and_recovers() -> None:
    cache = SkinCache(6.0)
    numbers = np.ones(4)
    cache.update(GOOD, numbers)
    broken = GOOD.copy()
    broken[1] = math.nan
    for call in (cache.update, cache.neighbours):
        with pytest.raises(ValueError, match="position of atom 1"):
            call(broken, numbers)
    assert_same(cache.neighbours(GOOD + 0.1, numbers), neighbour_list(GOOD + 0.1, 6.0))
    assert cache.rebuilds == 1


def test_skin_cache_no_atoms() -> None:
    cache = SkinCache(6.0)
    for _ in range(2):
        assert cache.neighbours(np.empty((0, 3)), np.empty(0)).num_atoms == 0
