"""Graphs of batches: the same edges as for each structure alone, lists kept while they hold, bad input named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ponita_ff.potential.potential import Potential
from ponita_ff.structure import batch_cache
from ponita_ff.structure.batch_cache import BatchGraphCache
from ponita_ff.structure.graph import Graph

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
CUTOFF = 4.0


def tensors(systems: list[Atoms]) -> Tensors:
    """Positions, numbers, batch and cells."""
    sizes = torch.tensor([len(atoms) for atoms in systems])
    return (
        torch.from_numpy(np.concatenate([atoms.positions for atoms in systems])),
        torch.from_numpy(np.concatenate([atoms.numbers for atoms in systems])),
        torch.arange(len(systems)).repeat_interleave(sizes),
        torch.from_numpy(np.stack([np.asarray(atoms.cell) for atoms in systems])),
    )


def cache_of(skin: float = 0.5) -> BatchGraphCache:
    """One on the CPU."""
    return BatchGraphCache(CUTOFF, skin, torch.device("cpu"))


def allow(numbers: object) -> None:
    """All elements are known."""


def energies(potential: Potential, graph: Graph) -> Tensor:
    """Of all structures, the network's differences well above rounding."""
    return potential(graph).energy


@pytest.mark.parametrize("limit", [0, 32])
def test_molecules_of_many_sizes(
    tiny_potential: Potential, make_system: Callable[[str], Atoms], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_cache, "ALL_PAIRS_ATOMS", limit)
    first = make_system("molecule")
    systems = [first, first[[0]], first[:4]]
    cache = cache_of()
    for _ in range(4):  # moves by less than half the skin, and then by more
        found = energies(tiny_potential, cache.update(*tensors(systems), False, allow))
        expected = tiny_potential.evaluate(systems, forces=False).energies
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
        for seed, atoms in enumerate(systems):
            atoms.positions += np.random.default_rng(seed).uniform(-0.15, 0.15, atoms.positions.shape)
    # With all their pairs molecules need no second list; else those that have moved too far do.
    assert (cache.rebuilds == 3) == (limit == 32)


def test_only_what_has_moved_gets_a_new_list(tiny_potential: Potential, make_system: Callable[[str], Atoms]) -> None:
    systems = [make_system("crystal"), make_system("two atoms in a tiny cell"), make_system("crystal")]
    cache = cache_of()
    graph = cache.update(*tensors(systems), True, allow)
    assert cache.rebuilds == 3
    for atoms in systems:
        atoms.positions += 0.1
    assert cache.update(*tensors(systems), True, allow) is graph
    systems[1].positions[0] += 0.3
    graph = cache.update(*tensors(systems), True, allow)
    assert cache.rebuilds == 4
    prediction = tiny_potential(graph, stress=True)
    expected = tiny_potential.evaluate(systems, stress=True)
    np.testing.assert_allclose(prediction.energy.numpy(), expected.energies, rtol=0, atol=1e-9)
    assert prediction.stress is not None and expected.stress is not None
    np.testing.assert_allclose(prediction.stress.numpy(), expected.stress, rtol=0, atol=1e-12)
    systems[2].set_cell(1.01 * systems[2].cell, scale_atoms=True)
    cache.update(*tensors(systems), True, allow)
    assert cache.rebuilds == 7


def test_lists_made_by_torch_are_the_same(
    tiny_potential: Potential, make_system: Callable[[str], Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = [make_system("crystal"), make_system("two atoms in a tiny cell")]
    expected = energies(tiny_potential, cache_of().update(*tensors(systems), True, allow))
    cache = cache_of()
    cache.device_list_atoms = 1
    monkeypatch.delattr(batch_cache, "build_graph")  # the host's way
    np.testing.assert_allclose(
        energies(tiny_potential, cache.update(*tensors(systems), True, allow)), expected, atol=1e-9
    )


def test_the_caller_may_change_its_tensors(make_system: Callable[[str], Atoms]) -> None:
    positions, numbers, batch, cells = tensors([make_system("crystal")] * 2)
    cache = cache_of()
    graph = cache.update(positions, numbers, batch, cells, True, allow)
    kept = graph.positions.clone()
    positions += 1.0
    cells *= 2.0
    assert torch.equal(graph.positions, kept)
    cache.update(positions, numbers, batch, cells, True, allow)
    assert cache.rebuilds == 4


def test_bad_input_is_named_and_leaves_nothing_behind(make_system: Callable[[str], Atoms]) -> None:
    systems = [make_system("molecule"), make_system("molecule")]
    positions, numbers, batch, cells = tensors(systems)
    cache = cache_of()
    cache.update(positions, numbers, batch, cells, False, allow)
    lost = positions.clone()
    lost[10, 1] = torch.nan
    with pytest.raises(ValueError, match=r"structure 1: position.* 1 .*not finite|structure 1: .*finite"):
        cache.update(lost, numbers, batch, cells, False, allow)
    cache.update(positions, numbers, batch, cells, False, allow)
    assert cache.rebuilds == 4

    def refuse(found: np.ndarray) -> None:
        if found[0] == 1:
            raise ValueError("atom 0 is H")

    with pytest.raises(ValueError, match="structure 1: atom 0 is H"):
        cache.update(positions, torch.cat([numbers[:9], numbers[9:].flip(0)]), batch, cells, False, refuse)
    for wrong in (batch.flip(0), torch.zeros_like(batch), batch + 1, batch - 1):
        with pytest.raises(ValueError, match="one after the other and none without atoms"):
            cache.update(positions, numbers, wrong, cells, False, allow)
    with pytest.raises(ValueError, match="skin"):
        cache_of(-1.0)
