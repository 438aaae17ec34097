"""TorchSim (``pip install 'ponita-ff[torch-sim]'``): many systems in one state, one evaluation of all of them a step.

    import torch_sim
    from ponita_ff.hosts.torch_sim import PonitaModel

    model = PonitaModel("ethanol-rmd17")
    state = torch_sim.integrate(systems, model, integrator=torch_sim.nvt_langevin, n_steps=1000, …)

Units are TorchSim's metal units, which are those of this package: eV, Å, eV/Å³.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from ponita_ff.hosts.batched import BatchedPotential, Given
from ponita_ff.potential.device import DTYPES

__all__ = ["PonitaModel"]


class PonitaModel(ModelInterface):
    """A potential, or a committee of several, as a model of TorchSim.

    Args:
        potential: As for :class:`ponita_ff.calculator.PonitaCalculator`: a shipped name, a file, a ``Potential``, or a
            list of these for a committee.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …; states live there too.
        dtype: Of the network; None for the file's own. With float32 on the CPU the native engine computes.
        state_dtype: In which TorchSim keeps positions and velocities. Float64, the default, costs next to nothing
            and rounds no positions; total energies are float64 always, since float32 rounds a molecule's thousands of
            eV to half a meV.
        compute_forces: For TorchSim; forces are always there.
        compute_stress: Whether to compute stress: for variable cells and constant pressure.
        options: Others of the calculator: skin, rotations, backend, calibration, …

    Output: ``energy`` (systems,), ``forces`` (atoms, 3), with ``compute_stress`` also ``stress`` (systems, 3, 3): NaN,
    TorchSim's own sign of no stress, where systems are not periodic in all directions; of a committee also
    ``energy_std`` (systems,) and ``forces_std`` (atoms, 3), calibrated where a calibration was given.

    Raises:
        FileNotFoundError, PotentialFileError, ValueError, TypeError: As the calculator raises them; from a call, for
            states on another device, or with systems that cannot be calculated, which are named.
    """

    def __init__(
        self,
        potential: Given,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        state_dtype: str | torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self._batched = BatchedPotential(potential, device=device, dtype=dtype, **options)
        kept = DTYPES.get(str(state_dtype).removeprefix("torch."))
        if kept is None:
            raise ValueError(f"state_dtype must be 'float32' or 'float64', got {state_dtype!r}")
        self._device, self._dtype = self._batched.device, kept
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._memory_scales_with = "n_atoms_x_density"

    @property
    def compute_stress(self) -> bool:
        """Whether stress is computed."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether TorchSim may ask for forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        self._compute_forces = compute_forces

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Energy, forces and stress of all systems of a state, or of a dictionary with a state's fields."""
        field = state.get if isinstance(state, dict) else partial(getattr, state)
        positions, cell, numbers, owners = map(field, ("positions", "cell", "atomic_numbers", "system_idx"))
        if positions.device != self._device:
            raise ValueError(f"the state is on {positions.device}, the model on {self._device}: move one of them")
        batch = torch.zeros_like(numbers, dtype=torch.int64) if owners is None else owners
        pbc = torch.as_tensor(field("pbc")).expand(3).tolist()
        stress = self._compute_stress and all(pbc)
        # TorchSim's cell vectors are columns.
        found = self._batched(positions, numbers, batch, cell.reshape(-1, 3, 3).mT, pbc, stress)
        output = {"energy": found.energy, "forces": found.forces.to(positions.dtype)}
        if self._compute_stress:
            none = positions.new_full((len(found.energy), 3, 3), torch.nan)
            output["stress"] = none if found.stress is None else found.stress.to(positions.dtype)
        if found.energy_std is not None and found.forces_std is not None:
            output |= {"energy_std": found.energy_std, "forces_std": found.forces_std.to(positions.dtype)}
        return output
