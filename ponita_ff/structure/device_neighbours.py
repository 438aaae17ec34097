"""Neighbour lists written in torch alone: on a GPU, positions need not leave the device during MD.

:func:`neighbour_table` gives the same table as :func:`ponita_ff.structure.graph.build_graph`, slot for slot, in time
and memory that grow linearly with the number of atoms at a given density. Atoms are sorted into bins about one cutoff
wide by their fractional coordinates; each bin is paired with the bins around it, once per periodic image, and the atoms
of paired bins are the candidates, measured in chunks. Only one direction of each pair is looked for and then turned
round, so that the table is symmetric by construction, also for pairs within rounding of the cutoff.

Lengths are in Å. The arithmetic on which it depends whether a pair is within the cutoff is that of
:mod:`ponita_ff.structure.neighbours`, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ponita_ff.structure.graph import UNUSED_DISTANCE
from ponita_ff.structure.lattice import (
    MAX_COORDINATE,
    PBC,
    ROUNDING,
    Bools,
    Floats,
    as_floats,
    check_cutoff,
    check_lattice,
    check_pbc,
    check_positions,
    complete_cell,
)
from ponita_ff.structure.neighbours import SkinCache

__all__ = ["NeighbourTable", "TableCache", "neighbour_table"]

#: Candidates measured at a time, on a CPU and elsewhere. Each takes about 100 bytes while it is measured: a small chunk
#: stays in a core's cache, a large one keeps a GPU busy.
CPU_CHUNK = 2**16
DEVICE_CHUNK = 2**22

#: Most bins along one axis, so that the number of a bin fits into 63 bits. Empty bins take no memory.
MAX_BINS = 2**20


class NeighbourTable(NamedTuple):
    """Edges between N atoms, M slots for each, as in :mod:`ponita_ff.structure.graph`, all on the positions' device.

    The edges of an atom are sorted by sender, then shift. An unused slot holds the atom itself, its own slot as
    reverse, and an offset of (1000, 0, 0) Å. There is at least one slot, so that lonely atoms need no special case.
    """

    #: Shape (N, M), int64: sender j of the edge in slot (i, m).
    neighbours: Tensor
    #: Shape (N, M), int64: slot of the edge i→j in row j.
    reverse: Tensor
    #: Shape (N, M, 3), float64, Å: the cell translation, added to x_j − x_i.
    offsets: Tensor
    #: Shape (N, M), bool.
    used: Tensor


class _Bins(NamedTuple):
    """Where atoms are: which cell, and which bin of it. Numbers that are the same for all atoms stay on the host."""

    crossed: Tensor  # (N, 3), float64: whole cells between an atom and its image in the cell; 0 along open directions
    places: Tensor  # (N, 3), int64: bin along each axis
    number: tuple[int, ...]  # bins along each axis
    reach: tuple[int, ...]  # bins to look at in either direction
    images: tuple[int, ...]  # cells to look at in either direction
    radius: float  # cutoff in Å, widened by all that rounding can do to the distance of wrapped atoms


class _Runs(NamedTuple):
    """Candidates, before they are spelt out: R runs of atoms that lie next to each other once sorted by bin."""

    atom: Tensor  # (R,), int64: one atom, as a place in the sorted order
    start: Tensor  # (R,), int64: the first of its partners
    length: Tensor  # (R,), int64: how many there are
    image: Tensor  # (R,), int64: in which image of the cell the partners are, as one number


class _Pairs(NamedTuple):
    """P pairs of atoms, each in one direction only."""

    first: Tensor  # (P,), int64: receiver
    second: Tensor  # (P,), int64: sender
    image: Tensor  # (P,), int64: cell translation of the wrapped sender, as one number


def neighbour_table(
    positions: Tensor, cutoff: float | None, cell: Tensor | ArrayLike | None = None, pbc: PBC = False
) -> NeighbourTable:
    """All pairs of atoms closer than a cutoff, as a table, built where the positions are.

    The size of the table depends on the positions, so that building it cannot do without waiting for the device: less
    than ten times, and once more for every ``DEVICE_CHUNK`` candidates. Between two builds nothing needs to be waited
    for but the flag of a :class:`TableCache`. A cell on the CPU saves another wait.

    Args:
        positions: Shape (N, 3), Å, anywhere, also far outside the cell. Gradients do not flow through the table.
        cutoff: Å; pairs at exactly the cutoff are left out. None or infinity means all pairs of a molecule.
        cell: Shape (3, 3), Å, rows are the cell vectors; None for a molecule. Vectors along non-periodic directions
            are ignored and may be zero.
        pbc: One or three booleans.

    Raises:
        ValueError: For positions, cell or cutoff that no list can be made of, as
            :func:`ponita_ff.structure.neighbours.neighbour_list` raises.
    """
    radius = check_cutoff(cutoff)
    points = _as_points(positions)
    lattice, periodic = check_lattice(_to_host(cell), pbc, radius)
    if len(points) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=points.device)
        return _fill(empty, empty, empty, torch.zeros(0, 3, dtype=torch.float64, device=points.device), 0)
    vectors = _like(points, np.where(periodic[:, None], lattice, 0.0))
    bins = _sort_into_bins(points, radius, lattice, periodic)
    pairs = _candidates(points, bins, vectors, periodic)
    pairs, offsets = _measure(points, pairs, bins, vectors, radius)
    return _mirror(pairs, offsets, bins.images, len(points))


class TableCache:
    """Neighbour table for MD on a device, rebuilt only once an atom has moved far enough.

    It reaches ``skin`` further than the cutoff, and is rebuilt under the conditions of
    :class:`ponita_ff.structure.neighbours.SkinCache`: it holds every pair within the cutoff for as long as no atom has
    moved by more than half the skin, and wrapping an atom back into the cell counts as a move. Whoever uses it must
    leave out what lies beyond the cutoff, as the model's kernels do.

    Args:
        cutoff: Å, as in :func:`neighbour_table`.
        skin: Extra reach in Å, finite and not negative. Zero rebuilds the table at every call.

    Attributes:
        rebuilds: Number of times a table was built, the first one included.
    """

    def __init__(self, cutoff: float | None, skin: float = 0.5) -> None:
        checked = SkinCache(cutoff, skin)
        self.cutoff, self.skin = checked.cutoff, checked.skin
        self.rebuilds = 0
        self._built: _Built | None = None

    def update(
        self, positions: Tensor, numbers: Tensor, cell: Tensor | ArrayLike | None = None, pbc: PBC = False
    ) -> tuple[NeighbourTable, bool]:
        """Table that holds at least all pairs within the cutoff, and whether it was just rebuilt.

        One flag is reduced on the device and waited for; all else only when the table is rebuilt. Positions that are
        not finite count as moved, so that they are found by the rebuild, which raises.

        Args:
            positions: Shape (N, 3), Å. A copy is kept, so that the caller may change the tensor in place.
            numbers: Shape (N,), atomic numbers, on the same device.
            cell: Shape (3, 3), Å, on any device, or an array.
            pbc: One or three booleans.

        Raises:
            ValueError: As :func:`neighbour_table`, and if there is not one atomic number for each position.
        """
        points = _as_points(positions)
        if numbers.shape != points.shape[:1]:
            raise ValueError(
                f"numbers must have shape ({len(points)},), one atomic number for each of the positions, but has shape "
                f"{tuple(numbers.shape)}"
            )
        matrix, periodic = _as_cell(cell), check_pbc(pbc)
        if self._built is not None and self.skin > 0.0 and self._built.holds(points, numbers, matrix, periodic):
            return self._built.table, False
        # Forget the old table first: if building fails, the next call must not take it for a good one.
        self._built = None
        table = neighbour_table(points, self.cutoff + self.skin, matrix, periodic)
        kept = None if matrix is None else matrix.clone()
        max_move = self._max_move(points, table)
        self._built = _Built(table, points.clone(), numbers.clone(), kept, periodic.copy(), max_move)
        self.rebuilds += 1
        return table, True

    def _max_move(self, points: Tensor, table: NeighbourTable) -> Tensor:
        """How far an atom may move, Å, shape (): half the skin less what rounding does to lengths of edges.

        It stays on the device. The 1,000 Å in unused slots make it a little too strict, which does no harm.
        """
        if self.cutoff == math.inf or len(points) == 0:
            # All pairs, wherever the atoms are; yet infinite positions must lead to the error.
            return torch.full((), MAX_COORDINATE, dtype=torch.float64, device=points.device)
        size = points.abs().amax() + 3.0 * table.offsets.abs().amax() + 1.0
        return 0.5 * self.skin - 2.0 * ROUNDING * size


@dataclass(frozen=True, eq=False)
class _Built:
    """A table and what it was built for."""

    table: NeighbourTable
    points: Tensor
    numbers: Tensor
    cell: Tensor | None
    pbc: Bools
    max_move: Tensor

    def holds(self, points: Tensor, numbers: Tensor, cell: Tensor | None, pbc: Bools) -> bool:
        """Whether the table is still good: kinds and shapes compared here, values on the device."""
        if (
            not _alike(points, self.points)
            or not _alike(numbers, self.numbers)
            or not _alike(cell, self.cell)
            or not np.array_equal(pbc, self.pbc)
        ):
            return False
        # "<=" on distances, so that anything that is not a number counts as moved.
        moved = torch.sqrt(_squares((points - self.points).unbind(1)))
        good = (moved <= self.max_move).all() & (numbers == self.numbers).all()
        if cell is not None and self.cell is not None:
            good = good & (cell == self.cell).all().to(points.device)
        return bool(good)


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are missing, or can be compared number by number where they are."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.device == b.device


# Arguments


def _as_points(positions: Tensor) -> Tensor:
    """Positions as float64, shape (N, 3), without their gradient; their values are checked later, on the device."""
    if positions.dtype in (torch.bool, torch.complex32, torch.complex64, torch.complex128):
        raise ValueError(f"positions must be an array of real numbers, but dtype is {positions.dtype}")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(
            f"positions must have shape (N, 3), one row for each atom, but have shape {tuple(positions.shape)}"
        )
    return positions.detach().to(torch.float64)


def _as_cell(cell: Tensor | ArrayLike | None) -> Tensor | None:
    """The cell as a tensor, wherever it is."""
    if cell is None:
        return None
    return cell.detach() if isinstance(cell, Tensor) else torch.from_numpy(as_floats(cell, "cell").copy())


def _to_host(cell: Tensor | ArrayLike | None) -> ArrayLike | None:
    """The cell where numpy can read it."""
    return cell.detach().cpu().numpy() if isinstance(cell, Tensor) else cell


def _like(points: Tensor, array: NDArray[np.generic]) -> Tensor:
    """A copy of a small array where the points are."""
    return torch.from_numpy(array.copy()).to(points.device)


# Bins


def _sort_into_bins(points: Tensor, cutoff: float, cell: Floats, pbc: Bools) -> _Bins:
    """Bins for points (N, 3), a little wider than the cutoff, or as wide as the cell where that is thinner."""
    box = complete_cell(cell, pbc)
    inverse = np.linalg.inv(box)
    fractional = points @ _like(points, inverse)
    low, high, largest = _extent(points, fractional)
    farthest = np.where(pbc, np.maximum(abs(low), abs(high)) + 1.0, 0.0)
    radius = cutoff * (1.0 + ROUNDING) + _slack(box, largest, farthest)
    low, scale = np.where(pbc, 0.0, low), np.where(pbc, 1.0, np.maximum(high - low, 1e-3))
    thickness = scale / np.linalg.norm(inverse, axis=0)
    number = np.clip(np.floor(thickness / radius), 1, MAX_BINS)
    reach = np.ceil(radius * number / thickness) if math.isfinite(radius) else np.zeros(3)
    reach = np.where(pbc, reach, np.minimum(reach, number - 1))
    images = np.where(pbc, np.ceil(reach / number), 0)
    crossed = torch.floor(fractional) * _like(points, pbc)
    # Rounding can put an atom into the bin after the last.
    scaled = (fractional - crossed - _like(points, low)) * _like(points, number / scale)
    places = torch.minimum(scaled.floor().clamp(min=0.0), _like(points, number - 1)).to(torch.int64)
    return _Bins(crossed, places, _integers(number), _integers(reach), _integers(images), radius)


def _slack(box: Floats, largest: float, crossed: Floats) -> float:
    """Bound in Å on what rounding does to distances between atoms wrapped into a box (3, 3).

    Atoms have coordinates up to ``largest`` and lie up to ``crossed`` (3,) boxes away. Errors of the box's inverse grow
    with the condition number of its directions.
    """
    lengths = np.linalg.norm(box, axis=1)
    condition = float(np.linalg.cond(box / lengths[:, None]))
    return ROUNDING * condition * (largest + float(crossed @ lengths) + float(lengths.sum()))


def _extent(points: Tensor, fractional: Tensor) -> tuple[Floats, Floats, float]:
    """Smallest and largest fractional coordinates, (3,) each, and the largest Cartesian one in Å, checked."""
    ends = torch.stack((fractional.amin(0), fractional.amax(0), points.abs().amax(0)))
    low, high, largest = ends.cpu().numpy()
    if not (largest <= MAX_COORDINATE).all():
        check_positions(points.cpu().numpy())  # which raises, and names the atom
    return low, high, float(largest.max())


def _integers(values: Floats) -> tuple[int, ...]:
    """Whole numbers as such."""
    return tuple(int(value) for value in values)


# Pairs


def _candidates(points: Tensor, bins: _Bins, cell: Tensor, pbc: Bools) -> _Pairs:
    """Each pair within the cutoff once, along with some that are further apart by no more than rounding."""
    order, runs = _runs(bins, pbc)
    wrapped = [_take(axis, order) for axis in (points - _translations(bins.crossed, cell)).unbind(1)]
    images = [axis.to(torch.float64) for axis in _unpack(runs.image, bins.images)]
    # From where partners are seen at the right distance: the atom, moved against the translation of their image.
    shifts = _translations(torch.stack(images, 1), cell).unbind(1)
    origin = [_take(axis, runs.atom) - shift for axis, shift in zip(wrapped, shifts, strict=True)]
    found = []
    chunk = CPU_CHUNK if points.device.type == "cpu" else DEVICE_CHUNK
    for first, last, count in _chunks(runs.length, chunk):
        run, partner = _spell_out(runs.start[first:last], runs.length[first:last], count)
        run += first
        deltas = [_take(there, partner) - _take(here, run) for there, here in zip(wrapped, origin, strict=True)]
        close = torch.nonzero(_squares(deltas) < bins.radius**2).squeeze(1)
        run, partner = _take(run, close), _take(partner, close)
        found.append(_Pairs(_take(order, _take(runs.atom, run)), _take(order, partner), _take(runs.image, run)))
    return _Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _runs(bins: _Bins, pbc: Bools) -> tuple[Tensor, _Runs]:
    """Atoms sorted by bin (N,), and for each of them and each bin near it, the atoms in that bin."""
    a, b, c = bins.places.unbind(1)
    number, order = torch.sort((a * bins.number[1] + b) * bins.number[2] + c)
    occupied, count = torch.unique_consecutive(number, return_counts=True)
    start = torch.cumsum(count, 0) - count
    home, other, image, same = _bin_pairs(occupied, bins, pbc)
    pair, atom = _spell_out(start[home], count[home], int(count[home].sum()))
    partner, length = _take(start[other], pair), _take(count[other], pair)
    # Within one bin each atom is paired with those after it.
    partner_after = atom + 1
    same = _take(same, pair)
    length = torch.where(same, partner + length - partner_after, length)
    return order, _Runs(atom, torch.where(same, partner_after, partner), length, _take(image, pair))


def _bin_pairs(occupied: Tensor, bins: _Bins, pbc: Bools) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of neighbouring occupied bins, each in one direction, and of each bin with itself.

    Returns home and other (B,), which number the occupied bins, the image of the other bin as one number (B,), and
    whether a bin is paired with itself in the same cell (B,).
    """
    device = occupied.device
    steps = torch.cartesian_prod(*(torch.arange(-reach, reach + 1, device=device) for reach in bins.reach))
    # In lexicographic order a step and its opposite lie symmetrically about the zero step in the middle.
    steps = steps[len(steps) // 2 :]
    target = torch.zeros(len(occupied), len(steps), dtype=torch.int64, device=device)
    image = torch.zeros_like(target)
    inside = torch.ones_like(target, dtype=torch.bool)
    for axis, home in enumerate(_digits(occupied, bins.number)):
        place = home[:, None] + steps[:, axis]
        cells = torch.div(place, bins.number[axis], rounding_mode="floor")
        target = target * bins.number[axis] + place - cells * bins.number[axis]
        if pbc[axis]:
            image = image * (2 * bins.images[axis] + 1) + cells + bins.images[axis]
        else:
            inside &= cells == 0
    other = torch.searchsorted(occupied, target).clamp_(max=len(occupied) - 1)
    found = torch.nonzero(inside & (occupied[other] == target))
    home, step = found.unbind(1)
    return home, other[home, step], image[home, step], step == 0


def _digits(values: Tensor, bases: tuple[int, ...]) -> list[Tensor]:
    """Integers (…) taken apart into digits, the first the most significant."""
    digits = []
    for base in reversed(bases):
        rest = torch.div(values, base, rounding_mode="floor")
        digits.append(values - rest * base)
        values = rest
    return digits[::-1]


def _unpack(image: Tensor, images: tuple[int, ...]) -> list[Tensor]:
    """Cells along each axis, between −images and images, from one number."""
    digits = _digits(image, tuple(2 * bound + 1 for bound in images))
    return [digit - bound for digit, bound in zip(digits, images, strict=True)]


def _spell_out(start: Tensor, length: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Runs (R,) item by item: the run of each item, and start, start + 1, … within it; shape (total,) both."""
    run = torch.repeat_interleave(torch.arange(len(start), device=start.device), length, output_size=total)
    before = torch.cumsum(length, 0) - length
    return run, _take(start - before, run) + torch.arange(total, device=start.device)


def _chunks(length: Tensor, chunk: int) -> list[tuple[int, int, int]]:
    """First and last run of each chunk, and how many candidates there are in it: no more than a run above ``chunk``."""
    ends = torch.cumsum(length, 0)
    total = int(ends[-1])
    if total <= chunk:
        return [(0, len(length), total)]
    marks = torch.arange(chunk, total, chunk, device=length.device)
    cuts = torch.searchsorted(ends, marks) + 1
    runs = [0, *cuts.tolist(), len(length)]
    before = [0, *ends[cuts - 1].tolist(), total]
    spans = zip(runs[:-1], runs[1:], before[:-1], before[1:], strict=True)
    return [(first, last, there - here) for first, last, here, there in spans if there > here]


def _measure(points: Tensor, pairs: _Pairs, bins: _Bins, cell: Tensor, cutoff: float) -> tuple[_Pairs, Tensor]:
    """The pairs that are within the cutoff for the positions as given, and their offsets (P, 3) in Å."""
    first, second, image = pairs
    cells = torch.stack(_unpack(image, bins.images), 1).to(torch.float64)
    offsets = _translations(cells + _take(bins.crossed, first) - _take(bins.crossed, second), cell)
    vectors = _take(points, second) - _take(points, first) + offsets
    close = torch.nonzero(_squares(vectors.unbind(1)) < _square_of(cutoff)).squeeze(1)
    return _Pairs(_take(first, close), _take(second, close), _take(image, close)), _take(offsets, close)


def _translations(cells: Tensor, cell: Tensor) -> Tensor:
    """Whole cells (P, 3) in Å (P, 3), summed one cell vector at a time.

    The rounding of a matrix product may depend on the row; opposite cells must give exactly opposite vectors.
    """
    a, b, c = cells.unsqueeze(2).unbind(1)
    return a * cell[0] + b * cell[1] + c * cell[2]


def _squares(components: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Squared lengths of vectors from their components, in the order of summation of ``neighbours.py``."""
    x, y, z = components
    return x * x + y * y + z * z


def _square_of(cutoff: float) -> float:
    """The number below which a square has a root below the cutoff, both rounded to the nearest.

    ``torch.sqrt`` is wrong in the last bit for one number in a hundred on a CPU, numpy's and Python's never.
    """
    square = cutoff * cutoff
    while math.sqrt(square) < cutoff and square < math.inf:
        square = math.nextafter(square, math.inf)
    while square > 0.0 and math.sqrt(math.nextafter(square, 0.0)) >= cutoff:
        square = math.nextafter(square, 0.0)
    return square


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` along the first dimension, which on a CPU takes four times as long."""
    return values.index_select(0, index)


# Table


def _mirror(pairs: _Pairs, offsets: Tensor, images: tuple[int, ...], num_atoms: int) -> NeighbourTable:
    """Sorted, symmetric table from each pair once."""
    first, second, image = pairs
    half = len(first)
    every = math.prod(2 * bound + 1 for bound in images)
    # One sort of a packed integer. A list for which it overflowed would not fit into any memory: so many images mean
    # as many edges. The opposite translation has the opposite number, counting from the other end.
    forward = (first * num_atoms + second) * every + image
    backward = (second * num_atoms + first) * every + (every - 1 - image)
    order = torch.sort(torch.cat((forward, backward))).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(2 * half, device=order.device)
    # Edge k of the unsorted list has its mirror image half a list away.
    reverse = _take(place, torch.where(order < half, order + half, order - half))
    receivers, senders = _take(torch.cat((first, second)), order), _take(torch.cat((second, first)), order)
    return _fill(receivers, senders, reverse, _take(torch.cat((offsets, -offsets)), order), num_atoms)


def _fill(receivers: Tensor, senders: Tensor, reverse: Tensor, offsets: Tensor, num_atoms: int) -> NeighbourTable:
    """Table from a list sorted by receiver, with the number of each edge's reverse."""
    device = receivers.device
    atoms = torch.arange(num_atoms, device=device)
    bounds = torch.searchsorted(receivers, torch.arange(num_atoms + 1, device=device))
    max_neighbours = max(int((bounds[1:] - bounds[:-1]).amax()), 1) if num_atoms else 1
    slots = torch.arange(len(receivers), device=device) - _take(bounds, receivers)
    places = receivers * max_neighbours + slots
    table = NeighbourTable(
        neighbours=atoms[:, None].repeat(1, max_neighbours),
        reverse=torch.arange(max_neighbours, device=device).repeat(num_atoms, 1),
        offsets=torch.zeros(num_atoms, max_neighbours, 3, dtype=torch.float64, device=device),
        used=torch.zeros(num_atoms, max_neighbours, dtype=torch.bool, device=device),
    )
    table.offsets[..., 0] = UNUSED_DISTANCE
    table.neighbours.view(-1).index_copy_(0, places, senders)
    table.reverse.view(-1).index_copy_(0, places, _take(slots, reverse))
    table.offsets.view(-1, 3).index_copy_(0, places, offsets)
    table.used.view(-1).index_fill_(0, places, True)
    return table
