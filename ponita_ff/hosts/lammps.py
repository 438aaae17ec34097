"""LAMMPS, reference route: ``fix external`` with ghost atoms out to layers × cutoff, all in Python.

    from mpi4py import MPI
    from lammps import lammps
    from ponita_ff.hosts.lammps import attach

    lmp = lammps()
    lmp.commands_string(…)                        # units metal, box, atoms, masses
    attach(lmp, "ethanol-rmd17", ["H", "C", "O"])  # the element of each atom type
    lmp.command("run 100")

Every process computes the energies of its own atoms from all atoms that these feel, through as many shells as the
network has layers. That is simple, and the ghosts are many: the pair style (pair_ponita.cpp, ``ponita-ff
lammps-plugin``) exchanges features between layers instead, needs one shell, and is what to run. This route is what it
is compared with.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ponita_ff.energy.assembly import reference_energies
from ponita_ff.energy.derivatives import differentiate_part
from ponita_ff.hosts.lammps_model import load_member, species_of_types
from ponita_ff.potential.device import choose_dtype
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import COINCIDENT, build_graph, shortest_edge

__all__ = ["GhostEvaluation", "attach"]

Array = NDArray[np.float64]


class GhostEvaluation:
    """What ``fix external`` calls in every process.

    Args:
        lmp: ``lammps.lammps``.
        potential: Whose network has a reach.
        numbers: Atomic number of each atom type.
        fix: Name of the fix.

    Attributes:
        ghosts: Number of ghost atoms in the last evaluation.
    """

    def __init__(self, lmp: Any, potential: Potential, numbers: Sequence[int], fix: str) -> None:
        from mpi4py import MPI

        self._lmp, self._potential, self._fix, self._mpi = lmp, potential, fix, MPI
        self._numbers = np.array([0, *numbers], dtype=np.int64)
        self.ghosts = 0

    def __call__(self, _: Any, step: int, local: int, tags: Any, positions: Any, forces: Any) -> None:
        """Called by LAMMPS; writes into ``forces`` (local, 3), eV/Å. An exception ends all processes."""
        try:
            self._evaluate(local, forces)
        except Exception:  # which ctypes would print and forget, and the run would go on
            traceback.print_exc()
            sys.stderr.flush()
            self._mpi.COMM_WORLD.Abort(1)

    def _evaluate(self, local: int, forces: Array) -> None:
        lmp, comm = self._lmp, self._mpi.COMM_WORLD
        self.ghosts = lmp.extract_global("nghost")
        known = local + self.ghosts
        positions = np.array(lmp.numpy.extract_atom("x", nelem=known, dim=3), dtype=np.float64).reshape(known, 3)
        types = np.array(lmp.numpy.extract_atom("type", nelem=known), dtype=np.int64).ravel()
        tags = np.array(lmp.numpy.extract_atom("id", nelem=known), dtype=np.int64).ravel()
        energies, gradient = np.zeros(0), np.zeros((0, 3))
        if local:
            energies, gradient = self._own_energies(positions, self._numbers[types], local)
        most = comm.allreduce(int(tags.max(initial=0)), op=self._mpi.MAX)
        shared = np.zeros((most + 1, 3))
        np.add.at(shared, tags, gradient)
        comm.Allreduce(self._mpi.IN_PLACE, shared)
        forces[:] = -shared[tags[:local]]
        # The energy does not change with a shift, so that the origin may be anywhere.
        centred = positions - positions.mean(0) if known else positions
        virial = -comm.allreduce(centred.T @ gradient)
        virial = 0.5 * (virial + virial.T)  # the energy depends a little on how the whole is turned
        voigt = [virial[0, 0], virial[1, 1], virial[2, 2], virial[0, 1], virial[0, 2], virial[1, 2]]
        lmp.fix_external_set_energy_global(self._fix, comm.allreduce(float(energies.sum())))
        lmp.fix_external_set_energy_peratom(self._fix, energies.tolist())
        lmp.fix_external_set_virial_global(self._fix, [float(value) for value in voigt])

    def _own_energies(self, positions: Array, numbers: NDArray[np.int64], local: int) -> tuple[Array, Array]:
        """Energies of the first atoms (local,), eV, and their sum's gradient by all positions (N, 3), eV/Å."""
        graph = build_graph(numbers, positions, self._potential.cutoff)
        distance, first, _ = shortest_edge(graph)
        if distance < COINCIDENT:
            raise ValueError(f"two atoms are in one place ({distance:.2g} Å apart), at {positions[first]}")
        energies, gradient = differentiate_part(self._potential, graph, local)
        total = energies.double() + reference_energies(self._potential, graph)[:local]
        if not bool(total.isfinite().all() & gradient.isfinite().all()):
            raise ValueError("energy or forces are not finite: the structure is far outside the training data")
        return total.numpy(), gradient.double().numpy()


def attach(
    lmp: Any,
    potential: str,
    elements: Sequence[str],
    dtype: str | torch.dtype | None = None,
    skin: float = 2.0,
    fix: str = "ponita",
) -> GhostEvaluation:
    """Let a potential move the atoms of a LAMMPS that has a box and atom types.

    Args:
        lmp: ``lammps.lammps``; every process calls this.
        potential: A shipped name or a file.
        elements: Of each atom type.
        dtype: float32, float64, or None for the file's own.
        skin: Of LAMMPS' neighbour list, Å.
        fix: Name of the ``fix external`` that is made.

    Raises:
        FileNotFoundError, PotentialFileError: As :func:`ponita_ff.potential.file.load_potential`.
        ValueError: For a committee, other units than metal, elements that are too few, too many or not known, or a
            network that has no layers of a cutoff.
    """
    units, types = lmp.extract_global("units"), lmp.extract_global("ntypes")
    if units != "metal":
        raise ValueError(f"the potential is in eV and Å: LAMMPS needs 'units metal', not 'units {units}'")
    if len(elements) != types:
        raise ValueError(f"LAMMPS has {types} atom types, and {len(elements)} elements were given: one for each")
    loaded = load_member(potential)
    species_of_types(loaded, elements)
    loaded.to(dtype=choose_dtype(dtype) or loaded.dtype)
    if loaded.cutoff is None or loaded.network.reach is None:
        raise ValueError(
            f"{potential} has no cutoff, or energies that depend on the whole structure: LAMMPS cannot divide the "
            "atoms among processes"
        )
    evaluation = GhostEvaluation(lmp, loaded, [atomic_numbers[symbol] for symbol in elements], fix)
    reach = loaded.network.reach + skin
    lmp.commands_string(
        f"""pair_style zero {loaded.cutoff}
        pair_coeff * *
        neighbor {skin} bin
        comm_modify cutoff {reach}
        fix {fix} all external pf/callback 1 1
        fix_modify {fix} energy yes virial yes"""
    )
    lmp.set_fix_external_callback(fix, evaluation, None)
    return evaluation
