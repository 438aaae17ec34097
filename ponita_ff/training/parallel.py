"""Data-parallel training: several processes, started by ``torchrun``, train one potential together."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

__all__ = ["Processes", "balance", "process_group"]


class Processes:
    """The processes of a run, and which of them this one is. A single process does not communicate.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that validates, logs and writes."""
        return self.rank == 0

    def all_reduce_(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over all processes."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace the tensor by that of the main process."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=0)


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that ``torchrun`` started; without it, this process is the only one.

    Args:
        device: Where tensors will be; NCCL is used for GPUs, Gloo for the CPU.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        processes = Processes(torch.distributed.get_rank(), world_size)
        with _logging_of(processes):
            yield processes
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _logging_of(processes: Processes) -> Iterator[None]:
    """Let only the main process log: the others would say all of it again."""
    logger = logging.getLogger("ponita_ff")
    level = logger.level
    if not processes.is_main:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def balance(sizes: Sequence[int], num_processes: int) -> list[list[int]]:
    """Distribute a batch's structures over processes so that each gets about as many atoms.

    Greedy: the largest structure first, each to the process with the fewest atoms so far.

    Args:
        sizes: Atoms of each structure; at least as many structures as processes.
        num_processes: Number of processes.

    Returns:
        For each process, the positions of its structures in the batch, ascending.
    """
    assigned: list[list[int]] = [[] for _ in range(num_processes)]
    atoms = [0] * num_processes
    for position in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        smallest = atoms.index(min(atoms))
        assigned[smallest].append(position)
        atoms[smallest] += sizes[position]
    return [sorted(positions) for positions in assigned]
