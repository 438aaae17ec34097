"""What a potential needs of a network, and buffers that keep float64."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ponita_ff.structure.graph import Graph

__all__ = ["Float64Buffers", "Network"]


class Float64Buffers(nn.Module):
    """A module some of whose buffers stay in float64 wherever it is moved and whatever it is cast to.

    Attributes:
        float64_buffers: Names of these buffers.
    """

    float64_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in self.float64_buffers}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


class Network(Float64Buffers):
    """What a potential needs of a network; every form of PONITA is one.

    Attributes:
        config: A validated description from which the network can be made again; its ``form`` names the class.
        cutoff: Å; None where all pairs of a molecule interact.
    """

    config: Any
    cutoff: float | None

    @property
    def grid_group(self) -> str:
        """Name of the rotation group that maps the orientation grid onto itself; empty where there is none."""
        return ""

    @property
    def reach(self) -> float | None:
        """How far away atoms may be that change an atom's energy, Å; None where they may be anywhere."""
        return None if self.cutoff is None else self.config.num_layers * self.cutoff

    def set_grid(self, num_ori: int) -> None:
        """Use another orientation grid.

        Raises:
            ValueError: Where the network cannot.
        """
        raise ValueError("this potential's network is bound to the orientation grid in its file")

    def forward(self, graph: Graph, species: Tensor, vectors: Tensor, for_compile: bool = False) -> Tensor:
        """Atomic energies (N,) in the network's own scale, from edge vectors (N, M, 3), Å, in the network's dtype."""
        raise NotImplementedError("every form of network has its own forward")
