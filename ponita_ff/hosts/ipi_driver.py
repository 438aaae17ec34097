"""i-PI (``pip install 'ponita-ff[ipi]'``): path integrals, with all beads in one evaluation.

In i-PI's input, with the number of beads as batch size:

    <ffdirect name='ponita'>
      <pes>custom</pes>
      <pes_path>…/ponita_ff/hosts/ipi_driver.py</pes_path>
      <batch_size>32</batch_size>
      <parameters>{template: ethanol.xyz, potential: ethanol-rmd17}</parameters>
    </ffdirect>

:func:`ffdirect` writes this, and ``python -m ponita_ff.hosts.ipi_driver`` prints the path of this file. It is not
called ipi.py because i-PI loads it under the file's name, which would then stand in the way of i-PI itself.

Over a socket, one structure at a time, i-PI takes any ASE calculator: ``<ffsocket mode='unix' name='ponita'>
<address>ponita</address></ffsocket>`` there, and here ``ase.calculators.socketio.SocketClient(unixsocket="ponita")
.run(atoms)`` with a ``PonitaCalculator`` on the atoms.

i-PI's units are atomic ones; conversions are i-PI's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ipi.pes.dummy import Dummy_driver
from ipi.utils.units import unit_to_internal, unit_to_user
from numpy.typing import NDArray

from ponita_ff.hosts.batched import BatchedPotential, BatchedResults

__all__ = ["PonitaDriver", "ffdirect"]

__DRIVER_NAME__ = "ponita"
__DRIVER_CLASS__ = "PonitaDriver"

#: How much larger or smaller than the template a first structure may be.
_SCALE = 1.5

Array = NDArray[np.float64]
#: Potential, forces, virial, extras: as i-PI takes them.
Reply = tuple[float, Array, Array, str]


class PonitaDriver(Dummy_driver):
    """A potential, or a committee of several, as a driver of i-PI.

    Args:
        template: A file that ASE reads, with the atoms in the order of i-PI's input. Its periodicity holds for the run.
        potential: A shipped name or a file; several, separated by ``+``, are a committee.
        options: Those of :class:`ponita_ff.calculator.PonitaCalculator`: device, dtype, calibration, …
        verbose, verbosity: Of i-PI; they change nothing.

    Of a committee the extras hold ``energy_std`` (eV) and ``forces_std`` (eV/Å), calibrated if there is a calibration.

    Raises:
        ValueError: For a template that cannot be read, or elements that the potential does not know; from a call, for
            structures that cannot be calculated.
        FileNotFoundError, PotentialFileError, TypeError: As the calculator raises them.
    """

    def __init__(
        self, template: str, potential: str, verbose: bool = False, verbosity: Any = None, **options: Any
    ) -> None:
        self._atoms = _read_template(template)
        members: Any = [name.strip() for name in str(potential).split("+")]
        self._batched = BatchedPotential(members if len(members) > 1 else members[0], **options)
        self._batched.check_species(self._atoms.numbers)
        self._checked = False
        super().__init__(verbose)

    def compute_structure(self, cell: Array, pos: Array) -> Reply:
        """One structure: a batch of one."""
        return self.compute([cell], [pos])[0]

    def compute(self, cell: Any, pos: Any) -> Any:
        """Potential, forces, virial and extras of a structure, or of each of a list of structures, in i-PI's units.

        Args:
            cell: Shape (3, 3), columns are the cell vectors, or a list of these.
            pos: Shape (atoms, 3), or a list of these.
        """
        if not isinstance(cell, list):
            return self.compute_structure(cell, pos)
        positions = unit_to_user("length", "angstrom", np.array(pos, dtype=np.float64))
        cells = unit_to_user("length", "angstrom", np.array(cell, dtype=np.float64)).swapaxes(-1, -2)
        beads, size = positions.shape[:2]
        if size != len(self._atoms):
            raise ValueError(f"i-PI has {size} atoms, the template {len(self._atoms)}: they must be the same")
        if not self._checked:
            _check_scale(positions[0], self._atoms)
            self._checked = True
        device = self._batched.device
        found = self._batched(
            torch.from_numpy(positions.reshape(-1, 3)).to(device),
            torch.from_numpy(np.tile(self._atoms.numbers, beads)).to(device),
            torch.arange(beads, device=device).repeat_interleave(size),
            torch.from_numpy(cells.copy()).to(device),
            self._atoms.pbc,
            stress=True,
        )
        return _replies(found, np.abs(np.linalg.det(cells)), size)


def ffdirect(template: str | Path, potential: str, beads: int, name: str = "ponita", **options: Any) -> str:
    """The part of i-PI's input that names this driver.

    Args:
        template, potential, options: As for :class:`PonitaDriver`; paths are those that i-PI finds where it runs.
        beads: Structures in one evaluation; the number of beads must be a multiple of it.
        name: By which ``<force forcefield='…'/>`` finds it.
    """
    parameters = {"template": template, "potential": potential, **options}
    listed = ", ".join(f"{key}: {value}" for key, value in parameters.items())
    return (
        f"<ffdirect name='{name}' pbc='false'> <pes>custom</pes> <pes_path>{Path(__file__).resolve()}</pes_path> "
        f"<batch_size>{beads}</batch_size> <parameters>{{{listed}}}</parameters> </ffdirect>"
    )


def _read_template(template: str) -> Atoms:
    try:
        atoms = ase.io.read(template)
    except Exception as error:  # whatever one of ASE's many readers makes of a file
        raise ValueError(f"cannot read the template {template}: {error}") from None
    assert isinstance(atoms, Atoms)
    return atoms


def _check_scale(positions: Array, template: Atoms) -> None:
    """Refuse a first structure of another size than the template's: positions in other units than i-PI was told."""
    if template.pbc.any() or len(template) < 2:
        return
    extent, expected = (float((points - points.mean(0)).std()) for points in (positions, template.positions))
    if not expected / _SCALE < extent < expected * _SCALE:
        raise ValueError(
            f"i-PI's structure is {extent / expected:.3g} times as large as the template: check the units of the file "
            "that initialises i-PI (units='angstrom'), whose own are atomic units"
        )


def _replies(found: BatchedResults, volumes: Array, size: int) -> list[Reply]:
    assert found.stress is not None
    # Forces by the units of energy and length: i-PI's own "ev/ang" is another one, by 1e-7.
    electronvolt, angstrom = (
        unit_to_internal("energy", "electronvolt", 1.0),
        unit_to_internal("length", "angstrom", 1.0),
    )
    energies = found.energy.cpu().numpy() * electronvolt
    forces = found.forces.double().cpu().numpy().reshape(-1, size, 3) * (electronvolt / angstrom)
    virials = -found.stress.double().cpu().numpy() * volumes[:, None, None] * electronvolt
    extras = [""] * len(energies)
    if found.energy_std is not None and found.forces_std is not None:
        spread = zip(found.energy_std.tolist(), found.forces_std.cpu().view(-1, size, 3).tolist(), strict=True)
        extras = [json.dumps({"energy_std": energy, "forces_std": each}) for energy, each in spread]
    return [
        (float(energy), force, virial, extra)
        for energy, force, virial, extra in zip(energies, forces, virials, extras, strict=True)
    ]


if __name__ == "__main__":
    print(Path(__file__).resolve())
