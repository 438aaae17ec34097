"""The graph of many structures that other programs hold as tensors, from step to step: replicas, beads, batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.structure.device_neighbours import neighbour_table
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph, name_structure
from ponita_ff.structure.graph_cache import DEVICE_LIST_ATOMS
from ponita_ff.structure.lattice import MAX_COORDINATE, PBC, ROUNDING, check_cutoff, check_pbc
from ponita_ff.structure.neighbours import SkinCache, neighbour_list

__all__ = ["BatchGraphCache"]

#: Molecules up to this size get all their pairs: a list that holds wherever the atoms go.
ALL_PAIRS_ATOMS = 32


class BatchGraphCache:
    """Makes graphs of batches that change little from call to call.

    Each structure's neighbour list reaches ``skin`` further than the cutoff, and is made again only after one of its
    atoms has moved by half of the skin; all are made again when elements, cells, periodicity or the division into
    structures change. Small molecules have all their pairs instead, once for all. From step to step one flag is waited
    for on a GPU.

    Args:
        cutoff: Å; None for all pairs of molecules.
        skin: Å, not negative; with 0 a list holds only while no atom moves.
        device: Where positions come from and graphs shall be.

    Attributes:
        skin: Å.
        device_list_atoms: Atoms of a structure from which on the device makes its neighbour list itself.
        rebuilds: Neighbour lists made so far.

    Raises:
        ValueError: For a cutoff or a skin that cannot be used.
    """

    def __init__(self, cutoff: float | None, skin: float, device: torch.device) -> None:
        self.skin = SkinCache(cutoff, skin).skin
        self.device_list_atoms: float = math.inf if device.type == "cpu" else DEVICE_LIST_ATOMS
        self._cutoff, self._reach = cutoff, check_cutoff(cutoff) + self.skin
        self.rebuilds = 0
        self._reset()

    def _reset(self) -> None:
        self._layout: tuple[Any, ...] | None = None
        self._graphs: list[Graph] = []
        self._graph: Graph | None = None

    def update(
        self,
        positions: Tensor,
        numbers: Tensor,
        batch: Tensor,
        cells: Tensor,
        pbc: PBC,
        check_species: Callable[[NDArray[np.integer[Any]]], None],
    ) -> Graph:
        """The graph of these structures, on the device of the positions.

        Args:
            positions: Shape (N, 3), Å; a copy is kept.
            numbers: Atomic numbers, shape (N,).
            batch: Structure of each atom, shape (N,): 0, 0, …, 1, … in this order, none left out.
            cells: Shape (B, 3, 3), Å, rows are the cell vectors; along directions that are not periodic they do not
                matter for the edges.
            pbc: Of all structures: one or three booleans.
            check_species: Called with the atomic numbers of one structure when they may have changed.

        Raises:
            ValueError: For structures that no graph can be made of, or that ``check_species`` refuses; the message
                begins with the number of the structure.
        """
        try:
            # Copies: the caller may change its tensors in place.
            points, cells = positions.detach().to(torch.float64, copy=True), cells.detach().to(torch.float64, copy=True)
            return self._update(points, numbers, batch, cells, check_pbc(pbc), check_species)
        except BaseException:  # a keyboard interrupt, too, may come between lists and graph
            self._reset()
            raise

    def _update(
        self, points: Tensor, numbers: Tensor, batch: Tensor, cells: Tensor, pbc: NDArray[np.bool_], check: Any
    ) -> Graph:
        same = self._same_layout(numbers, batch, cells, pbc)
        if same is None or not bool(same & (self._moved(points) <= self._max_move).all()):
            if same is None or not bool(same):
                self._begin(points, numbers, batch, cells, pbc, check)
            self._renew(points, numbers, batch, cells, pbc)
        assert self._graph is not None
        self._graph["positions"], self._graph["cell"] = points, cells
        return self._graph

    def _moved(self, points: Tensor) -> Tensor:
        """How far each atom is from where its list was made, Å, shape (N,)."""
        return (points - self._made_at).square().sum(1).sqrt()

    def _same_layout(self, numbers: Tensor, batch: Tensor, cells: Tensor, pbc: NDArray[np.bool_]) -> Tensor | None:
        """Whether all but the positions is as it was, as a flag on the device; None where shapes tell already."""
        if self._layout is None or self._graph is None:
            return None
        old = self._layout
        pairs = [(numbers, old[0]), (batch, old[1])] + ([(cells, old[2])] if pbc.any() else [])
        if len(cells) != len(old[2]) or not np.array_equal(pbc, old[3]):
            return None
        if any(new.shape != kept.shape or new.device != kept.device for new, kept in pairs):
            return None
        return torch.stack([(new == kept).all() for new, kept in pairs]).all()

    def _begin(
        self, points: Tensor, numbers: Tensor, batch: Tensor, cells: Tensor, pbc: NDArray[np.bool_], check: Any
    ) -> None:
        """Start with no lists for a new division into structures."""
        self._reset()
        owners = batch.cpu().numpy()
        count = len(cells)
        sizes = np.bincount(owners, minlength=count) if len(owners) and owners.min() >= 0 else np.zeros(count, int)
        if not len(sizes) == count or not sizes.all() or (np.diff(owners) < 0).any():
            raise ValueError(
                f"the atoms must belong to structures 0 to {count - 1}, one after the other and none without atoms, "
                f"but {count} cells come with atoms of {np.unique(owners).tolist()}"
            )
        self._ends = np.cumsum(sizes).tolist()
        self._starts = [0, *self._ends[:-1]]
        kinds = numbers.cpu().numpy()
        for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            with name_structure(index):
                check(kinds[start:end])
        self._made_at = torch.full_like(points, math.nan)
        self._max_move = torch.zeros(len(points), dtype=torch.float64, device=points.device)
        self._layout = (numbers.clone(), batch.clone(), cells.clone(), pbc.copy())
        self._graphs = [Graph() for _ in sizes]

    def _renew(self, points: Tensor, numbers: Tensor, batch: Tensor, cells: Tensor, pbc: NDArray[np.bool_]) -> None:
        """New lists for the structures whose atoms have moved too far; not a number counts as moved."""
        stale = torch.zeros(len(cells), dtype=torch.bool, device=points.device)
        stale[batch[~(self._moved(points) <= self._max_move)]] = True
        for index in stale.nonzero().flatten().tolist():
            atoms = slice(self._starts[index], self._ends[index])
            with name_structure(index):
                graph, all_pairs = self._make(points[atoms], numbers[atoms], cells[index], pbc)
            size = points[atoms].abs().amax() + 3.0 * graph["offsets"].abs().amax() + 1.0
            # Half the skin, less what rounding does to lengths of edges (see TableCache).
            self._max_move[atoms] = MAX_COORDINATE if all_pairs else 0.5 * self.skin - 2.0 * ROUNDING * size
            self._made_at[atoms] = points[atoms]
            self._graphs[index] = graph
            self.rebuilds += 1
        self._graph = batch_graphs(self._graphs)

    def _make(self, points: Tensor, numbers: Tensor, cell: Tensor, pbc: NDArray[np.bool_]) -> tuple[Graph, bool]:
        """The graph of one structure, and whether it has all pairs."""
        size, device = len(points), points.device
        all_pairs = not pbc.any() and (size <= ALL_PAIRS_ATOMS or self._cutoff is None)
        if size >= self.device_list_atoms:
            table = neighbour_table(points, None if all_pairs else self._reach, cell if pbc.any() else None, pbc)
            fields = {"atomic_numbers": numbers.long(), "positions": points, "cell": cell.unsqueeze(0)}
            owners = torch.zeros(size, dtype=torch.int64, device=device)
            return Graph(**fields, batch=owners, **table._asdict()), all_pairs
        places, matrix = points.cpu().numpy(), cell.cpu().numpy() if pbc.any() else None
        edges = neighbour_list(places, None if all_pairs else self._reach, matrix, pbc)
        return build_graph(numbers.cpu().numpy(), places, self._cutoff, matrix, pbc, edges).to(device), all_pairs
