"""Batches as a GPU takes them, without a GPU: the same function, padded to the same shapes, not recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch.fx.experimental.proxy_tensor import make_fx

from ponita_ff.backends import recorded_batches
from ponita_ff.backends.recorded_batches import RecordedBatches, _inputs
from ponita_ff.energy.derivatives import predict
from ponita_ff.hosts.batched import BatchedPotential
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import Graph, batch_graphs, build_graph

SMALL = {"channels": 4, "num_layers": 1, "l_max": 1, "num_ori": 6}


def batch_of(potential: Potential, *systems: Atoms) -> Graph:
    return batch_graphs(
        [
            build_graph(a.numbers, a.positions, potential.cutoff, a.cell.array if a.pbc.any() else None, a.pbc)
            for a in systems
        ]
    )


def recorded(batches: RecordedBatches, graph: Graph, forces: bool = True, stress: bool = False) -> Any:
    """The prediction from the recording, which a shape gets when it comes again."""
    batches(graph, forces, stress)
    before = len(batches._recordings)
    found = batches(graph, forces, stress)
    assert len(batches._recordings) == before + 1
    return found


@pytest.mark.parametrize(("forces", "stress"), [(True, True), (True, False), (False, False), (False, True)])
def test_same_predictions(
    forces: bool, stress: bool, make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    potential = make_potential(zbl_cutoff=1.5, **SMALL)
    crystal, tiny = make_system("crystal"), make_system("two atoms in a tiny cell")
    graph = batch_of(potential, crystal, tiny, crystal)
    expected = predict(potential, graph, forces, stress)
    found = recorded(RecordedBatches(potential, record=False), graph, forces, stress)
    assert len(found) == len(expected) == 2 + forces + stress
    for value, reference in zip(found, expected, strict=True):
        assert value.shape == reference.shape
        assert value.numpy() == pytest.approx(reference.numpy(), rel=1e-12, abs=1e-11)


def test_positions_cells_and_tables_of_later_calls(
    make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    """Positions and cells alone move from call to call; then comes another table of the same shape."""
    potential = make_potential(**SMALL)
    batches = RecordedBatches(potential, record=False)
    crystal, generator = make_system("crystal"), torch.Generator().manual_seed(0)
    for elements in (1, -1):
        other = crystal.copy()
        other.numbers = other.numbers[::elements]
        graph = batch_of(potential, other, crystal)
        for moved in (0.0, 0.02):
            move = torch.rand(graph["positions"].shape, generator=generator, dtype=torch.float64)
            graph["positions"] = graph["positions"] + moved * move
            graph["cell"] = graph["cell"] * (1.0 + moved)
            for _ in range(2):
                found = batches(graph, True, True)
            for value, reference in zip(found, predict(potential, graph, True, True), strict=True):
                assert value.numpy() == pytest.approx(reference.numpy(), rel=1e-12, abs=1e-11)
    assert len(batches._recordings) == 1


def test_results_are_the_callers_own(
    make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    potential = make_potential(**SMALL)
    batches = RecordedBatches(potential, record=False)
    graph = batch_of(potential, make_system("molecule"), make_system("molecule"))
    held = torch.zeros(3, dtype=torch.float64)
    batches(graph, True, False)
    batches._recordings.run = lambda *args: (held, *[torch.zeros(64, 3)] * 2)  # type: ignore[method-assign, assignment]
    energy, _, _ = batches(graph, True, False)
    held += 1.0
    assert not energy.any()


def test_large_batches_and_new_shapes_run_as_they_are(
    make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = make_potential(**SMALL)
    batches = RecordedBatches(potential, record=False)
    graphs = [batch_of(potential, *[make_system("molecule")] * number) for number in (1, 2, 3)]
    for graph in graphs:
        batches(graph, True, False)
    assert len(batches._recordings) == 0
    monkeypatch.setattr(recorded_batches, "_MAX_ATOMS", graphs[1].num_nodes)
    for graph in graphs:
        batches(graph, True, False)
    assert len(batches._recordings) == 2


def test_nothing_depends_on_values(
    make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    """It traces with tensors that have no values, so that it can be recorded."""
    potential = make_potential(zbl_cutoff=1.5, **SMALL)
    batches = RecordedBatches(potential, record=False)
    inputs = _inputs(batch_of(potential, make_system("crystal"), make_system("crystal")), 24, 56)

    def function(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return batches._predict(tensors, forces=True, stress=True)

    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(inputs)
    for value, reference in zip(traced(inputs), function(inputs), strict=True):
        assert value.numpy() == pytest.approx(reference.numpy(), rel=1e-10, abs=1e-10)


def test_through_the_batches_of_other_engines(
    make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    """A committee, moved through new lists: as without recordings."""
    potentials = [make_potential(**SMALL), make_potential(seed=1, **SMALL)]
    there, here = (BatchedPotential(list(potentials), backend="eager", skin=0.2) for _ in range(2))
    for predictor, potential in zip(there._predictors, potentials, strict=True):
        predictor._recorded = RecordedBatches(potential, record=False)
    crystal = make_system("crystal")
    points = torch.from_numpy(np.concatenate([crystal.positions] * 2))
    numbers = torch.from_numpy(np.tile(crystal.numbers, 2))
    batch = torch.arange(2).repeat_interleave(len(crystal))
    cells = torch.from_numpy(np.stack([crystal.cell.array] * 2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        points = points + 0.05 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
        found, expected = (batched(points, numbers, batch, cells, True, True) for batched in (there, here))
        for value, reference in zip(found, expected, strict=True):
            assert value.numpy() == pytest.approx(reference.numpy(), rel=1e-10, abs=1e-10)
    assert all(len(predictor._recorded._recordings) for predictor in there._predictors)  # type: ignore[union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_replayed_batches(make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]) -> None:
    """The third call of a shape is replayed; a predictor on a GPU takes recordings by itself."""
    potential = make_potential(dtype=torch.float32, **SMALL)
    graph = batch_of(potential, make_system("molecule"), make_system("molecule"))
    predictor = potential.to(device="cuda").predictor("eager")
    for moved in (0.0, 0.02, 0.04):
        there = graph.to("cuda")
        there["positions"] = there["positions"] + moved
        found = predictor(there)
    assert predictor._recorded is not None
    (recording,) = predictor._recorded._recordings._recordings.values()
    assert recording._graph is not None
    expected = predict(potential.to(device="cpu"), graph, True, False)
    for value, reference in zip(found, expected, strict=True):
        assert value.cpu().numpy() == pytest.approx(reference.numpy(), abs=1e-4)
