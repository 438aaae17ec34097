"""Muon for the matrices of the layers and Adam for all other weights, over memory that a step goes through once.

All trained weights lie behind one another in one tensor and so do their gradients: norm, average and Adam's update are
then a handful of operations whatever the number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ponita_ff.convolution import ConvNeXt

__all__ = ["FlatWeights", "Muon", "Optimiser", "orthogonalised"]

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
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        rest = [p for name, p in trained.items() if name not in matrices]
        for name in trained:
            if name in matrices:
                shapes.setdefault(trained[name].shape, []).append(trained[name])
        ordered = rest + [p for members in shapes.values() for p in members]
        self.values = torch.cat([p.detach().flatten() for p in ordered])
        self.gradients = torch.zeros_like(self.values)
        start = 0
        for parameter in ordered:
            parameter.data, parameter.grad = (self._piece(flat, start, parameter.shape) for flat in self._both())
            start += parameter.numel()
        start = sum(p.numel() for p in rest)
        self.rest = self._parameter(0, torch.Size((start,)))
        self.stacks = []
        for shape, members in shapes.items():
            self.stacks.append(self._parameter(start, torch.Size((len(members), *shape))))
            start += self.stacks[-1].numel()

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
    """

    def __init__(self, module: nn.Module, kind: Literal["muon", "adam"], weight_decay: float) -> None:
        self.weights = FlatWeights(module, layer_matrices(module) if kind == "muon" else set())
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([self.weights.rest], lr=0.0, weight_decay=weight_decay, fused=True)
        ]
        if self.weights.stacks:
            self._parts.append(Muon(self.weights.stacks, lr=0.0, weight_decay=weight_decay))

    def step(self, rate: float, clip_norm: float) -> None:
        """One step at a learning rate, with the gradient of all weights cut down to a norm."""
        gradients = self.weights.gradients
        narrow = all(min(stack.shape[-2:]) < _WIDE for stack in self.weights.stacks)
        with _one_thread(narrow and gradients.device.type == "cpu"):
            gradients.mul_((clip_norm / (gradients.norm() + 1e-6)).clamp(max=1.0))
            for part in self._parts:
                for group in part.param_groups:
                    group["lr"] = rate
                part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """State of both parts."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from such a state."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
