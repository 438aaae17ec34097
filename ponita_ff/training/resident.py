"""Training frames that stay on a device: batches are gathered and padded there, without waiting for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponita_ff.backends.recording import padded_size
from ponita_ff.data import Frame
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import UNUSED_DISTANCE, Graph, batch_graphs, pad_graph
from ponita_ff.training.evaluate import check_frame, frame_graph

__all__ = ["ResidentFrames", "rotate_structures"]

logger = logging.getLogger(__name__)

#: Share of a GPU's memory that frames may take.
_MEMORY_SHARE = 0.3

#: Graphs that are joined at a time.
_CHUNK = 512

#: Fields with a row for each atom, and with one for each structure.
_ATOM_FIELDS = ("atomic_numbers", "positions", "forces", "neighbours", "reverse", "offsets", "used")
_STRUCTURE_FIELDS = ("cell", "energy", "stress")


class ResidentFrames:
    """Frames as one table on a device.

    Args:
        frames: The training set; all with a stress, or it is left out.
        potential: Its device takes the frames; its cutoff makes their neighbour lists.

    Raises:
        DataError, ValueError: For a frame that the potential cannot be trained on.
    """

    def __init__(self, frames: Sequence[Frame], potential: Potential) -> None:
        self._device = potential.device
        chunks: list[Graph] = []
        shapes: list[torch.Size] = []
        for start in range(0, len(frames), _CHUNK):
            graphs = [_graph(frames[i], potential) for i in range(start, min(start + _CHUNK, len(frames)))]
            shapes += [graph.neighbours.shape for graph in graphs]
            chunks.append(batch_graphs(graphs))
        self.sizes, self.slots = np.array(shapes).T
        self._starts = np.concatenate(([0], np.cumsum(self.sizes)))[:-1]
        slots = max(chunk.neighbours.shape[1] for chunk in chunks)
        # One structure of no atoms more, in every chunk; it is cut off again.
        padded = [pad_graph(chunk, chunk.num_nodes, slots) for chunk in chunks]
        fields = [name for name in (*_ATOM_FIELDS, *_STRUCTURE_FIELDS) if all(name in chunk for chunk in chunks)]
        self._fields: dict[str, Tensor] = {}
        for name in fields:
            pieces = [part[name][: len(chunk[name])] for part, chunk in zip(padded, chunks, strict=True)]
            self._fields[name] = torch.cat(pieces).to(self._device)
        # Senders as their number within the frame.
        first = np.concatenate([[0], np.cumsum([chunk.num_nodes for chunk in chunks])])[:-1]
        inner = np.repeat(self._starts, self.sizes) - np.repeat(first, [chunk.num_nodes for chunk in chunks])
        self._fields["neighbours"] -= torch.from_numpy(inner).to(self._device)[:, None]

    @staticmethod
    def fits(frames: Sequence[Frame], potential: Potential) -> bool:
        """Whether there is room for the frames, judged by the first of them; if not, the log says so."""
        if potential.device.type != "cuda":
            return True
        some = [_graph(frame, potential) for frame in frames[:20]]
        bytes_each = max(sum(graph[name].nbytes for name in graph.keys()) for graph in some)  # noqa: SIM118
        room = _MEMORY_SHARE * torch.cuda.get_device_properties(potential.device).total_memory
        if len(frames) * bytes_each <= room:
            return True
        logger.warning("the frames do not fit into the GPU's memory: batches are made on the host, which is slower")
        return False

    def batch(self, indices: Sequence[int], rotations: NDArray[np.float64] | None) -> Graph:
        """A batch on the device, padded to one of few shapes (:func:`pad_graph`), with the weights of its rows.

        Args:
            indices: Frames of the batch.
            rotations: Rotates each structure and its labels, shape (B, 3, 3); None: not.

        Returns:
            A graph of B + 1 structures, the last of them padding, with ``structure_weights`` (B + 1,) and
            ``atom_weights`` (N,): a mean over the batch is a sum with these weights.
        """
        chosen = np.asarray(indices)
        sizes = self.sizes[chosen]
        number, count = int(sizes.sum()), len(chosen)
        atoms, slots = padded_size(number), padded_size(int(self.slots[chosen].max()))
        begins = np.cumsum(sizes) - sizes
        owner = np.full(atoms, count)
        owner[:number] = np.repeat(np.arange(count), sizes)
        rows, shift = np.zeros(atoms, dtype=np.int64), np.zeros(atoms, dtype=np.int64)
        rows[:number] = np.arange(number) + np.repeat(self._starts[chosen] - begins, sizes)
        shift[:number] = np.repeat(begins, sizes)
        whole = self._upload(np.concatenate((rows, owner, shift, chosen)).astype(np.int64))
        turns = np.eye(3)[None].repeat(count + 1, 0)
        if rotations is not None:
            turns[:-1] = rotations
        row, structure, added, frame = whole.split([atoms, atoms, atoms, count])
        graph = self._gather(row, structure, added, frame, number, slots)
        rotate_structures(graph, self._upload(turns))
        weights = np.zeros(count + 1 + atoms)
        weights[:count], weights[count + 1 : count + 1 + number] = 1.0 / count, 1.0 / number
        graph.__dict__["structure_weights"], graph.__dict__["atom_weights"] = self._upload(weights).split(
            [count + 1, atoms]
        )
        return graph

    def _gather(self, rows: Tensor, owner: Tensor, shift: Tensor, chosen: Tensor, number: int, slots: int) -> Graph:
        width = self._fields["neighbours"].shape[1]
        own = torch.arange(len(rows), device=self._device)[:, None]
        real = own < number
        values = {name: self._fields[name][rows] for name in _ATOM_FIELDS}
        for name in ("neighbours", "reverse", "offsets", "used"):
            values[name] = _with_slots(values[name], slots, width)
        slot = torch.arange(slots, device=self._device).expand(len(rows), -1)
        used = values["used"] & real
        unused = values["offsets"].new_tensor([UNUSED_DISTANCE, 0.0, 0.0])
        structures = {name: self._fields[name][chosen] for name in _STRUCTURE_FIELDS if name in self._fields}
        last = {name: value.new_zeros(1, *value.shape[1:]) for name, value in structures.items()}
        last["cell"] = torch.eye(3, dtype=torch.float64, device=self._device)[None]
        return Graph(
            atomic_numbers=values["atomic_numbers"],
            positions=values["positions"],
            forces=torch.where(real, values["forces"], 0.0),
            neighbours=torch.where(used, values["neighbours"] + shift[:, None], own),
            reverse=torch.where(used, values["reverse"], slot),
            offsets=torch.where(used[..., None], values["offsets"], unused),
            used=used,
            batch=owner,
            **{name: torch.cat((value, last[name])) for name, value in structures.items()},
        )

    def _upload(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device, made without waiting for it."""
        tensor = torch.from_numpy(values)
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _graph(frame: Frame, potential: Potential) -> Graph:
    check_frame(potential, frame)
    return frame_graph(frame, potential.cutoff)


def _with_slots(values: Tensor, slots: int, width: int) -> Tensor:
    """The first slots of a table (N, width, …), or more than it has."""
    if slots <= width:
        return values[:, :slots]
    return torch.cat((values, values.new_zeros(len(values), slots - width, *values.shape[2:])), dim=1)


def rotate_structures(graph: Graph, rotations: Tensor) -> None:
    """Rotate every structure of a batch and its labels, in place.

    Args:
        graph: A batch of B structures.
        rotations: Rotation matrices, shape (B, 3, 3).
    """
    per_atom = rotations[graph.batch]
    for name in ("positions", "forces"):
        graph[name] = (per_atom @ graph[name].unsqueeze(-1)).squeeze(-1)
    graph.offsets = graph.offsets @ per_atom.transpose(-1, -2)
    graph.cell = graph.cell @ rotations.transpose(-1, -2)
    if "stress" in graph:
        graph.stress = rotations @ graph.stress @ rotations.transpose(-1, -2)
