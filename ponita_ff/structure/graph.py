"""The graph of a structure, whose edges are a table with M slots for each atom.

Every directed edge j→i sits in a slot (i, m) of its receiver, so that the sum over neighbours is a plain sum over m,
and, because the list is symmetric, so is the sum's adjoint: no scatter anywhere, the same bits in every run. An atom
with fewer neighbours fills its last slots with itself 1,000 Å away, where every kernel is zero.

Fields of a graph with N atoms, B structures and at most M neighbours of an atom:

============== ============ ======= =================================================================
name           shape        dtype   meaning
============== ============ ======= =================================================================
atomic_numbers (N,)         int64   atomic numbers Z, e.g. [6, 1, 1, 1, 1]
positions      (N, 3)       float64 Cartesian coordinates, Å
neighbours     (N, M)       int64   sender j of the edge in slot (i, m)
reverse        (N, M)       int64   slot of the edge i→j in row j: edge (j, reverse) is this one turned round
offsets        (N, M, 3)    float64 added to x_j − x_i: the whole cell translation, Å
used           (N, M)       bool    False in the unused slots (a kernel without a cutoff must mask them)
cell           (B, 3, 3)    float64 rows are the cell vectors, Å; zero for molecules
energy         (B,)         float64 label where there is one, eV (total energy of each structure)
forces         (N, 3)       float64 label where there is one, eV/Å
stress         (B, 3, 3)    float64 label where there is one, eV/Å³, ASE's sign
batch          (N,)         int64   structure of each atom
============== ============ ======= =================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.structure.neighbours import NeighbourList, neighbour_list

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = [
    "COINCIDENT",
    "INPUT_FIELDS",
    "Graph",
    "batch_graphs",
    "build_graph",
    "edge_vectors",
    "gather_neighbours",
    "graphs_of",
    "name_structure",
    "pad_graph",
    "shortest_edge",
    "squared_distances",
    "sum_over_structures",
]

#: Fields that a prediction reads, in the order in which traced functions take them.
INPUT_FIELDS = ("positions", "offsets", "neighbours", "reverse", "used", "atomic_numbers", "batch", "cell")

#: Fields of the table of edges.
_TABLE = ("neighbours", "reverse", "offsets", "used")

#: Length in Å of the vector in an unused slot: beyond any cutoff.
UNUSED_DISTANCE = 1000.0

#: Å under which two atoms count as being in one place: no bond is a tenth of this long.
COINCIDENT = 0.05

#: Structures times atoms up to which a GPU sums over structures by a product with a matrix: 268 MB in float64.
_MEMBERSHIPS = 2**25

#: Molecules up to this size are batched with all their pairs, which needs no search for neighbours.
_SMALL_MOLECULE = 32


class Graph:
    """One structure, or several through :func:`batch_graphs`; the module's table documents its fields.

    A field is an attribute and an item. :meth:`to_data` gives ``torch_geometric``'s Data, whose import takes longer
    than that of all of this package, and whose attributes cost time in each step of dynamics.

    Args:
        fields: By name.
    """

    atomic_numbers: Tensor
    positions: Tensor
    neighbours: Tensor
    reverse: Tensor
    offsets: Tensor
    used: Tensor
    cell: Tensor
    batch: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor

    def __init__(self, **fields: Tensor) -> None:
        self.__dict__.update(fields)

    def __getitem__(self, name: str) -> Tensor:
        field: Tensor = self.__dict__[name]
        return field

    def __setitem__(self, name: str, field: Tensor) -> None:
        self.__dict__[name] = field

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"Graph({', '.join(f'{name}={list(field.shape)}' for name, field in self.__dict__.items())})"

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.atomic_numbers.shape[0])

    def keys(self) -> list[str]:
        """Names of the fields that it has."""
        return list(self.__dict__)

    def to(self, device: torch.device | str) -> Self:
        """The graph on a device; fields that are there already are shared."""
        return self._with(lambda field: field.to(device))

    def clone(self) -> Self:
        """A copy of all fields."""
        return self._with(torch.clone)

    def to_data(self) -> Data:
        """The graph for other code on ``torch_geometric``: its fields, and the used edges as ``edge_index`` (2, E),
        row 0 the senders, with ``edge_vectors`` (E, 3), x_j − x_i in Å."""
        from torch_geometric.data import Data

        receivers, slots = self.used.nonzero(as_tuple=True)
        vectors = edge_vectors(self.positions, self.offsets, self.neighbours, self.reverse)[receivers, slots]
        senders = self.neighbours[receivers, slots]
        fields = {name: field for name, field in self.__dict__.items() if name not in _TABLE}
        edges = {"edge_index": torch.stack([senders, receivers]), "edge_vectors": vectors}
        return Data(num_nodes=self.num_nodes, **edges, **fields)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(field) for name, field in self.__dict__.items()})


def _edge_table(edges: NeighbourList) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Row and slot of each edge, and slot of its reverse, from a list sorted by receiver."""
    degree = np.bincount(edges.receivers, minlength=edges.num_atoms)
    first = np.concatenate(([0], np.cumsum(degree)[:-1]))
    slot = np.arange(len(edges.receivers)) - first[edges.receivers]
    return edges.receivers, slot, slot[edges.reverse], int(degree.max(initial=0))


def build_graph(
    atomic_numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    cutoff: float | None,
    cell: NDArray[np.float64] | None = None,
    pbc: NDArray[np.bool_] | bool = False,
    edges: NeighbourList | None = None,
) -> Graph:
    """Graph of one structure.

    Args:
        atomic_numbers: Shape (N,).
        positions: Shape (N, 3), Å.
        cutoff: Å; None for all pairs of a molecule.
        cell: Shape (3, 3), Å, rows are the cell vectors; None or zeros for a molecule.
        pbc: One or three booleans.
        edges: A list made for these positions with this cutoff or a longer one; made here when None.

    Raises:
        ValueError: For positions, cell or cutoff that no list can be made of.
    """
    if edges is None:
        edges = neighbour_list(positions, cutoff, cell, pbc)
    number = len(positions)
    rows, slots, reverse_slots, max_neighbours = _edge_table(edges)
    # At least one slot, so that a single atom needs no special case anywhere.
    max_neighbours = max(max_neighbours, 1)
    neighbours = np.repeat(np.arange(number)[:, None], max_neighbours, axis=1)
    reverse = np.repeat(np.arange(max_neighbours)[None, :], number, axis=0)
    offsets = np.zeros((number, max_neighbours, 3))
    offsets[..., 0] = UNUSED_DISTANCE
    used = np.zeros((number, max_neighbours), dtype=bool)
    neighbours[rows, slots] = edges.senders
    reverse[rows, slots] = reverse_slots
    used[rows, slots] = True
    offsets[rows, slots] = 0.0 if cell is None else edges.shifts @ np.asarray(cell, dtype=np.float64)
    return Graph(
        atomic_numbers=torch.from_numpy(np.array(atomic_numbers, dtype=np.int64)),
        positions=torch.from_numpy(np.array(positions, dtype=np.float64)),
        neighbours=torch.from_numpy(neighbours),
        reverse=torch.from_numpy(reverse),
        offsets=torch.from_numpy(offsets),
        used=torch.from_numpy(used),
        cell=torch.from_numpy(np.zeros((1, 3, 3)) if cell is None else np.array(cell, dtype=np.float64)[None]),
        batch=torch.zeros(number, dtype=torch.int64),
    )


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Several structures as one graph; predictions are those of each alone.

    Atoms of a graph with fewer slots get unused ones. All graphs must be on one device.
    """
    max_neighbours = max(graph.neighbours.shape[1] for graph in graphs)
    number, device = sum(graph.num_nodes for graph in graphs), graphs[0].neighbours.device
    fields: dict[str, Tensor] = {
        "neighbours": torch.arange(number, device=device)[:, None].repeat(1, max_neighbours),
        "reverse": torch.arange(max_neighbours, device=device).repeat(number, 1),
        "offsets": torch.zeros(number, max_neighbours, 3, dtype=torch.float64, device=device),
        "used": torch.zeros(number, max_neighbours, dtype=torch.bool, device=device),
        "batch": torch.zeros(number, dtype=torch.int64, device=device),
    }
    fields["offsets"][..., 0] = UNUSED_DISTANCE
    atoms = structures = 0
    for graph in graphs:
        end, max_neighbours = atoms + graph.num_nodes, graph.neighbours.shape[1]
        fields["neighbours"][atoms:end, :max_neighbours] = graph.neighbours + atoms
        for name in ("reverse", "offsets", "used"):
            fields[name][atoms:end, :max_neighbours] = graph[name]
        fields["batch"][atoms:end] = graph.batch + structures
        atoms, structures = end, structures + len(graph.cell)
    for name in graphs[0].keys():  # noqa: SIM118 - not a mapping
        if name not in fields:
            fields[name] = torch.cat([graph[name] for graph in graphs])
    return Graph(**fields)


def pad_graph(graph: Graph, atoms: int, slots: int) -> Graph:
    """A graph with more atoms and slots: one of few shapes, for code that is made for each.

    The added atoms have no neighbours and are one more structure, the last, also where there are none. Its cell is a
    cube of 1 Å, its labels are zero. Nothing changes for the others.

    Args:
        graph: N atoms, at least one, in B structures, M slots each.
        atoms: At least N.
        slots: At least M.
    """
    number, width = graph.neighbours.shape
    device, added = graph.neighbours.device, atoms - number
    own = torch.arange(atoms, device=device)[:, None]
    table = {
        "neighbours": own.repeat(1, slots),
        "reverse": torch.arange(slots, device=device).repeat(atoms, 1),
        "offsets": torch.zeros(atoms, slots, 3, dtype=graph.offsets.dtype, device=device),
        "used": torch.zeros(atoms, slots, dtype=torch.bool, device=device),
    }
    table["offsets"][..., 0] = UNUSED_DISTANCE
    for name, values in table.items():
        values[:number, :width] = graph[name]
    fields = {name: torch.cat((graph[name], values)) for name, values in _added_rows(graph, added).items()}
    return Graph(**fields, **table)


def _added_rows(graph: Graph, atoms: int) -> dict[str, Tensor]:
    """Rows of one more structure with so many atoms, by field, for the fields that have a row for each of either."""
    structures = len(graph.cell)
    rows = {
        "atomic_numbers": graph.atomic_numbers[:1].expand(atoms),
        "positions": graph.positions.new_zeros(atoms, 3),
        "batch": graph.batch.new_full((atoms,), structures),
        "cell": torch.eye(3, dtype=graph.cell.dtype, device=graph.cell.device)[None],
    }
    for name, shape in (("energy", (1,)), ("forces", (atoms, 3)), ("stress", (1, 3, 3))):
        if name in graph:
            rows[name] = graph[name].new_zeros(shape)
    return rows


def _stack_molecules(molecules: Sequence[Atoms]) -> Graph:
    """Molecules of one size as one graph with an edge for every pair, however far apart."""
    count, size = len(molecules), len(molecules[0])
    max_neighbours = max(size - 1, 1)
    own = np.arange(size)[:, None]
    slot = np.arange(max_neighbours)[None, :]
    # Slot m of atom i is atom m, or m + 1 from i on; seen from there, i sits in slot i or i − 1.
    partner = np.where(slot < own, slot, slot + 1) if size > 1 else np.zeros((1, 1), dtype=np.int64)
    back = np.where(partner > own, own, own - 1) if size > 1 else np.zeros((1, 1), dtype=np.int64)
    starts = size * np.arange(count)[:, None, None]
    offsets = np.zeros((count * size, max_neighbours, 3))
    if size == 1:
        offsets[..., 0] = UNUSED_DISTANCE
    return Graph(
        atomic_numbers=torch.from_numpy(np.concatenate([atoms.numbers for atoms in molecules]).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate([atoms.positions for atoms in molecules])),
        neighbours=torch.from_numpy((starts + partner).reshape(-1, max_neighbours)),
        reverse=torch.from_numpy(np.tile(back, (count, 1))),
        offsets=torch.from_numpy(offsets),
        used=torch.full((count * size, max_neighbours), size > 1),
        cell=torch.zeros(count, 3, 3, dtype=torch.float64),
        batch=torch.arange(count).repeat_interleave(size),
    )


@contextmanager
def name_structure(index: int) -> Iterator[None]:
    """Errors within begin with the number of a structure."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"structure {index}: {error}") from None


def graphs_of(structures: Sequence[Atoms], cutoff: float | None, max_atoms: int) -> Iterator[tuple[list[int], Graph]]:
    """Batches of structures, none larger than so many atoms unless it is a single structure.

    Args:
        structures: None of them empty.
        cutoff: Å; None for all pairs of molecules.
        max_atoms: Atoms in a batch.

    Yields:
        Numbers of the structures in a batch, in their order in it, and the batch.

    Raises:
        ValueError: For a structure that no list can be made of; the message begins with its number.
    """
    by_size: dict[int, list[int]] = {}
    others: list[int] = []
    for index, atoms in enumerate(structures):
        small = len(atoms) <= _SMALL_MOLECULE and not atoms.pbc.any()
        (by_size.setdefault(len(atoms), []) if small else others).append(index)
    for indices in by_size.values():
        for chunk in _chunks(indices, structures, max_atoms):
            yield chunk, _stack_molecules([structures[index] for index in chunk])
    for chunk in _chunks(others, structures, max_atoms):
        yield chunk, batch_graphs([_graph_of(structures[index], index, cutoff) for index in chunk])


def _chunks(indices: Sequence[int], structures: Sequence[Atoms], max_atoms: int) -> Iterator[list[int]]:
    """The indices in groups of no more than so many atoms, or of one structure."""
    chunk: list[int] = []
    atoms = 0
    for index in indices:
        if chunk and atoms + len(structures[index]) > max_atoms:
            yield chunk
            chunk, atoms = [], 0
        chunk.append(index)
        atoms += len(structures[index])
    if chunk:
        yield chunk


def _graph_of(atoms: Atoms, index: int, cutoff: float | None) -> Graph:
    with name_structure(index):
        cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
        return build_graph(atoms.numbers, atoms.positions, cutoff, cell, atoms.pbc)


class _Gather(torch.autograd.Function):
    """x_j for every slot (i, m). Its adjoint is again a gather, because each edge knows its reverse."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, neighbours: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours, reverse)
        return values[neighbours]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        neighbours, reverse = ctx.saved_tensors
        return _GatherAdjoint.apply(gradient, neighbours, reverse), None, None


class _GatherAdjoint(torch.autograd.Function):
    """Σ_m of the reversed edges' values: what each atom sent, added up where it came from."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, neighbours: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours, reverse)
        return values[neighbours, reverse].sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        neighbours, reverse = ctx.saved_tensors
        return _Gather.apply(gradient, neighbours, reverse), None, None


def gather_neighbours(values: Tensor, neighbours: Tensor, reverse: Tensor) -> Tensor:
    """Values of the sender of every edge, differentiable any number of times without a scatter.

    Args:
        values: Shape (N, ...).
        neighbours: Shape (N, M).
        reverse: Shape (N, M).

    Returns:
        Shape (N, M, ...).
    """
    return _Gather.apply(values, neighbours, reverse)


def edge_vectors(positions: Tensor, offsets: Tensor, neighbours: Tensor, reverse: Tensor) -> Tensor:
    """x_ij = x_j − x_i + offset, sender minus receiver, shape (N, M, 3), Å."""
    return gather_neighbours(positions, neighbours, reverse) - positions.unsqueeze(1) + offsets


def squared_distances(graph: Graph) -> Tensor:
    """Squares of the lengths of all edges, shape (N, M), Å²."""
    vectors = edge_vectors(graph["positions"], graph["offsets"], graph["neighbours"], graph["reverse"])
    return vectors.square().sum(-1)


def shortest_edge(graph: Graph) -> tuple[float, int, int]:
    """Shortest distance in Å and its two atoms."""
    squared = squared_distances(graph).flatten()
    edge = int(squared.argmin())
    atom = edge // graph.neighbours.shape[1]
    return float(squared[edge].sqrt()), atom, int(graph.neighbours.flatten()[edge])


def sum_over_structures(values: Tensor, batch: Tensor, number: int) -> Tensor:
    """Sum of per-atom values (N,) or (N, k) over the atoms of each structure, shape (number,) or (number, k).

    A product with a membership matrix for the few structures of a training batch (adds in one order, so that runs
    repeat bit for bit, and compiles), also for large ones on a GPU, where an ``index_add`` adds in any order; an
    ``index_add`` for many.
    """
    if number == 1:
        return values.sum(0, keepdim=True)
    if number <= 64 or (values.is_cuda and number * len(values) <= _MEMBERSHIPS):
        member = batch == torch.arange(number, device=batch.device).unsqueeze(1)
        return member.to(values.dtype) @ values
    return values.new_zeros(number, *values.shape[1:]).index_add(0, batch, values)
