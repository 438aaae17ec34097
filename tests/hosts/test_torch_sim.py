"""TorchSim: its validator, the calculator's numbers, dynamics and relaxation of many systems, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.ponita import Ponita
from ponita_ff.potential.file import PotentialFileError
from ponita_ff.potential.potential import Potential

torch_sim: Any = pytest.importorskip("torch_sim", reason="needs pip install 'ponita-ff[torch-sim]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch_sim.models.interface import validate_model_outputs

    from ponita_ff.hosts.torch_sim import PonitaModel

# Of TorchSim's making.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

MakePotential = Callable[..., Potential]
MakeSystem = Callable[[str], Atoms]

#: eV, eV/Å, eV/Å³.
TOLERANCES = {"float32": (1e-6, 1e-5, 1e-7), "float64": (1e-9, 1e-9, 1e-11)}


def replicas(number: int, size: float = 0.05) -> list[Atoms]:
    """Molecules of ethanol, each shaken differently."""
    systems = [molecule("CH3CH2OH") for _ in range(number)]
    for seed, atoms in enumerate(systems):
        atoms.rattle(size, seed=seed)
    return systems


def state_of(systems: list[Atoms], model: PonitaModel) -> Any:
    return torch_sim.initialize_state(systems, model.device, model.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_own_validator(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        network = Ponita(PonitaConfig(cutoff=4.0, channels=8, num_layers=1, num_ori=12, l_max=2), 5)
    potential = Potential(network, [1, 6, 12, 14, 26], {})
    model = PonitaModel(potential.eval(), device="cpu", dtype=dtype, state_dtype=dtype)
    assert not model.compute_stress
    validate_model_outputs(model, torch.device("cpu"), dtype)
    assert model.compute_stress and model.compute_forces
    assert model.memory_scales_with == "n_atoms_x_density"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", [("molecule", "molecule"), ("crystal", "two atoms in a tiny cell", "crystal")])
def test_the_calculators_numbers(
    dtype: str, names: tuple[str, ...], make_potential: MakePotential, make_system: MakeSystem
) -> None:
    potential = make_potential(zbl_cutoff=1.0)
    systems = [make_system(name) for name in names]
    systems[-1].rattle(0.1, seed=5)
    periodic = bool(systems[0].pbc.all())
    model = PonitaModel(potential, device="cpu", dtype=dtype, compute_stress=True)
    output = model(state_of(systems, model))
    assert {name: value.dtype for name, value in output.items()} == dict.fromkeys(
        ("energy", "forces", "stress"), torch.float64
    )
    calculator = PonitaCalculator(potential, device="cpu", dtype=dtype)
    energy_error, force_error, stress_error = TOLERANCES[dtype]
    forces = output["forces"].split([len(atoms) for atoms in systems])
    for index, atoms in enumerate(systems):
        atoms.calc = calculator
        assert float(output["energy"][index]) == pytest.approx(atoms.get_potential_energy(), abs=energy_error)
        np.testing.assert_allclose(forces[index].numpy(), atoms.get_forces(), rtol=0, atol=force_error)
        if periodic:
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(output["stress"][index].numpy(), stress, rtol=0, atol=stress_error)
    assert periodic != bool(output["stress"].isnan().all())


def test_a_state_as_a_dictionary(tiny_potential: Potential, make_system: MakeSystem) -> None:
    model = PonitaModel(tiny_potential, device="cpu")
    state = state_of([make_system("crystal")], model)
    fields = {name: getattr(state, name) for name in ("positions", "atomic_numbers", "pbc")} | {"cell": state.cell[0]}
    assert torch.equal(model(fields)["energy"], model(state)["energy"])


def test_a_state_in_single_precision_keeps_its_energies(tiny_potential: Potential) -> None:
    model = PonitaModel(tiny_potential, device="cpu", state_dtype="float32")
    systems = replicas(3)
    final = torch_sim.optimize(systems, model, optimizer=torch_sim.optimizers.fire, max_steps=10)
    assert final.positions.dtype == final.forces.dtype == torch.float32
    calculator = PonitaCalculator(tiny_potential, device="cpu")
    for index, atoms in enumerate(final.to_atoms()):
        atoms.calc = calculator
        assert float(final.energy[index]) == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_energy_is_conserved() -> None:
    model = PonitaModel("ethanol-rmd17", device="cpu")
    systems = replicas(2, 0.0)
    init, step = torch_sim.nve(model=model, dt=torch.tensor(0.5e-3 * torch_sim.units.MetalUnits.time), kT=0.0)
    state = init(state_of(systems, model), kT=torch.tensor(300 * torch_sim.units.MetalUnits.temperature), seed=1)
    totals = []
    for _ in range(400):  # 0.2 ps
        state = step(state)
        kinetic = 0.5 * (state.momenta.square().sum(1) / state.masses)
        totals.append(state.energy + torch.zeros(2, dtype=torch.float64).index_add(0, state.system_idx, kinetic))
    total = torch.stack(totals)
    assert float(kinetic.sum()) > 0.1
    # The integrator's own error at 0.5 fs; forces that do not fit the energy make it grow far beyond.
    assert float((total - total[0]).abs().max()) < 0.02
    assert float((total[-100:].mean(0) - total[:100].mean(0)).abs().max()) < 2e-3


def test_many_sizes_in_small_batches() -> None:
    model = PonitaModel("organic-rmd17", device="cpu")
    systems = [molecule(name) for name in ("CH3CH2OH", "C6H6", "CH4", "H2CO")]
    for seed, atoms in enumerate(systems):
        atoms.rattle(0.03, seed=seed)
    batcher = torch_sim.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=20)
    converged = torch_sim.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False)
    options: dict[str, Any] = {"optimizer": torch_sim.optimizers.fire, "convergence_fn": converged, "max_steps": 500}
    final = torch_sim.optimize(systems, model, autobatcher=batcher, **options)
    calculator = PonitaCalculator("organic-rmd17", device="cpu")
    for before, atoms in zip(systems, final.to_atoms(), strict=True):
        assert atoms.get_chemical_formula() == before.get_chemical_formula()
        atoms.calc = calculator
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05


def test_a_committee_has_a_spread(make_potential: MakePotential) -> None:
    members = [make_potential(seed=seed) for seed in range(2)]
    model = PonitaModel(members, device="cpu")
    (atoms,) = systems = replicas(1)
    output = model(state_of(systems, model))
    atoms.calc = PonitaCalculator(members, device="cpu")
    atoms.get_forces()
    assert float(output["energy_std"]) == pytest.approx(atoms.calc.results["energy_std"], abs=1e-9)
    np.testing.assert_allclose(output["forces_std"].numpy(), atoms.calc.results["forces_std"], atol=1e-9)


def test_what_is_refused(tiny_potential: Potential, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a potential")
    with pytest.raises(PotentialFileError, match=r"damaged\.safetensors"):
        PonitaModel(damaged)
    with pytest.raises(ValueError, match="state_dtype"):
        PonitaModel(tiny_potential, state_dtype="float16")
    with pytest.raises(TypeError, match="ratations"):
        PonitaModel(tiny_potential, ratations=2)
    model = PonitaModel(tiny_potential, device="cpu")
    systems = replicas(2)
    systems[1].numbers[4] = 9
    with pytest.raises(ValueError, match="structure 1: atom 4 is F"):
        torch_sim.integrate(
            systems, model, integrator=torch_sim.nvt_langevin, n_steps=1, temperature=300, timestep=0.001
        )
    state = state_of(replicas(1), model)
    state.positions = torch.empty_like(state.positions, device="meta")
    with pytest.raises(ValueError, match="the state is on meta, the model on cpu"):
        model(state)
