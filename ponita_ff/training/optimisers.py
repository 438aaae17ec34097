"""Muon for the matrices of the layers and Adam for all other weights, on weights that share one tensor.

All trained weights are views of one flat tensor, and so are their gradients. Clipping, averaging and Adam's update then
take a handful of operations, whatever the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ponita_ff.network.block import ConvNeXt

__all__ = ["FlatWeights", "LowRankAdam", "Muon", "Optimiser", "layer_matrices", "orthogonalise"]

#: Coefficients a, b, c of the quintic Newton–Schulz iteration and the number of iterations (Jordan et al., Muon, 2024).
_NEWTON_SCHULZ_COEFFICIENTS, _NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5

#: The smaller dimension of a matrix from which several threads are faster than one: below, waking them takes longer.
_MULTITHREADED_MIN_DIMENSION = 96

#: Root mean square of Adam's update; Muon's is scaled to it (Liu et al., arXiv:2502.16982, equation 4).
_ADAM_UPDATE_RMS = 0.2


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximate U Vᵀ of every matrix U S Vᵀ; the singular values of the result are between 0.7 and 1.2.

    Newton–Schulz iteration x ← (a + b x xᵀ + c (x xᵀ)²) x of Muon (Jordan et al., 2024). All factors are polynomials of
    the initial x xᵀ, the smaller of the two Gram matrices, so they are multiplied with one another first. That halves
    the arithmetic. The dtype is that of the input: bfloat16, as published, is slow on CPUs without it.

    Args:
        matrices: Shape (number, rows, columns).

    Returns:
        A tensor of the same shape.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    gram, product = x @ x.mT, None
    for iteration in range(_NEWTON_SCHULZ_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration + 1 < _NEWTON_SCHULZ_STEPS:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon: gradient descent with orthogonalised Nesterov momentum (Jordan et al., 2024), for stacks of matrices.

    Args:
        params: Stacks of matrices of one shape, each (number, rows, columns).
        lr: Learning rate; an update has the root mean square of Adam's at this rate (arXiv:2502.16982, equation 4).
        momentum: Decay of the exponential moving average of the gradients.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                momentum = self.state[weights].setdefault("momentum_buffer", torch.zeros_like(weights))
                momentum.lerp_(weights.grad, 1.0 - group["momentum"])
                update = orthogonalise(torch.lerp(weights.grad, momentum, group["momentum"]))
                scale = _ADAM_UPDATE_RMS * max(weights.shape[-2:]) ** 0.5
                weights.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


class LowRankAdam:
    """Low-rank adaptation (LoRA, arXiv:2106.09685): each matrix becomes W + L R, and Adam trains L and R only.

    Every step writes W + L R into the matrix itself, so the network needs no change.

    Args:
        stacks: Stacks of matrices (number, rows, columns) with gradients; changed in place.
        rank: Number of columns of L and of rows of R.
    """

    def __init__(self, stacks: list[nn.Parameter], rank: int) -> None:
        self._stacks = stacks
        self._initial = [stack.detach().clone() for stack in stacks]
        generator = torch.Generator().manual_seed(0)
        self._factors: list[nn.Parameter] = []
        for stack in stacks:
            number, rows, columns = stack.shape
            right = torch.randn(number, rank, columns, generator=generator) / columns**0.5
            self._factors += [nn.Parameter(stack.new_zeros(number, rows, rank)), nn.Parameter(right.to(stack))]
        self._adam = torch.optim.AdamW(self._factors, lr=0.0, weight_decay=0.0, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of Adam, as in ``torch.optim.Optimizer``."""
        return self._adam.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Update the factors from the matrices' gradients (chain rule), then the matrices from the factors."""
        rows = list(zip(self._stacks, self._initial, self._factors[::2], self._factors[1::2], strict=True))
        for stack, _, left, right in rows:
            assert stack.grad is not None
            left.grad, right.grad = stack.grad @ right.mT, left.mT @ stack.grad
        self._adam.step()
        for stack, initial, left, right in rows:
            stack.copy_(initial + left @ right)

    def state_dict(self) -> dict[str, Any]:
        """State of Adam, factors and initial matrices."""
        factors = [factor.detach() for factor in self._factors]
        return {"adam": self._adam.state_dict(), "factors": factors, "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self._adam.load_state_dict(state["adam"])
        saved = [*state["factors"], *state["initial"]]
        with torch.no_grad():
            for tensor, value in zip([*self._factors, *self._initial], saved, strict=True):
                tensor.copy_(value)


class _SomeWeightsOptimiser(Protocol):
    """Optimiser of some of the weights."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class FlatWeights:
    """Makes the trainable parameters of a module views of one flat tensor, and their gradients views of another.

    Args:
        module: Its parameters keep names, shapes and values.
        matrices: Names of matrices; those of one shape become one stack.

    Attributes:
        values: All trainable weights, shape (number of weights,).
        gradients: Their gradients, same shape.
        stacks: The stacks of matrices, each (number, rows, columns); views of ``values``.
        rest: All weights that are in no stack, one dimension; a view of ``values``.
    """

    def __init__(self, module: nn.Module, matrices: set[str]) -> None:
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        rest = [name for name in trainable if name not in matrices]
        names_by_shape: dict[torch.Size, list[str]] = {}
        for name in trainable:
            if name in matrices:
                names_by_shape.setdefault(trainable[name].shape, []).append(name)
        ordered = [*rest, *(name for names in names_by_shape.values() for name in names)]
        self._sizes = {name: trainable[name].numel() for name in ordered}
        self.values = torch.cat([trainable[name].detach().flatten() for name in ordered])
        self.gradients = torch.zeros_like(self.values)
        start = 0
        for name in ordered:
            parameter = trainable[name]
            parameter.data = _view(self.values, start, parameter.shape)
            parameter.grad = _view(self.gradients, start, parameter.shape)
            start += parameter.numel()
        start = sum(self._sizes[name] for name in rest)
        self.rest = self._parameter(0, torch.Size((start,)))
        self.stacks = []
        for shape, names in names_by_shape.items():
            self.stacks.append(self._parameter(start, torch.Size((len(names), *shape))))
            start += self.stacks[-1].numel()

    def per_weight(self, per_parameter: Mapping[str, float]) -> Tensor:
        """Repeat a number for each parameter, by name, for all of its weights.

        Args:
            per_parameter: A number for every trainable parameter.

        Returns:
            Shape (number of weights,), in the order of ``values``.
        """
        pieces = [torch.full((size,), per_parameter[name]) for name, size in self._sizes.items()]
        return torch.cat(pieces).to(self.values)

    def _parameter(self, start: int, shape: torch.Size) -> nn.Parameter:
        parameter = nn.Parameter(_view(self.values, start, shape))
        parameter.grad = _view(self.gradients, start, shape)
        return parameter


def _view(flat: Tensor, start: int, shape: torch.Size) -> Tensor:
    """A view of some elements of a flat tensor."""
    return flat[start : start + shape.numel()].view(shape)


@contextmanager
def _single_thread(enabled: bool) -> Iterator[None]:
    """Run on one thread if ``enabled``, and restore the number of threads."""
    threads = torch.get_num_threads()
    if enabled and threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def layer_matrices(module: nn.Module) -> set[str]:
    """Names of the matrices that Muon trains: the linear maps from features to features in each layer.

    Kernels, embedding and readouts do not map features to features; for them Adam is as good and costs less
    (``benchmarks/recipe.py``).
    """
    return {
        f"{name}.{linear}.weight"
        for name, block in module.named_modules()
        if isinstance(block, ConvNeXt)
        for linear in ("expand", "contract")
    }


class Optimiser:
    """Updates the weights of a module from the gradients in each parameter's ``grad``.

    Args:
        module: Its trainable parameters are updated. Move it to its device before.
        kind: ``"muon"``: Muon for the matrices of the layers, Adam for the rest. ``"adam"``: Adam for all.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        multipliers: Factor of the learning rate by parameter's name; 0 freezes a parameter. None: 1 for all.
        rank: Rank of the products that are added to the matrices of the layers and trained in their place, with Adam
            (:class:`LowRankAdam`). None: the matrices themselves are trained.
        muon_lr_multiplier: Learning rate of Muon divided by that of Adam.

    Attributes:
        matrices: Names of the parameters in the stacks of ``weights``.
        weights: The weights and gradients of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Literal["muon", "adam"],
        weight_decay: float,
        multipliers: Mapping[str, float] | None = None,
        rank: int | None = None,
        muon_lr_multiplier: float = 1.0,
    ) -> None:
        self.matrices = layer_matrices(module) if kind == "muon" or rank is not None else set()
        self.weights = FlatWeights(module, self.matrices)
        self._muon_lr_multiplier = muon_lr_multiplier
        self._multipliers = None if multipliers is None else self.weights.per_weight(multipliers)
        self._optimisers: list[_SomeWeightsOptimiser] = [
            torch.optim.AdamW([self.weights.rest], lr=0.0, weight_decay=weight_decay, fused=True)
        ]
        if rank is not None:
            self._optimisers.append(LowRankAdam(self.weights.stacks, rank))
        elif self.weights.stacks:
            self._optimisers.append(Muon(self.weights.stacks, lr=0.0, weight_decay=weight_decay))

    def step(self, learning_rate: float, clip_norm: float) -> None:
        """Update the weights.

        Args:
            learning_rate: Learning rate of Adam.
            clip_norm: Largest norm of the gradient with respect to all weights; a longer one is scaled down to it.
        """
        gradients, values = self.weights.gradients, self.weights.values
        small = all(min(stack.shape[-2:]) < _MULTITHREADED_MIN_DIMENSION for stack in self.weights.stacks)
        with _single_thread(small and gradients.device.type == "cpu"):
            gradients.mul_((clip_norm / (gradients.norm() + 1e-6)).clamp(max=1.0))
            before = None if self._multipliers is None else values.clone()
            for optimiser in self._optimisers:
                multiplier = self._muon_lr_multiplier if isinstance(optimiser, Muon) else 1.0
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate * multiplier
                optimiser.step()
            if before is not None and self._multipliers is not None:
                values.copy_(torch.lerp(before, values, self._multipliers))

    def state_dict(self) -> list[dict[str, Any]]:
        """State of the optimisers."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)
