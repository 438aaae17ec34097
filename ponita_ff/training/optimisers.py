"""Muon for the matrices of the layers and Adam for all other weights, over memory that a step goes through once.

All trained weights lie behind one another in one tensor and so do their gradients: norm, average and Adam's update are
then a handful of operations whatever the number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ponita_ff.network.block import ConvNeXt

__all__ = ["FlatWeights", "LowRank", "Muon", "Optimiser", "layer_matrices", "orthogonalised"]

#: Coefficients of the quintic Newton–Schulz iteration, and how often it runs (Jordan et al., Muon, 2024).
_NEWTON_SCHULZ, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5

#: Rows of matrices from which on more than one thread pays: waking them takes longer than narrower ones do.
_WIDE = 96

#: Root mean square of an update by Adam, which Muon's is scaled to (Liu et al., arXiv:2502.16982, equation 4).
_ADAM_SIZE = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U Vᵀ of every matrix U S Vᵀ, shape (number, rows, columns): singular values end up between 0.7 and 1.2.

    Newton–Schulz iteration x ← (a + b x xᵀ + c (x xᵀ)²) x of Muon (Jordan et al., 2024). The factors are polynomials of
    the first x xᵀ, the smaller of the two Gram matrices, so that they are multiplied up there: half the arithmetic. In
    the dtype that comes in: bfloat16, as published, is far slower on a CPU that does not know it.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    gram, total = x @ x.mT, None
    for iteration in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        total = factor if total is None else factor @ total
        if iteration + 1 < _ITERATIONS:
            gram = factor @ gram @ factor
    x = total @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al., Muon, 2024), for stacks of matrices of one shape.

    Args:
        params: Tensors (number, rows, columns).
        lr: Learning rate: an update has the size that Adam's has at this rate (arXiv:2502.16982, equation 4).
        momentum: Share of the past in the average of gradients, which looks ahead as Nesterov's.
        weight_decay: Decoupled, times the learning rate.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change the weights by their gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                average = self.state[weights].setdefault("average", torch.zeros_like(weights))
                average.lerp_(weights.grad, 1.0 - group["momentum"])
                update = orthogonalised(torch.lerp(weights.grad, average, group["momentum"]))
                size = _ADAM_SIZE * max(weights.shape[-2:]) ** 0.5
                weights.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)


class LowRank:
    """Adam on factors: a matrix of a stack becomes W + L R, of which only L and R train (LoRA, arXiv:2106.09685).

    The matrices themselves are written over in every step, so that nobody else need know.

    Args:
        stacks: Tensors (number, rows, columns) with gradients, changed in place.
        rank: Columns of L and rows of R.
    """

    def __init__(self, stacks: list[nn.Parameter], rank: int) -> None:
        self._stacks = stacks
        self._first = [stack.detach().clone() for stack in stacks]
        generator = torch.Generator().manual_seed(0)
        self._factors: list[nn.Parameter] = []
        for stack in stacks:
            number, rows, columns = stack.shape
            right = torch.randn(number, rank, columns, generator=generator) / columns**0.5
            self._factors += [nn.Parameter(stack.new_zeros(number, rows, rank)), nn.Parameter(right.to(stack))]
        self._adam = torch.optim.AdamW(self._factors, lr=0.0, weight_decay=0.0, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As every optimiser has them."""
        return self._adam.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Change the factors by the matrices' gradients, and the matrices with them."""
        pairs = list(zip(self._stacks, self._first, self._factors[::2], self._factors[1::2], strict=True))
        for stack, _, left, right in pairs:
            assert stack.grad is not None
            left.grad, right.grad = stack.grad @ right.mT, left.mT @ stack.grad
        self._adam.step()
        for stack, first, left, right in pairs:
            stack.copy_(first + left @ right)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        factors = [factor.detach() for factor in self._factors]
        return {"adam": self._adam.state_dict(), "factors": factors, "first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        self._adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for own, saved in zip([*self._factors, *self._first], [*state["factors"], *state["first"]], strict=True):
                own.copy_(saved)


class _Part(Protocol):
    """What changes some of the weights."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class FlatWeights:
    """The trainable weights of a module in one tensor, of which they become views; so do their gradients.

    Args:
        module: Its parameters keep names, shapes and values.
        matrices: Names of parameters that come in stacks of one shape.

    Attributes:
        values: All weights, shape (number,).
        gradients: Theirs.
        stacks: The matrices, each (number, rows, columns).
        rest: What is in no stack, shape (number,).
    """

    def __init__(self, module: nn.Module, matrices: set[str]) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        shapes: dict[torch.Size, list[str]] = {}
        rest = [name for name in trained if name not in matrices]
        for name in trained:
            if name in matrices:
                shapes.setdefault(trained[name].shape, []).append(name)
        self._sizes = {name: trained[name].numel() for names in (rest, *shapes.values()) for name in names}
        ordered = [trained[name] for name in self._sizes]
        self.values = torch.cat([p.detach().flatten() for p in ordered])
        self.gradients = torch.zeros_like(self.values)
        start = 0
        for parameter in ordered:
            parameter.data, parameter.grad = (self._piece(flat, start, parameter.shape) for flat in self._both())
            start += parameter.numel()
        start = sum(trained[name].numel() for name in rest)
        self.rest = self._parameter(0, torch.Size((start,)))
        self.stacks = []
        for shape, members in shapes.items():
            self.stacks.append(self._parameter(start, torch.Size((len(members), *shape))))
            start += self.stacks[-1].numel()

    def spread(self, numbers: Mapping[str, float]) -> Tensor:
        """A number for each parameter, by name, at each of its weights, shape (number,)."""
        parts = [torch.full((size,), numbers[name]) for name, size in self._sizes.items()]
        return torch.cat(parts).to(self.values)

    def _both(self) -> tuple[Tensor, Tensor]:
        return self.values, self.gradients

    @staticmethod
    def _piece(flat: Tensor, start: int, shape: torch.Size) -> Tensor:
        return flat[start : start + shape.numel()].view(shape)

    def _parameter(self, start: int, shape: torch.Size) -> nn.Parameter:
        parameter = nn.Parameter(self._piece(self.values, start, shape))
        parameter.grad = self._piece(self.gradients, start, shape)
        return parameter


@contextmanager
def _one_thread(when: bool) -> Iterator[None]:
    threads = torch.get_num_threads()
    if when and threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def layer_matrices(module: nn.Module) -> set[str]:
    """Names of the weights of linear maps between a layer's features: those that Muon is for.

    Radial and fibre kernels, embedding and readout are no maps from features to features; Adam does as well for them,
    at less cost (``benchmarks/recipe.py``).
    """
    return {
        f"{name}.{linear}.weight"
        for name, part in module.named_modules()
        if isinstance(part, ConvNeXt)
        for linear in ("expand", "contract")
    }


class Optimiser:
    """Changes the weights of a module by their gradients, which lie in each parameter's ``grad``.

    Args:
        module: Its trainable parameters; on its device from now on.
        kind: ``"muon"``: Muon for the matrices of the layers, Adam for the rest. ``"adam"``: Adam for all.
        weight_decay: Decoupled.
        speeds: By parameter's name, what its learning rate is multiplied by; 0 leaves it as it is. None: 1 for all.
        muon_rate: Times the learning rate of all other weights: that of Muon's matrices.
        rank: Changes the matrices of the layers by products of this rank only, with Adam; None: as they come.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Literal["muon", "adam"],
        weight_decay: float,
        speeds: Mapping[str, float] | None = None,
        rank: int | None = None,
        muon_rate: float = 1.0,
    ) -> None:
        #: Names of the parameters that lie in stacks.
        self.matrices = layer_matrices(module) if kind == "muon" or rank is not None else set()
        self.weights = FlatWeights(module, self.matrices)
        self._muon_rate = muon_rate
        self._speeds = None if speeds is None else self.weights.spread(speeds)
        self._parts: list[_Part] = [
            torch.optim.AdamW([self.weights.rest], lr=0.0, weight_decay=weight_decay, fused=True)
        ]
        if rank is not None:
            self._parts.append(LowRank(self.weights.stacks, rank))
        elif self.weights.stacks:
            self._parts.append(Muon(self.weights.stacks, lr=0.0, weight_decay=weight_decay))

    def step(self, rate: float, clip_norm: float) -> None:
        """One step at a learning rate, with the gradient of all weights cut down to a norm."""
        gradients, values = self.weights.gradients, self.weights.values
        narrow = all(min(stack.shape[-2:]) < _WIDE for stack in self.weights.stacks)
        with _one_thread(narrow and gradients.device.type == "cpu"):
            gradients.mul_((clip_norm / (gradients.norm() + 1e-6)).clamp(max=1.0))
            before = None if self._speeds is None else values.clone()
            for part in self._parts:
                for group in part.param_groups:
                    group["lr"] = rate * self._muon_rate if isinstance(part, Muon) else rate
                part.step()
            if before is not None and self._speeds is not None:
                values.copy_(torch.lerp(before, values, self._speeds))

    def state_dict(self) -> list[dict[str, Any]]:
        """State of all parts."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from such a state."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
