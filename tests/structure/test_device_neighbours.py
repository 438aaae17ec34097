"""The table built by torch, slot for slot the one built from numpy's neighbour list, and its cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from neighbour_cases import BOX, GOOD, PBCS, Floats, cutoffs_at_a_distance, random_cell
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ponita_ff.structure import device_neighbours as module
from ponita_ff.structure.device_neighbours import NeighbourTable, TableCache, neighbour_table
from ponita_ff.structure.graph import build_graph
from ponita_ff.structure.neighbours import NeighbourList, SkinCache, neighbour_list

NAMES = ("neighbours", "reverse", "used")


def assert_holds(table: NeighbourTable, edges: NeighbourList, positions: Floats, cell: Floats | None) -> None:
    """The table is the one that build_graph makes of these edges, slot for slot, and vectors agree to the last bit."""
    graph = build_graph(np.ones(len(positions), dtype=np.int64), positions, None, cell, edges=edges)
    for name in NAMES:
        value = getattr(table, name)
        assert value.dtype == graph[name].dtype
        assert torch.equal(value, graph[name]), name
    assert table.offsets.dtype == torch.float64
    assert table.offsets.shape == graph.offsets.shape
    # build_graph leaves the translations to a matrix product, whose last bits are its own.
    assert torch.allclose(
        table.offsets, graph.offsets, rtol=1e-12, atol=1e-12 * float(np.abs(edges.shifts).max(initial=1))
    )
    points, used = torch.from_numpy(positions), table.used
    vectors = points[table.neighbours] - points[:, None] + table.offsets
    assert np.array_equal(vectors[used].numpy(), edges.vectors(positions, cell))
    assert torch.equal(vectors[table.neighbours, table.reverse][used], -vectors[used])
    assert torch.equal(
        table.offsets[~used], torch.tensor([1000.0, 0.0, 0.0], dtype=torch.float64).expand_as(table.offsets[~used])
    )


def check(positions: Floats, cutoff: float | None, cell: Floats | None = None, pbc: Any = False) -> NeighbourTable:
    """Table of a system, compared with numpy's."""
    table = neighbour_table(torch.from_numpy(positions), cutoff, cell, pbc)
    assert_holds(table, neighbour_list(positions, cutoff, cell, pbc), positions, cell)
    return table


# ---------------------------------------------------------------------------- the same table


@pytest.mark.parametrize("pbc", PBCS)
def test_random_systems(pbc: tuple[bool, bool, bool]) -> None:
    """Triclinic, small, left-handed, unwrapped, zero open cell vectors."""
    rng = np.random.default_rng([1, *pbc])
    smaller = edges = 0
    for trial in range(30):
        full = random_cell(rng)
        cell = full.copy()
        if trial % 3 == 0:
            cell[~np.array(pbc)] = 0.0
        cutoff = rng.uniform(1.0, 6.0)
        smaller += bool((np.linalg.norm(full, axis=1) < cutoff).any())
        natoms = int(rng.integers(1, 31)) if trial % 10 else 1
        spread = rng.choice([0.0, 1.0, 30.0]) * rng.normal(size=(natoms, 1))
        positions = (rng.uniform(size=(natoms, 3)) + np.round(spread)) @ full
        edges += int(check(positions, cutoff, cell, pbc).used.sum())
    assert smaller > 5 and edges > 300


def test_shared_systems(system: Atoms) -> None:
    for cutoff in (0.5, 4.0, 7.0):
        check(system.positions, cutoff, np.asarray(system.cell), system.pbc)


@pytest.mark.parametrize("pbc", [(True, True, True), (False, True, False), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("sheared", [False, True])
def test_two_thousand_atoms(pbc: tuple[bool, bool, bool], sheared: bool) -> None:
    rng = np.random.default_rng(2)
    cell = 27.0 * np.array([[1.0, 0, 0], [0.4, 1.1, 0], [-0.3, 0.2, 0.9]] if sheared else np.eye(3))
    positions = rng.uniform(-0.5, 1.5, size=(2000, 3)) @ cell
    table = check(positions, 4.5, cell, pbc)
    assert table.used.sum() > 2000


def test_molecules() -> None:
    rng = np.random.default_rng(3)
    for natoms in (1, 2, 9, 128, 300):
        for flatten in ([1, 1, 1], [1, 1, 0], [0, 1, 0]):
            positions = rng.uniform(-9, 9, size=(natoms, 3)) * flatten
            for cutoff in (0.3, 4.0, 100.0):
                check(positions, cutoff)
    for cutoff in (None, math.inf):
        table = check(rng.normal(size=(30, 3)) * 1e7, cutoff)
        assert table.used.all() and table.used.shape == (30, 29)


def test_one_atom_and_its_images() -> None:
    assert neighbour_table(torch.ones(1, 3, dtype=torch.float64), 5.0).neighbours.tolist() == [[0]]
    # Simple cubic: 6 images at 2 Å, 12 at 2.83 Å, 8 at 3.46 Å, 6 at 4 Å.
    for cutoff, count in ((1.9, 0), (2.0, 0), (2.1, 6), (3.0, 18), (3.5, 26), (4.1, 32)):
        assert int(check(np.array([[1.0, 2.0, 3.0]]), cutoff, 2.0 * np.eye(3), True).used.sum()) == count
    wire = check(np.array([[1.0, 2.0, 3.0]]), 4.1, np.diag([0.0, 0.0, 2.0]), [False, False, True])
    assert wire.offsets[0, :, 2].tolist() == [-4.0, -2.0, 2.0, 4.0]
    assert wire.reverse.tolist() == [[3, 2, 1, 0]]


def test_thin_cell_with_hundreds_of_images() -> None:
    cell = np.array([[4.0, 0.1, 0.3], [0.2, 5.0, 0.0], [0.01, 0.0, 0.02]])
    table = check(np.array([[0.1, 0.2, 0.3], [2.0, 1.0, 0.5]]), 4.0, cell, True)
    assert table.used.shape[1] > 500


def test_no_atoms() -> None:
    for cell, pbc in ((None, False), (4.0 * np.eye(3), True)):
        check(np.empty((0, 3)), 5.0, cell, pbc)


def test_lonely_atoms_among_others() -> None:
    positions = np.array([[0.0, 0, 0], [50.0, 0, 0], [1.0, 0, 0], [0.0, 70, 0]])
    assert check(positions, 3.0).used.sum(1).tolist() == [1, 0, 1, 0]
    table = check(positions, 3.0, 200.0 * np.eye(3), True)
    assert table.neighbours.tolist() == [[2], [1], [0], [3]]


def test_atoms_millions_of_cells_outside() -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        cell = np.round(random_cell(rng) * 64) / 64  # exact arithmetic below
        positions = np.round(rng.uniform(size=(12, 3)) @ cell * 64) / 64
        moves = rng.integers(-2_000_000, 2_000_000, size=(12, 3))
        inside = check(positions, 4.01, cell, True)
        outside = check(positions + moves @ cell, 4.01, cell, True)
        assert torch.equal(inside.neighbours, outside.neighbours)


def test_atoms_on_the_faces_of_the_cell() -> None:
    """Where rounding decides in which cell and in which bin an atom is."""
    rng = np.random.default_rng(5)
    for pbc in PBCS:
        cell = random_cell(rng, 6.0, 12.0)
        grid = np.array(list(itertools.product([0.0, 1 / 3, 0.5, 1.0], repeat=3)))
        nudged = np.nextafter(grid, rng.choice([-1.0, 1.0], size=grid.shape))
        check(np.concatenate((grid, nudged + 1e-3)) @ cell, 3.0, cell, pbc)
        check(nudged @ cell, 3.0, cell, pbc)


def test_huge_vacuum() -> None:
    rng = np.random.default_rng(6)
    for pbc in PBCS:
        cell = random_cell(rng, 2e6, 3e6)
        centres = rng.uniform(size=(6, 3)) @ cell
        centres[0] = 0.0  # a cluster across all boundaries
        positions = np.concatenate([rng.normal(size=(15, 3)) * 1.5 + centre for centre in centres])
        assert int(check(positions, 3.0, cell, pbc).used.sum()) > 300


def test_more_bins_than_can_be_numbered() -> None:
    rng = np.random.default_rng(17)
    corners = 9e8 * np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    positions = np.concatenate([rng.uniform(-2, 2, size=(10, 3)) + corner for corner in corners])
    assert int(check(positions, 1.5).used.sum()) > 50


def test_rounding_does_not_widen_the_search() -> None:
    """Neither vacuum nor a thin cell makes candidates of atoms far apart."""
    for lengths in ([1e6, 5.0, 5.0], [5.0, 0.1, 5.0]):
        assert 0.0 < module._slack(np.diag(lengths), 1e6, np.zeros(3)) < 1e-6


def test_sparse_and_dense_regions() -> None:
    rng = np.random.default_rng(7)
    positions = np.concatenate((rng.normal(size=(200, 3)), rng.uniform(-60, 60, size=(300, 3))))
    check(positions, 2.0, 70.0 * np.eye(3), [True, False, True])


def test_pairs_within_rounding_of_the_cutoff() -> None:
    """A cutoff within 1 ulp of a distance: the same pairs as numpy's, strict to the last bit."""
    seen = {False: 0, True: 0}
    for positions, cell, pbc, _, _, distance, cutoff in cutoffs_at_a_distance(150):
        table = check(positions, cutoff, cell, pbc)
        points = torch.from_numpy(positions)
        lengths = (points[table.neighbours] - points[:, None] + table.offsets)[table.used].norm(dim=-1)
        seen[bool((lengths > distance * (1.0 - 1e-15)).any())] += 1
    assert min(seen.values()) > 30


def test_squares_are_compared_as_their_roots_would_be() -> None:
    rng = np.random.default_rng(16)
    for cutoff in (*rng.uniform(0.1, 10.0, size=200), *rng.uniform(1e-3, 1e3, size=200), 1.0, 5.0, 1e-200, 1e200):
        square = module._square_of(cutoff)
        assert math.sqrt(math.nextafter(square, 0.0)) < cutoff
        assert math.sqrt(square) >= cutoff
    assert module._square_of(math.inf) == math.inf


def test_lattice_at_the_cutoff() -> None:
    """Many pairs at exactly the cutoff but for rounding: both directions or neither, and those that numpy has."""
    for spacing, steps in ((1.1, 3), (0.7, 4), (2.3, 1)):
        grid = spacing * np.array(list(itertools.product(range(5), repeat=3)), dtype=np.float64)
        for cutoff in (spacing * steps, math.nextafter(spacing * steps, 0), math.nextafter(spacing * steps, 9)):
            check(grid, cutoff)
            check(grid + 0.1, cutoff, 5 * spacing * np.eye(3), True)


def test_other_dtypes_and_gradients() -> None:
    positions = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 3, 0]])
    for dtype in (torch.int32, torch.float32, torch.float64):
        assert int(neighbour_table(positions.to(dtype), 2).used.sum()) == 2
    points = positions.double().requires_grad_(True)
    cell = torch.diag(torch.tensor([2.5, 5.0, 5.0])).requires_grad_(True)
    table = neighbour_table(points, 2.0, cell, [True, False, False])
    assert not table.offsets.requires_grad
    assert_holds(
        table,
        neighbour_list(positions.numpy(), 2.0, cell.detach().numpy(), [True, False, False]),
        positions.double().numpy(),
        cell.detach().double().numpy(),
    )


def test_input_is_left_alone_and_may_be_read_only() -> None:
    positions, cell, pbc = np.random.default_rng(9).normal(size=(20, 3)), 5.0 * np.eye(3), np.array([True, False, True])
    points, before = torch.from_numpy(positions.copy()), positions.copy()
    for array in (cell, pbc):
        array.setflags(write=False)
    neighbour_table(points, 3.0, cell, pbc)
    cache = TableCache(3.0)
    cache.update(points, torch.ones(20), cell, pbc)
    assert np.array_equal(points.numpy(), before)


# ---------------------------------------------------------------------------- time and memory


def spelt_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Records each list of items that is spelt out: the longest run, and how many items in all."""
    sizes = []
    original = module._spell_out

    def recorder(start: Tensor, length: Tensor, total: int) -> tuple[Tensor, Tensor]:
        sizes.append((int(length.max()), total))
        return original(start, length, total)

    monkeypatch.setattr(module, "_spell_out", recorder)
    return sizes


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    cell = random_cell(rng, 6.0, 9.0)
    positions = np.concatenate((rng.uniform(-1, 2, size=(60, 3)) @ cell, rng.normal(size=(25, 3)) * 0.5))
    expected = neighbour_table(torch.from_numpy(positions), 3.0, cell, True)
    sizes = spelt_out(monkeypatch)
    neighbour_table(torch.from_numpy(positions), 3.0, cell, True)
    total = sizes[-1][1]
    assert len(sizes) == 2 and total > 1000
    for chunk in (1, 2, 7, 64, 500, total - 1, total, total + 1):
        monkeypatch.setattr(module, "CPU_CHUNK", chunk)
        sizes.clear()
        table = neighbour_table(torch.from_numpy(positions), 3.0, cell, True)
        assert all(map(torch.equal, table, expected))
        assert sum(size for _, size in sizes[1:]) == total
        assert all(size < chunk + longest for longest, size in sizes[1:])
        assert len(sizes) - 1 >= total / (chunk + 85)
        assert len(sizes) > 2 or total < chunk + 27


def test_candidates_grow_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same density each atom has the same number of candidates, few more than half the atoms in 27 bins."""
    sizes = spelt_out(monkeypatch)
    rng = np.random.default_rng(11)
    for natoms in (1000, 8000):
        length = (natoms / 0.1) ** (1 / 3)
        sizes.clear()
        neighbour_table(torch.from_numpy(rng.uniform(0, length, size=(natoms, 3))), 3.0, length * np.eye(3), True)
        assert sum(size for _, size in sizes[1:]) < natoms * 0.5 * 27 * (0.1 * 3.6**3)


def test_everything_is_made_where_the_positions_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything made on the default device, here one that cannot be mixed with others, would fail."""
    monkeypatch.setattr(module, "CPU_CHUNK", 100)
    rng = np.random.default_rng(12)
    positions, cell = rng.uniform(0, 8, size=(30, 3)), 8.0 * np.eye(3)
    points, numbers = torch.from_numpy(positions), torch.ones(30)
    cache = TableCache(3.0)
    with torch.device("meta"):
        table = neighbour_table(points, 4.0, cell, True)
        assert all(tensor.device == points.device for tensor in table)
        for _ in range(2):
            cache.update(points, numbers, cell, True)
    assert_holds(table, neighbour_list(positions, 4.0, cell, True), positions, cell)


# ---------------------------------------------------------------------------- errors


FLAT = np.array([[5.0, 0, 0], [5.0, 1e-9, 0], [0, 0, 5.0]])


def spoilt(value: float) -> Floats:
    positions = GOOD.copy()
    positions[2, 1] = positions[3, 0] = value
    return positions


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(3), 5.0),
        (np.zeros((4, 2)), 5.0),
        (np.zeros((4, 3), dtype=complex), 5.0),
        (np.zeros((4, 3), dtype=bool), 5.0),
        (spoilt(math.nan), 5.0),
        (spoilt(math.nan), None),
        (spoilt(-math.inf), 5.0, BOX, True),
        (spoilt(2e9), 5.0, BOX, (True, False, True)),
        (GOOD, 0.0),
        (GOOD, math.nan),
        (GOOD, True),
        (GOOD, "5"),
        (GOOD, None, BOX, True),
        (GOOD, math.inf, BOX, (False, True, False)),
        (GOOD, 5.0, None, True),
        (GOOD, 5.0, np.diag([5.0, 0.0, 5.0]), True),
        (GOOD, 5.0, np.diag([5.0, 1e-5, 5.0]), True),
        (GOOD, 5.0, FLAT, True),
        (GOOD, 5.0, np.ones((3, 2)), True),
        (GOOD, 5.0, np.full((3, 3), math.nan), False),
        (GOOD, 5.0, BOX, (True, True)),
        (GOOD, 5.0, BOX, "xyz"),
    ],
)
def test_errors_are_those_of_the_list(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError) as expected:
        neighbour_list(*arguments)
    message = (
        str(expected.value).replace("complex128", "torch.complex128").replace("dtype is bool", "dtype is torch.bool")
    )
    points, cutoff, *rest = arguments
    with pytest.raises(ValueError) as raised:
        neighbour_table(torch.from_numpy(points), cutoff, *rest)
    assert str(raised.value) == message
    with pytest.raises(ValueError):
        TableCache(cutoff, 0.0).update(torch.from_numpy(points), torch.ones(len(points)), *rest)


@pytest.mark.parametrize("skin", [-0.1, math.nan, math.inf, "1", None, True])
def test_error_skin(skin: Any) -> None:
    with pytest.raises(ValueError, match="skin must be a finite length"):
        TableCache(5.0, skin)


def test_error_numbers() -> None:
    with pytest.raises(ValueError, match=r"numbers must have shape \(4,\)"):
        TableCache(5.0).update(torch.from_numpy(GOOD), torch.ones(3))


# ---------------------------------------------------------------------------- TableCache


def test_cache_over_a_random_walk_does_as_the_skin_cache() -> None:
    """300 steps with in-place moves, wraps and changes of everything: rebuilt when numpy's is, and the same table."""
    rng = np.random.default_rng(13)
    theirs, ours = SkinCache(4.0, skin=0.8), TableCache(4.0, skin=0.8)
    cell = torch.from_numpy(random_cell(rng, 5.0, 9.0))
    points = torch.from_numpy(rng.uniform(size=(20, 3))) @ cell
    numbers = torch.from_numpy(rng.integers(1, 9, size=20))
    pbc = np.array([True, True, True])
    for step in range(300):
        points += torch.from_numpy(rng.normal(size=points.shape)) * 0.05
        if step % 37 == 5:  # wrap back, in place
            inside = points @ torch.linalg.inv(cell)
            points[:] = (inside - torch.floor(inside) * torch.from_numpy(pbc)) @ cell
        elif step % 41 == 7:
            cell *= 1.0 + 1e-12
        elif step % 43 == 9:
            pbc[step % 3] ^= True
        elif step % 47 == 11:
            numbers[step % len(numbers)] += 1
        elif step % 53 == 13:
            points = torch.cat((points, points[:1] + 1.5))
            numbers = torch.cat((numbers, numbers[:1]))
        elif step % 59 == 17:
            points, numbers = points[:-1].clone(), numbers[:-1].clone()
        edges, expected = theirs.update(points.numpy(), numbers.numpy(), cell.numpy(), pbc)
        table, rebuilt = ours.update(points, numbers, cell, pbc)
        assert rebuilt == expected and ours.rebuilds == theirs.rebuilds
        assert_holds(table, edges, points.numpy(), cell.numpy())
        # All that a fresh table has within the cutoff, in the same order.
        vectors = points[table.neighbours] - points[:, None] + table.offsets
        fresh = neighbour_table(points, 4.0, cell, pbc)
        close = torch.sqrt(vectors.square().sum(-1)) < 4.0
        assert torch.equal(table.neighbours[close], fresh.neighbours[fresh.used])
        assert torch.equal(table.offsets[close], fresh.offsets[fresh.used])
    assert 25 < ours.rebuilds < 150


@pytest.mark.parametrize("changed", ["nothing", "cell", "no cell", "pbc", "numbers", "count", "wrap"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_cache_rebuilds_on_any_change(changed: str, as_tensor: bool) -> None:
    points = torch.tensor([[0.1, 0.2, 0.3], [2.0, 2.0, 2.0]], dtype=torch.float64)
    numbers, pbc = torch.tensor([6, 8]), np.array([True, True, False])
    cell: Any = 5.0 * torch.eye(3, dtype=torch.float64)
    if not as_tensor:
        cell = cell.numpy()
    cache = TableCache(3.0, skin=1.0)
    assert cache.update(points, numbers, cell, pbc)[1]
    assert not cache.update(points, numbers, cell, pbc)[1]
    # All changed in place: the cache must hold copies.
    if changed == "cell":
        cell[1, 0] = 1e-15
    elif changed == "no cell":
        cell, pbc[:] = None, False
    elif changed == "pbc":
        pbc[1] = False
    elif changed == "numbers":
        numbers[:] = numbers.flip(0)
    elif changed == "wrap":
        points[0, 0] += 5.0
    elif changed == "count":
        points, numbers = points[:1], numbers[:1]
    table, rebuilt = cache.update(points, numbers, cell, pbc)
    assert rebuilt == (changed != "nothing")
    host = None if cell is None else torch.as_tensor(cell).numpy()
    assert_holds(table, neighbour_list(points.numpy(), 4.0, host, pbc), points.numpy(), host)


def test_cache_threshold() -> None:
    """Half the skin, of one atom, since the last build (not since the last call)."""
    points = torch.tensor([[0.0, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
    cache = TableCache(5.0, skin=0.5)
    outcomes = []
    for height in (0.0, 0.1, 0.2, 0.2499, 0.2501, 0.4, 0.5000, 0.5003):
        points[1, 2] = height
        outcomes.append(cache.update(points, torch.ones(2))[1])
    assert outcomes == [True, False, False, False, True, False, False, True]


def test_cache_worst_case_approach() -> None:
    """Two atoms that approach head-on by almost half the skin each are not missed."""
    rng = np.random.default_rng(14)
    for _ in range(100):
        direction = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=3)), dim=0)
        start = torch.from_numpy(rng.normal(size=3)) * 1e5
        # At 1e5 Å positions are rounded to 1.5e-11 Å.
        points = torch.stack((start, start + rng.uniform(5.5, 5.5 + 4e-11) * direction))
        cache = TableCache(5.0, skin=0.5)
        cache.update(points, torch.ones(2))
        assert cache._built is not None and 0.25 - 1e-6 < float(cache._built.max_move) < 0.25 - 1e-11
        for fraction in 0.5 + np.array([-1e-9, -1e-11, 0.0, 1e-11, 2e-11, 1e-9]):
            moved = points + fraction * 0.5 * torch.stack((direction, -direction))
            table, _ = cache.update(moved, torch.ones(2))
            assert table.used.any() or not neighbour_table(moved, 5.0).used.any()


@pytest.mark.parametrize("cutoff", [5.0, None])
def test_cache_without_skin_always_rebuilds(cutoff: float | None) -> None:
    cache = TableCache(cutoff, skin=0)
    for count in range(1, 4):
        assert cache.update(torch.from_numpy(GOOD), torch.ones(4))[1]
        assert cache.rebuilds == count


@pytest.mark.parametrize("cutoff", [6.0, None])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_cache_raises_on_bad_positions_and_recovers(cutoff: float | None, value: float) -> None:
    cache = TableCache(cutoff)
    points, numbers = torch.from_numpy(GOOD), torch.ones(4)
    cache.update(points, numbers)
    for _ in range(2):
        with pytest.raises(ValueError, match="position of atom 2"):
            cache.update(torch.from_numpy(spoilt(value)), numbers)
    table, rebuilt = cache.update(points, numbers)
    assert rebuilt
    assert_holds(table, neighbour_list(GOOD, None if cutoff is None else 6.5), GOOD, None)


def test_cache_of_all_pairs_is_kept_however_far_atoms_move() -> None:
    cache = TableCache(None)
    rebuilt = [cache.update(torch.from_numpy(GOOD * scale), torch.ones(4))[1] for scale in (1.0, 2.0, 1e6)]
    assert rebuilt == [True, False, False]


def test_cache_of_no_atoms() -> None:
    cache = TableCache(6.0)
    for _ in range(2):
        assert cache.update(torch.empty(0, 3), torch.empty(0))[0].neighbours.shape == (0, 1)
    assert cache.rebuilds == 1


class Waits(TorchDispatchMode):
    """Names the operations that make the host wait for a device, if the tensors are on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "unique", "equal", "index.Tensor")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_cache_waits_for_one_flag_a_step() -> None:
    points, numbers = torch.from_numpy(GOOD.copy()), torch.ones(4)
    cell = torch.from_numpy(BOX)
    cache = TableCache(3.0)
    with Waits() as building:
        cache.update(points, numbers, cell, True)
    assert len(building.names) > 1  # this is a test of the test
    points += 1e-3
    with Waits() as stepping:
        assert not cache.update(points, numbers, cell, True)[1]
    assert stepping.names == ["aten::_local_scalar_dense"]


# ---------------------------------------------------------------------------- GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, make_system: Callable[[str], Atoms]) -> None:
    """The same table as on the CPU, bit for bit, with one chunk or many, and all of it on the GPU."""
    rng = np.random.default_rng(15)
    cell = 20.0 * np.array([[1.0, 0, 0], [0.4, 1.1, 0], [-0.3, 0.2, 0.9]])
    crystal = make_system("crystal")
    systems: list[tuple[Floats, Floats | None, Any]] = [
        (rng.uniform(-0.5, 1.5, size=(2000, 3)) @ cell, cell, True),
        (rng.uniform(-0.5, 1.5, size=(500, 3)) @ cell, cell, (True, False, True)),
        (rng.uniform(-9, 9, size=(100, 3)), None, False),
        (crystal.positions, np.asarray(crystal.cell), crystal.pbc),
    ]
    for chunk in (module.DEVICE_CHUNK, 5000):
        monkeypatch.setattr(module, "DEVICE_CHUNK", chunk)
        for positions, matrix, pbc in systems:
            points = torch.from_numpy(positions)
            table = neighbour_table(points.cuda(), 4.5, matrix, pbc)
            assert all(tensor.is_cuda for tensor in table)
            assert all(map(torch.equal, (tensor.cpu() for tensor in table), neighbour_table(points, 4.5, matrix, pbc)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cache_on_a_gpu() -> None:
    points, numbers = torch.from_numpy(GOOD).cuda(), torch.ones(4, device="cuda")
    for cell in (torch.from_numpy(BOX).cuda(), torch.from_numpy(BOX)):
        cache = TableCache(3.0)
        assert cache.update(points, numbers, cell, True)[1]
        assert not cache.update(points + 0.01, numbers, cell, True)[1]
        table, rebuilt = cache.update(points + 1.0, numbers, cell, True)
        assert rebuilt and table.offsets.is_cuda
        with pytest.raises(ValueError, match="position of atom 2"):
            cache.update(torch.from_numpy(spoilt(math.nan)).cuda(), numbers, cell, True)
