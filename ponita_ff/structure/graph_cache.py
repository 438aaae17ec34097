"""The graph of a structure from step to step of a run: only positions change while the neighbour list holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.structure.device_neighbours import TableCache
from ponita_ff.structure.graph import COINCIDENT, Graph, build_graph, squared_distances
from ponita_ff.structure.neighbours import SkinCache

__all__ = ["DEVICE_LIST_ATOMS", "GraphCache"]

#: Atoms from which on a GPU makes its own neighbour lists: below, the CPU's lists are there sooner.
DEVICE_LIST_ATOMS = 500

#: Part of the skin that an atom may move before a GPU is asked whether its list still holds: half, less rounding.
_CERTAIN_SHARE = 0.49

#: Refuses atoms of elements that are not known, by raising a ValueError.
CheckSpecies = Callable[[NDArray[np.integer[Any]]], None]


class _Upload:
    """Copies positions to a device without waiting, through memory that stays in its place.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = torch.empty(0, 3, dtype=torch.float64)
        self._done: torch.cuda.Event | None = None

    def __call__(self, positions: NDArray[np.float64]) -> Tensor:
        """A copy that is the graph's own: ASE's integrators move atoms in place."""
        if self._device.type != "cuda":
            return torch.from_numpy(positions.copy()).to(self._device)
        if self._done is None or len(self._pinned) != len(positions):
            self._pinned = torch.empty(positions.shape, dtype=torch.float64).pin_memory()
            self._done = torch.cuda.Event()
        self._done.synchronize()  # the last copy, long since over
        self._pinned.numpy()[:] = positions
        found = self._pinned.to(self._device, non_blocking=True)
        self._done.record(torch.cuda.current_stream(self._device))
        return found

    def __deepcopy__(self, _: Any) -> _Upload:
        return _Upload(self._device)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Upload, (self._device,)


class GraphCache:
    """Makes graphs of structures that change little from call to call.

    The neighbour list reaches ``skin`` further than the cutoff and is made again only after an atom has moved by half
    of the skin, or numbers, cell or periodicity have changed. After an error of any kind it starts afresh, so that list
    and graph always belong together.

    Args:
        cutoff: Å; None for all pairs of a molecule.
        skin: Å, not negative; with 0 a list holds only while no atom moves.
        device: Where graphs shall be.

    Attributes:
        skin: Å.
        made_at: Positions that the list was made for, shape (N, 3), on the device.
        max_move: Å that atoms may surely move from there; infinite for all pairs of a molecule.
        device_list_atoms: Atoms from which on the device makes the neighbour list itself.
        atoms_may_coincide: Whether two atoms may have come into one place since the list was made.
    """

    def __init__(self, cutoff: float | None, skin: float, device: torch.device) -> None:
        self.skin = skin
        self.device_list_atoms: float = math.inf if device.type == "cpu" else DEVICE_LIST_ATOMS
        self._cutoff, self._device = cutoff, device
        self._upload = _Upload(device)
        self.reset()  # refuses a skin that is no length
        self.max_move = math.inf if cutoff is None else _CERTAIN_SHARE * skin

    def reset(self) -> None:
        """Start with no neighbour list."""
        self._host_lists = SkinCache(self._cutoff, self.skin)
        self._device_lists = TableCache(self._cutoff, self.skin)
        #: What the device's list was made for: positions, numbers, cell, pbc.
        self._device_list_made_for: tuple[Any, ...] | None = None
        self._graph: Graph | None = None
        #: Numbers, cell and pbc of the graph, on the host.
        self._made_for: tuple[Any, ...] = ()
        self.made_at: Tensor | None = None
        self.atoms_may_coincide = True

    @property
    def rebuilds(self) -> int:
        """Neighbour lists made on the host since the last start."""
        return self._host_lists.rebuilds

    def update(self, atoms: Atoms, check_species: CheckSpecies) -> Graph:
        """The graph of these atoms.

        Args:
            atoms: At least one.
            check_species: Called with the atomic numbers whenever they may have changed.

        Raises:
            ValueError: For atoms that no graph can be made of, or that ``check_species`` refuses.
        """
        try:
            return self._update(atoms, check_species)
        except BaseException:  # a keyboard interrupt, too, may come between list and graph
            self.reset()
            raise

    def assumed(self, atoms: Atoms) -> Graph | None:
        """The graph of these atoms if they are still near where its list was made; None if it does not fit at all.

        Nobody has looked at how far they moved: whoever uses the graph compares its positions with ``made_at`` and
        ``max_move`` where they are, and calls :meth:`update` if it was too far.

        Args:
            atoms: Any.
        """
        if self._graph is None or not self.skin:
            return None
        pbc = atoms.pbc
        now = (atoms.numbers, np.asarray(atoms.cell) if pbc.any() else None, pbc)
        if not all(map(np.array_equal, self._made_for, now)):
            return None
        self._graph["positions"] = self._upload(atoms.positions)
        return self._graph

    def _update(self, atoms: Atoms, check_species: CheckSpecies) -> Graph:
        number = len(atoms)
        if number == 0:
            raise ValueError("there are no atoms to calculate: the structure is empty")
        positions = self._upload(atoms.positions)
        pbc = atoms.pbc
        cell = np.asarray(atoms.cell) if pbc.any() else None
        if self._graph is None or len(self._graph["positions"]) != number:
            self.reset()
        renew = self._renew_on_device if number >= self.device_list_atoms else self._renew_on_host
        graph = renew(atoms, positions, cell, pbc)
        if graph is not None:
            check_species(atoms.numbers)
            # Two atoms may come nearer to each other by the whole skin before the list is made again.
            reach = COINCIDENT + self.skin
            self.atoms_may_coincide = self._cutoff is None or not float(squared_distances(graph).min()) > reach**2
            self._made_for = (atoms.numbers.copy(), None if cell is None else cell.copy(), pbc.copy())
            self.made_at = positions
            self._graph = graph
        assert self._graph is not None
        self._graph["positions"] = positions
        return self._graph

    def _renew_on_host(self, atoms: Atoms, _: Tensor, cell: Any, pbc: NDArray[np.bool_]) -> Graph | None:
        """A graph from a new neighbour list; None where the old list holds."""
        edges, rebuilt = self._host_lists.update(atoms.positions, atoms.numbers, cell, pbc)
        if not rebuilt:
            return None
        return build_graph(atoms.numbers, atoms.positions, self._cutoff, cell, pbc, edges).to(self._device)

    def _renew_on_device(self, atoms: Atoms, positions: Tensor, cell: Any, pbc: NDArray[np.bool_]) -> Graph | None:
        """The same, from a list made where the positions are."""
        if self._device_list_surely_holds(atoms, cell, pbc):
            return None
        numbers = torch.from_numpy(atoms.numbers.astype(np.int64)).to(self._device)
        table, rebuilt = self._device_lists.update(positions, numbers, cell, pbc)
        if not rebuilt:
            return None
        copies = (atoms.positions.copy(), atoms.numbers.copy(), None if cell is None else cell.copy(), pbc.copy())
        self._device_list_made_for = copies
        return Graph(
            atomic_numbers=numbers,
            positions=positions,
            cell=torch.from_numpy(np.zeros((1, 3, 3)) if cell is None else cell[None].copy()).to(self._device),
            batch=torch.zeros(len(atoms), dtype=torch.int64, device=self._device),
            **table._asdict(),
        )

    def _device_list_surely_holds(self, atoms: Atoms, cell: Any, pbc: NDArray[np.bool_]) -> bool:
        """Whether the device's list holds, judged on the host: to ask the device means to wait for it."""
        made_for = self._device_list_made_for
        if made_for is None or not all(map(np.array_equal, made_for[1:], (atoms.numbers, cell, pbc))):
            return False
        moved = atoms.positions - made_for[0]
        return bool(np.einsum("ij,ij->i", moved, moved).max() <= (_CERTAIN_SHARE * self.skin) ** 2)
