"""Several processes, started by ``torchrun``, that train one potential together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

__all__ = ["Processes", "deal", "joined_processes"]


class Processes:
    """The processes of a run and which of them this is; a single one needs no communication.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this one validates, logs and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Put the sum over all processes in place of each one's tensor."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def from_leader_(self, tensor: Tensor) -> None:
        """Put the leading process's tensor in place of each one's."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, connected; this one alone without it.

    Args:
        device: Where tensors will lie: decides the way of communication.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), size)
    finally:
        torch.distributed.destroy_process_group()


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Positions of a batch's structures, dealt out so that each process gets about as many atoms.

    The largest first, each to the process with the fewest atoms so far.

    Args:
        sizes: Atoms of each structure; at least as many structures as processes.
        hands: Number of processes.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    atoms = [0] * hands
    for position in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        least = atoms.index(min(atoms))
        dealt[least].append(position)
        atoms[least] += sizes[position]
    return [sorted(positions) for positions in dealt]
