"""Batches by a potential or a committee: the calculator's numbers, calibrated spread, errors that name a structure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.hosts.batched import BatchedPotential
from ponita_ff.potential.potential import Potential
from ponita_ff.uncertainty import Calibration, hash_of_weights

MakePotential = Callable[..., Potential]
MakeSystem = Callable[[str], Atoms]


def tensors(systems: list[Atoms]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, numbers, batch and cells."""
    sizes = torch.tensor([len(atoms) for atoms in systems])
    return (
        torch.from_numpy(np.concatenate([atoms.positions for atoms in systems])),
        torch.from_numpy(np.concatenate([atoms.numbers for atoms in systems])),
        torch.arange(len(systems)).repeat_interleave(sizes),
        torch.from_numpy(np.stack([np.asarray(atoms.cell) for atoms in systems])),
    )


def test_a_calibrated_committee(make_potential: MakePotential, make_system: MakeSystem) -> None:
    members = [make_potential(seed=seed) for seed in range(3)]
    hashes = tuple(hash_of_weights(member) for member in members)
    calibration = Calibration(2.0, 3.0, 10, (0.7, 0.9), 0.5, 0.1, hashes)
    systems = [make_system("crystal"), make_system("two atoms in a tiny cell")]
    batched = BatchedPotential(members, calibration=calibration)
    found = batched(*tensors(systems), True, stress=True)
    calculator = PonitaCalculator(members, calibration=calibration)
    assert found.stress is not None and found.energy_std is not None and found.forces_std is not None
    for index, (atoms, forces, spread) in enumerate(
        zip(systems, found.forces.split([4, 2]), found.forces_std.split([4, 2]), strict=True)
    ):
        atoms.calc = calculator
        assert float(found.energy[index]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(forces.numpy(), atoms.get_forces(), rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.stress[index].numpy(), atoms.get_stress(voigt=False), rtol=0, atol=1e-11)
        assert float(found.energy_std[index]) == pytest.approx(calculator.results["energy_std"], abs=1e-9)
        np.testing.assert_allclose(spread.numpy(), calculator.results["forces_std"], rtol=0, atol=1e-9)


def test_one_potential_has_no_spread(tiny_potential: Potential, make_system: MakeSystem) -> None:
    batched = BatchedPotential(tiny_potential)
    found = batched(*tensors([make_system("molecule")]), False)
    assert not batched.is_committee
    assert found.energy_std is None and found.forces_std is None and found.stress is None


def test_what_cannot_be_calculated_is_named(tiny_potential: Potential, make_system: MakeSystem) -> None:
    systems = [make_system("molecule"), make_system("molecule")]
    batched = BatchedPotential(tiny_potential)
    positions, numbers, batch, cells = tensors(systems)
    batched(positions, numbers, batch, cells, False)
    positions[12] = positions[10] + 0.01  # its list holds: a small molecule's always does
    with pytest.raises(ValueError, match=r"structure 1: atoms [13] and [13] are in one place"):
        batched(positions, numbers, batch, cells, False)
    systems[1].numbers[2] = 17
    with pytest.raises(ValueError, match="structure 1: atom 2 is Cl"):
        batched(*tensors(systems), False)


def test_results_that_are_not_finite_are_refused(tiny_potential: Potential, make_system: MakeSystem) -> None:
    batched = BatchedPotential(tiny_potential)
    predict = batched._predictors[0]

    def spoil(*args: object) -> list[Tensor]:
        values = [value.clone() for value in predict(*args)]  # type: ignore[arg-type]
        values[2][9] = torch.inf
        return values

    batched._predictors[0] = spoil  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="structure 1: energy or forces are not finite"):
        batched(*tensors([make_system("molecule")] * 2), False)


def test_moving_molecules_are_watched(make_system: MakeSystem, caplog: pytest.LogCaptureFixture) -> None:
    batched = BatchedPotential("ethanol-rmd17")
    positions, numbers, batch, cells = tensors([make_system("molecule")] * 2)
    cells += 50.0 * torch.eye(3)  # a box that means nothing
    batched(positions, numbers, batch, cells, False)
    assert batched.calculator.domain_watch.looks == 1 and not caplog.records
    positions[9:] *= 1.3
    for _ in range(20):
        batched(positions, numbers, batch, cells, False)
    assert batched.calculator.domain_watch.looks == 2
    assert "does not know this structure" in caplog.text
