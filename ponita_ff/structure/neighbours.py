"""Neighbour lists for molecules, slabs, wires and crystals, and a Verlet skin cache for MD.

Lengths are in Å here, but any one unit of length works: nothing depends on it except the sanity
limits of `ponita_ff.structure.lattice`.

The list is directed and full: each pair appears as i->j and as j->i. An edge goes from its sender
j to its receiver i, and its displacement is sender minus receiver,

    x_ij = positions[senders] - positions[receivers] + shifts @ cell,    |x_ij| < cutoff,

for the positions *as given*, whether or not they lie inside the cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matscipy.neighbours import (  # type: ignore[import-untyped, unused-ignore]
    neighbour_list as _matscipy_neighbour_list,
)
from numpy.typing import ArrayLike, NDArray

from ponita_ff.structure.lattice import (
    MAX_COORDINATE,
    PBC,
    ROUNDING,
    Bools,
    Floats,
    Ints,
    as_floats,
    check_cell,
    check_cutoff,
    check_lattice,
    check_positions,
    complete_cell,
    is_number,
)

__all__ = ["NeighbourList", "SkinCache", "neighbour_list"]

#: Molecules up to this size use the dense N x N distance matrix instead of matscipy. Measured on
#: one core at 0.1 atoms/Å^3 and cutoffs of 3 to 5 Å, dense against matscipy: 9 atoms 0.02 against
#: 0.25 ms, 100 atoms 0.6 against 0.6 to 1.2 ms, 160 atoms 1.4 against 0.8 to 1.4 ms. The dense
#: time grows as N^2 whatever the cutoff, matscipy's with the number of edges.
DENSE_ATOMS = 128

_NO_CELL = np.zeros((3, 3))

#: The search box may have this many bins in total, or per atom, before it is folded: little
#: memory, and enough for a dense system of a thousand atoms with a few layers of vacuum.
MIN_BINS = 65536
BINS_PER_ATOM = 64


@dataclass(frozen=True, eq=False)
class NeighbourList:
    """Directed, full neighbour list with E edges between N atoms.

    Edges are sorted by receiver, then sender, then shift (lexicographically). No atom neighbours
    itself at zero shift, but it does neighbour its own periodic images within the cutoff.

    Attributes:
        receivers: Index i of the central atom, ascending; int64, shape (E,).
        senders: Index j of the neighbour; int64, shape (E,).
        shifts: Whole cell translations of the sender, zero along non-periodic directions; int64, shape (E, 3).
        reverse: Index of the edge j->i with the opposite shift; int64, shape (E,). ``reverse[reverse]`` is
            ``arange(E)``.
        num_atoms: Number of atoms N.
        cutoff: Å; infinite if the list holds all pairs.
    """

    receivers: Ints
    senders: Ints
    shifts: Ints
    reverse: Ints
    num_atoms: int
    cutoff: float

    def vectors(self, positions: ArrayLike, cell: ArrayLike | None = None) -> Floats:
        """Displacements of all edges, sender minus receiver.

        The vector of a reversed edge is the exact (bitwise) negative of the edge's own.

        Args:
            positions: Shape (N, 3), Å.
            cell: Cell vectors as rows, shape (3, 3), Å. Needed if any edge crosses a cell boundary.

        Returns:
            ``positions[senders] - positions[receivers] + shifts @ cell``, shape (E, 3), Å.

        Raises:
            ValueError: For positions of another number of atoms, or a missing cell.
        """
        points = as_floats(positions, "positions")
        if points.shape != (self.num_atoms, 3):
            raise ValueError(
                f"positions must have shape ({self.num_atoms}, 3), one row for each atom of this "
                f"neighbour list, but have shape {points.shape}: pass the atoms it was built for"
            )
        matrix = None if cell is None else check_cell(cell)
        if matrix is None and self.shifts.any():
            raise ValueError(
                "cell is None but this neighbour list has edges that cross a cell boundary: "
                "pass the (3, 3) cell it was built with"
            )
        return _edge_vectors(points, self.receivers, self.senders, self.shifts, matrix)


def neighbour_list(
    positions: ArrayLike,
    cutoff: float | None,
    cell: ArrayLike | None = None,
    pbc: PBC = False,
) -> NeighbourList:
    """All pairs of atoms closer than a cutoff.

    Args:
        positions: Shape (N, 3), Å. They may lie anywhere, also far outside the cell.
        cutoff: Å; pairs at exactly the cutoff are left out. None or infinity means all pairs and is allowed only
            without periodic directions.
        cell: Cell vectors as rows, shape (3, 3), Å, of either handedness. Vectors along non-periodic directions are
            ignored and may be zero.
        pbc: Whether the system is periodic along each cell vector; one or three booleans.

    Raises:
        ValueError: If an argument has the wrong shape or value; the message says which and what to do.
    """
    radius = check_cutoff(cutoff)
    points = check_positions(positions)
    matrix, periodic = check_lattice(cell, pbc, radius)
    return _build(points, radius, matrix, periodic)


class SkinCache:
    """Neighbour list for MD that is rebuilt only once an atom has moved far enough.

    The cached list reaches ``skin`` further than the cutoff, so that it holds every pair within
    the cutoff for as long as no atom has moved by more than half the skin. Displacements are
    taken between positions as given: wrapping atoms back into the cell makes them jump, which
    triggers a rebuild, as it must, since the shifts of their edges change.

    Args:
        cutoff: Å, as in :func:`neighbour_list`.
        skin: Extra reach in Å, finite and not negative. Zero rebuilds the list at every call.

    Attributes:
        rebuilds: Number of times a list was built, the first one included.

    Raises:
        ValueError: For a cutoff or a skin that cannot be used.
    """

    def __init__(self, cutoff: float | None, skin: float = 0.5) -> None:
        self.cutoff = check_cutoff(cutoff)
        if not is_number(skin) or not 0.0 <= skin < math.inf:
            raise ValueError(
                f"skin must be a finite length in Å that is not negative, but is {skin!r}: use 0 "
                "to rebuild the list at every call"
            )
        self.skin = float(skin)
        self.rebuilds = 0
        self._list: NeighbourList | None = None
        self._positions: Floats = np.empty((0, 3))
        self._numbers: NDArray[np.generic] = np.empty(0, dtype=np.int64)
        self._cell: Floats = np.zeros((3, 3))
        self._pbc: Bools = np.zeros(3, dtype=bool)
        self._max_move = 0.0

    def update(
        self,
        positions: ArrayLike,
        numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: PBC = False,
    ) -> tuple[NeighbourList, bool]:
        """List that holds at least all pairs within the cutoff, and whether it was just rebuilt.

        It is rebuilt at the first call, if the number of atoms, an atomic number, the cell or
        pbc changed at all, or if an atom moved by more than half the skin since the last build.

        Args:
            positions: Shape (N, 3), Å. A copy is kept, so that the caller may change the array in place.
            numbers: Atomic numbers, shape (N,).
            cell: As in :func:`neighbour_list`.
            pbc: As in :func:`neighbour_list`.

        Returns:
            All pairs that were closer than ``cutoff + skin`` when the list was built, and whether this call built it.

        Raises:
            ValueError: As :func:`neighbour_list`.
        """
        if self._list is not None and self._unchanged(positions, numbers, cell, pbc):
            return self._list, False
        _, _, rebuilt = self._refresh(positions, numbers, cell, pbc)
        assert self._list is not None
        return self._list, rebuilt

    def neighbours(
        self,
        positions: ArrayLike,
        numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: PBC = False,
    ) -> NeighbourList:
        """Exact list within the cutoff, the same as `neighbour_list` gives, from the cached one.

        Args:
            positions: As in :meth:`update`.
            numbers: As in :meth:`update`.
            cell: As in :func:`neighbour_list`.
            pbc: As in :func:`neighbour_list`.

        Returns:
            The same edges in the same order as from :func:`neighbour_list`.
        """
        points, matrix, _ = self._refresh(positions, numbers, cell, pbc)
        assert self._list is not None
        if self._list.cutoff == self.cutoff:
            return self._list
        return _within(self._list, self.cutoff, points, matrix)

    def _refresh(
        self, positions: ArrayLike, numbers: ArrayLike, cell: ArrayLike | None, pbc: PBC
    ) -> tuple[Floats, Floats, bool]:
        """Validate, rebuild if needed; return positions (N, 3), cell (3, 3), whether rebuilt."""
        points = check_positions(positions)
        species = np.asarray(numbers)
        if species.shape != points.shape[:1]:
            raise ValueError(
                f"numbers must have shape ({len(points)},), one atomic number for each of the "
                f"positions, but has shape {species.shape}"
            )
        reach = self.cutoff + self.skin
        matrix, periodic = check_lattice(cell, pbc, reach)
        rebuilt = self._list is None or not self._unchanged(points, species, matrix, periodic)
        if rebuilt:
            # Forget the old list first: if building fails, the next call must not find it next
            # to the new reference positions.
            self._list = None
            built = _build(points, reach, matrix, periodic)
            # Copies, because callers such as ASE integrators change their arrays in place.
            self._positions = points.copy()
            self._numbers = species.copy()
            self._cell = matrix.copy()
            self._pbc = periodic.copy()
            self._max_move = 0.5 * self.skin - _distance_error(built, points, matrix)
            self._list = built
            self.rebuilds += 1
        return points, matrix, rebuilt

    def _unchanged(self, points: ArrayLike, numbers: ArrayLike, cell: ArrayLike | None, pbc: PBC) -> bool:
        """Whether the list still holds all pairs within the cutoff, with their shifts.

        Takes arguments that nobody has checked: what is as it was when the list was made is in order, and a position
        that is no number counts as moved. That is all that most steps of an MD run need.
        """
        points = np.asarray(points)
        if (
            self.skin == 0.0
            or points.shape != self._positions.shape
            or points.dtype != self._positions.dtype
            or not np.array_equal(numbers, self._numbers)
            or not np.array_equal(_NO_CELL if cell is None else cell, self._cell)
            or not np.array_equal(pbc, self._pbc)
        ):
            return False
        if self.cutoff == math.inf or len(points) == 0:
            return bool(np.abs(points).max(initial=0.0) <= MAX_COORDINATE)  # all pairs, wherever the atoms are
        with np.errstate(over="ignore"):  # an absurd position has moved too far; it is refused with the new list
            return bool(_norms(points - self._positions).max() <= self._max_move)


# --------------------------------------------------------------------------------------------
# Construction, from validated arguments: positions (N, 3), cutoff, cell (3, 3), pbc (3,)
# --------------------------------------------------------------------------------------------


def _build(positions: Floats, cutoff: float, cell: Floats, pbc: Bools) -> NeighbourList:
    """Neighbour list by the fastest method for the system."""
    if not pbc.any() and (len(positions) <= DENSE_ATOMS or cutoff == math.inf):
        return _dense(positions, cutoff)
    return _binned(positions, cutoff, cell, pbc)


def _dense(positions: Floats, cutoff: float) -> NeighbourList:
    """List of a molecule from the N x N matrix of distances."""
    num_atoms = len(positions)
    if cutoff == math.inf:
        close = np.ones((num_atoms, num_atoms), dtype=bool)
    else:
        close = _norms(positions[None, :, :] - positions[:, None, :]) < cutoff
    np.fill_diagonal(close, False)
    # Row-major order is receiver-then-sender order. close is exactly symmetric, as x and -x have
    # the same norm, so that the transposed edge numbers are the reverse edges.
    flat = np.flatnonzero(close)
    receivers, senders = np.divmod(flat, max(num_atoms, 1))
    number = np.empty(close.shape, dtype=np.int64)
    number.flat[flat] = np.arange(len(flat))
    return NeighbourList(
        receivers=receivers,
        senders=senders,
        shifts=np.zeros((len(flat), 3), dtype=np.int64),
        reverse=number[senders, receivers],
        num_atoms=num_atoms,
        cutoff=cutoff,
    )


def _binned(positions: Floats, cutoff: float, cell: Floats, pbc: Bools) -> NeighbourList:
    """List of a large or periodic system from matscipy's linear-scaling search.

    matscipy supplies candidates within a slightly larger cutoff, so that its own rounding cannot
    lose a pair. One direction of each pair is kept, measured by the documented formula, and
    mirrored: the list is symmetric by construction, also for pairs within rounding of the cutoff.
    """
    num_atoms = len(positions)
    if num_atoms == 0:
        return _mirror(*_no_pairs(), np.empty((0, 3), dtype=np.int64), 0, cutoff)
    first, second, shifts, relative = _candidates(positions, cutoff, cell, pbc)
    vectors = _edge_vectors(positions, first, second, shifts, cell if pbc.any() else None)
    close = np.flatnonzero(_norms(vectors) < cutoff)
    return _mirror(first[close], second[close], shifts[close], relative[close], num_atoms, cutoff)


def _no_pairs() -> tuple[Ints, Ints, Ints]:
    """Empty first (0,), second (0,) and shifts (0, 3)."""
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int64)


def _candidates(positions: Floats, cutoff: float, cell: Floats, pbc: Bools) -> tuple[Ints, Ints, Ints, Ints]:
    """Each pair within the cutoff once, along with some pairs slightly further apart.

    Returns:
        Atoms of the pairs, first (P,) and second (P,); cell translations of the second atom for the positions as given,
        shape (P, 3); and translations between the wrapped atoms, shape (P, 3), which are small numbers that sort the
        images of a pair in the same order. All int64.
    """
    box, fractional, folds = _search_box(positions, cutoff, cell, pbc)
    wraps = pbc | (folds > 1)
    # Atoms are wrapped here, not by matscipy, whose wrapping takes a loop step per cell crossed
    # and loses pairs once the number of cells overflows a C int.
    crossed = np.where(wraps, np.floor(fractional), 0.0)
    reach = float(np.abs(crossed).max(axis=0) @ np.linalg.norm(box, axis=1))
    slack = ROUNDING * (np.abs(positions).max() + reach + np.abs(box).sum() + cutoff)
    i, j, images = _matscipy_neighbour_list(
        "ijS",
        positions=(fractional - crossed) @ box,
        cutoff=float(cutoff * (1.0 + ROUNDING) + slack),
        cell=box,
        pbc=wraps,
    )
    kept = np.flatnonzero((i < j) | ((i == j) & _is_positive(images)))
    first, second = i[kept].astype(np.int64), j[kept].astype(np.int64)
    relative = images[kept].astype(np.int64)
    # Rounding can put an atom a hair outside the box, for which some versions of matscipy report
    # a shift even along directions that are not periodic.
    relative[:, ~wraps] = 0
    offsets = crossed.astype(np.int64)
    shifts = relative + offsets[first] - offsets[second]
    if (folds > 1).any():
        # Only whole cells count along periodic directions, and only zero along open ones.
        whole = np.where(pbc, shifts % folds == 0, shifts == 0).all(axis=1)
        first, second, relative = first[whole], second[whole], relative[whole]
        shifts = shifts[whole] // folds
    return first, second, shifts, relative


def _search_box(positions: Floats, cutoff: float, cell: Floats, pbc: Bools) -> tuple[Floats, Floats, Ints]:
    """Box for the search, which has a volume and holds all atoms along open directions.

    matscipy allocates a bin of about one cutoff for every part of the box, empty or not: two atoms
    1 micrometre apart take 15 s and 4 GB at 5 Å. Too large a box is therefore folded: it
    is divided by a whole number and made periodic, and the spurious pairs are dropped afterwards.

    Returns:
        Folded box vectors (3, 3), Å: cell vectors, or orthonormal ones scaled to the extent of the atoms along open
        directions; the atoms (N, 3) in units of the box vectors; and the whole numbers (3,) that divided the vectors.
    """
    box = complete_cell(cell, pbc)
    inverse = np.linalg.inv(box)
    fractional = positions @ inverse
    thickness = 1.0 / np.linalg.norm(inverse, axis=0)
    low = fractional.min(axis=0)
    extent = np.maximum(fractional.max(axis=0) - low, max(cutoff, 1.0)) * (1.0 + ROUNDING)
    scale = np.where(pbc, 1.0, extent)
    fractional = (fractional - np.where(pbc, 0.0, low)) / scale
    bins = np.maximum(thickness * scale / cutoff, 1.0)
    folds = np.ones(3, dtype=np.int64)
    while (bins / folds).prod() > max(MIN_BINS, BINS_PER_ATOM * len(positions)):
        folds[np.argmax(bins / folds)] *= 2
    return box * (scale / folds)[:, None], fractional * folds, folds


def _is_positive(shifts: NDArray[np.integer]) -> Bools:
    """Whether the first nonzero number of each row of ``shifts`` (P, 3) is positive."""
    a, b, c = shifts.T
    positive: Bools = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    return positive


def _mirror(first: Ints, second: Ints, shifts: Ints, relative: Ints, num_atoms: int, cutoff: float) -> NeighbourList:
    """Sorted, symmetric list from each pair once, as from `_candidates`."""
    half = len(first)
    order = _edge_order(first, second, relative, num_atoms)
    rank = np.empty(2 * half, dtype=np.int64)
    rank[order] = np.arange(2 * half)
    # Edge k of the unsorted list has its mirror image half a list away.
    mirrored = np.where(order < half, order + half, order - half)
    return NeighbourList(
        receivers=np.concatenate([first, second])[order],
        senders=np.concatenate([second, first])[order],
        shifts=np.concatenate([shifts, -shifts]).take(order, axis=0),
        reverse=rank[mirrored],
        num_atoms=num_atoms,
        cutoff=cutoff,
    )


def _edge_order(first: Ints, second: Ints, relative: Ints, num_atoms: int) -> Ints:
    """Permutation (2P,) that sorts P pairs, and then the same pairs reversed, into list order."""
    bounds = [int(x) for x in np.abs(relative).max(axis=0, initial=0)]
    images = math.prod(2 * bound + 1 for bound in bounds)
    if num_atoms**2 * images >= 2**63:
        both = np.concatenate([relative, -relative]).T
        senders, receivers = np.concatenate([[second, first], [first, second]], axis=1)
        return np.lexsort((*both[::-1], senders, receivers))
    # One sort of a single packed integer is several times faster than five sorts.
    image = np.zeros(len(first), dtype=np.int64)
    for axis, bound in enumerate(bounds):
        if bound:
            image *= 2 * bound + 1
            image += relative[:, axis] + bound
    forward = (first * num_atoms + second) * images + image
    # The opposite shift has the opposite number, counting from the other end.
    backward = (second * num_atoms + first) * images + (images - 1 - image)
    return np.argsort(np.concatenate([forward, backward]))


def _within(full: NeighbourList, cutoff: float, positions: Floats, cell: Floats) -> NeighbourList:
    """The edges of ``full`` that are shorter than the cutoff, in the same order."""
    vectors = _edge_vectors(positions, full.receivers, full.senders, full.shifts, cell)
    # Vectors of reversed edges are exact negatives, so that an edge and its reverse go together.
    close = _norms(vectors) < cutoff
    kept = np.flatnonzero(close)
    number = np.cumsum(close) - 1
    return NeighbourList(
        receivers=full.receivers[kept],
        senders=full.senders[kept],
        shifts=full.shifts[kept],
        reverse=number[full.reverse[kept]],
        num_atoms=full.num_atoms,
        cutoff=cutoff,
    )


def _edge_vectors(positions: Floats, receivers: Ints, senders: Ints, shifts: Ints, cell: Floats | None) -> Floats:
    """Displacements (E, 3) in Å; ``cell`` None leaves out the shifts.

    The translations are summed one cell vector at a time rather than by a matrix product, whose
    rounding may depend on the row: opposite shifts must give exactly opposite vectors.
    """
    vectors = positions[senders]
    vectors -= positions[receivers]
    if cell is None:
        return vectors
    a, b, c = shifts.T
    crossing = np.flatnonzero(a | b | c)
    if len(crossing):
        a, b, c = shifts[crossing].T[:, :, None]
        vectors[crossing] += a * cell[0] + b * cell[1] + c * cell[2]
    return vectors


def _norms(vectors: Floats) -> Floats:
    """Lengths of the vectors (..., 3), with one fixed order of summation, so that every method
    in this module agrees to the last bit on which pairs are within the cutoff."""
    squares = vectors * vectors
    return np.sqrt(squares[..., 0] + squares[..., 1] + squares[..., 2])


def _distance_error(edges: NeighbourList, positions: Floats, cell: Floats) -> float:
    """Bound in Å on rounding errors in the lengths of ``edges``, also after small moves."""
    if len(positions) == 0:
        return 0.0
    crossed = np.abs(edges.shifts).max(axis=0, initial=0)
    reach = float(crossed @ np.linalg.norm(cell, axis=1))
    return 2.0 * ROUNDING * (float(np.abs(positions).max()) + reach + 1.0)
