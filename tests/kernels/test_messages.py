"""Messages and their derivatives against plain sums, in C++ and in torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from message_sums import form, make_edges, make_inputs
from torch import Tensor

from ponita_ff.kernels import messages
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.kernels.messages import Edges, convolve

#: Degrees, orientations, channels: with code of their own and without, whole vectors and not.
SHAPES = [(1, 1, 13), (3, 6, 5), (5, 12, 16), (7, 3, 8), (9, 4, 3)]


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations."""
    if request.param == "torch":
        monkeypatch.setattr(messages, "_kernels", lambda dtype: None)
    elif compiler() is None:
        pytest.skip("no C++ compiler here")
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_four_derivatives(way: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    edges = make_edges()
    inputs = make_inputs(edges, shape, dtype)
    leaves = [value.double().clone().requires_grad_(True) for value in inputs]
    expected = torch.autograd.grad(form(*leaves, edges), leaves)
    angular, radial, features, receivers = inputs
    found = (
        *messages._edge_slopes(angular, radial, features, receivers, edges.neighbours, edges.active),
        messages._sum_messages(angular, radial, None, None, receivers, *edges, True),
        convolve(angular, radial, features, edges),
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert value.double() == pytest.approx(reference, abs=tolerance * float(reference.abs().max()))


@pytest.mark.parametrize("adjoint", [False, True])
def test_two_products_at_once(way: str, adjoint: bool) -> None:
    edges = make_edges()
    angular, radial, features, _ = make_inputs(edges, (5, 6, 9))
    other = (angular.flip(0).contiguous(), radial.flip(0).contiguous())
    both = messages._sum_messages(angular, radial, *other, features, *edges, adjoint)
    one = messages._sum_messages(angular, radial, None, None, features, *edges, adjoint)
    two = messages._sum_messages(*other, None, None, features, *edges, adjoint)
    assert both == pytest.approx(one + two, abs=1e-12)


def test_derivatives_of_derivatives(way: str) -> None:
    edges = make_edges(4, seed=2)
    inputs = [value.requires_grad_(True) for value in make_inputs(edges, (2, 2, 3))[:3]]

    def function(angular: Tensor, radial: Tensor, features: Tensor) -> Tensor:
        return convolve(angular, radial, features, edges)

    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_third_derivatives(way: str) -> None:
    """As in the loss of a Hessian: through the sums of two as well."""
    edges = make_edges(4, seed=2)
    inputs = [value.requires_grad_(True) for value in make_inputs(edges, (2, 2, 3))]

    def sum_of_squared_gradients(convolution: Callable[..., Tensor]) -> Tensor:
        value = (convolution(*inputs[:3]) * inputs[3]).sum() ** 2
        for _ in range(2):
            value = sum((g**2).sum() for g in torch.autograd.grad(value, inputs, create_graph=True))
        return value

    def plain(angular: Tensor, radial: Tensor, features: Tensor) -> Tensor:
        weight = edges.active.to(angular.dtype)
        return torch.einsum("im,imlo,imlc,imoc->ioc", weight, angular, radial, features[edges.neighbours])

    expected = torch.autograd.grad(sum_of_squared_gradients(plain), inputs)
    found = torch.autograd.grad(sum_of_squared_gradients(lambda a, r, f: convolve(a, r, f, edges)), inputs)
    for value, reference in zip(found, expected, strict=True):
        assert value == pytest.approx(reference, rel=1e-9, abs=1e-9 * float(reference.abs().max()))


def test_pieces_of_the_torch_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_kernels", lambda dtype: None)
    edges = make_edges()
    angular, radial, features, receivers = make_inputs(edges, (3, 6, 5))
    results = []
    for chunk in (1, 2 * edges.neighbours.shape[1] * 30, 10**9):
        monkeypatch.setattr(messages, "_CHUNK", chunk)
        results.append(
            (
                messages._sum_messages(angular, radial, None, None, features, *edges, True),
                *messages._edge_slopes(angular, radial, features, receivers, edges.neighbours, edges.active),
            )
        )
    for result in results[1:]:
        for value, reference in zip(result, results[0], strict=True):
            assert value == pytest.approx(reference, abs=1e-13)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_same_bits_with_any_number_of_threads(threads: Callable[[int], None]) -> None:
    edges = make_edges(40)
    angular, radial, features, receivers = make_inputs(edges, (5, 12, 16), torch.float32)
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append(
            torch.cat(
                [
                    messages._sum_messages(angular, radial, None, None, features, *edges, True).flatten(),
                    messages._edge_slopes(angular, radial, features, receivers, edges.neighbours, edges.active)[
                        0
                    ].flatten(),
                ]
            )
        )
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_inputs_in_any_layout(way: str) -> None:
    edges = make_edges()
    angular, radial, features, _ = make_inputs(edges, (3, 6, 5))
    strided = [value.movedim(0, -1).contiguous().movedim(-1, 0) for value in (angular, radial, features)]
    shuffled = Edges(*(value.T.contiguous().T for value in edges))
    assert not any(value.is_contiguous() for value in (*strided, *shuffled))
    assert torch.equal(convolve(*strided, shuffled), convolve(angular, radial, features, edges))


def test_operators_as_torch_wants_them(way: str) -> None:
    edges = make_edges()
    angular, radial, features, receivers = make_inputs(edges, (3, 6, 5))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        messages._sum_messages, (angular, radial, angular, radial, features, *edges, True), test_utils=tests
    )
    torch.library.opcheck(
        messages._edge_slopes,
        (angular, radial, features, receivers, edges.neighbours, edges.active),
        test_utils=tests,
    )


def test_without_a_compiler_torch_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(name: str, dtype: torch.dtype) -> None:
        raise KernelError("there is no C++ compiler")

    edges = make_edges()
    angular, radial, features, _ = make_inputs(edges, (3, 6, 5))
    expected = convolve(angular, radial, features, edges)
    for cached in (messages._kernels, messages._warn_once):
        cached.cache_clear()
    monkeypatch.setattr(messages, "Kernels", missing)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert convolve(angular, radial, features, edges) == pytest.approx(expected, abs=1e-12)
    for cached in (messages._kernels, messages._warn_once):
        cached.cache_clear()
    assert caplog.text.count("native kernels are not used: there is no C++ compiler") == 1


def test_more_degrees_than_the_kernels_have_room_for_are_left_to_torch() -> None:
    edges = make_edges()
    inputs = make_inputs(edges, (15, 2, 3))
    kernels = messages._kernels(torch.float64)
    assert kernels is None or kernels.max_degrees == 13
    leaves = [value.clone().requires_grad_(True) for value in inputs]
    (expected,) = torch.autograd.grad(form(*leaves, edges), leaves[3:])
    assert convolve(*inputs[:3], edges) == pytest.approx(expected, rel=1e-9, abs=1e-12)
