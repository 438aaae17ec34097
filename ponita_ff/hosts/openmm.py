"""OpenMM (``pip install 'ponita-ff[openmm]'``): whole systems, and a ligand in molecular mechanics' water.

    from openmmml import MLPotential

    potential = MLPotential("ponita", potential="ethanol-rmd17")
    system = potential.createSystem(topology)
    system = potential.createMixedSystem(topology, mm_system, ligand_atoms)

``MLPotential`` finds the potential by an entry point, so that nothing need be imported (``openmm_entry.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray
from openmm import PythonForce, System, unit
from openmmml.mlpotential import MLPotential, MLPotentialImpl

if TYPE_CHECKING:
    from openmm.app import Topology

    from ponita_ff.calculator import PonitaCalculator

__all__ = ["PonitaImpl", "SpreadReporter"]

#: eV in kJ/mol.
_KJ_PER_MOL = units.mol / units.kJ

#: Å: no bond of a topology is shorter or longer than this, unless positions are in other units than OpenMM's.
_SHORTEST_BOND, _LONGEST_BOND = 0.3, 5.0


class PonitaImpl(MLPotentialImpl):
    """A potential or a committee behind openmmml's interface.

    Args:
        calculator: That computes.

    Attributes:
        evaluation: Of the system that was made last; None before.
    """

    def __init__(self, calculator: PonitaCalculator) -> None:
        self.calculator = calculator
        self.evaluation: Evaluation | None = None

    def addForces(
        self, topology: Topology, system: System, atoms: Iterable[int] | None, forceGroup: int, **args: Any
    ) -> None:
        """Add the potential of all atoms, or of some, to a system.

        Raises:
            ValueError: For atoms without an element, or of one that the potential does not know.
            TypeError: For arguments of ``createSystem``: there are none.
        """
        if atoms is None and args:
            raise TypeError(f"createSystem has no argument {sorted(args)} for this potential: give it to MLPotential")
        everyone = list(topology.atoms())
        particles = list(range(len(everyone))) if atoms is None else [int(index) for index in atoms]
        for index in particles:
            if everyone[index].element is None:
                raise ValueError(f"atom {index} ({everyone[index].name}) of the topology has no element: set it first")
        numbers = np.zeros(len(everyone), dtype=np.int64)
        numbers[particles] = [everyone[index].element.atomic_number for index in particles]
        for member in self.calculator.potentials:
            # As the topology numbers its atoms: the others are made a known element.
            member.check_species(np.where(numbers == 0, member.species[0], numbers))
        place = {particle: number for number, particle in enumerate(particles)}
        ends = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
        bonds = [(place[a], place[b]) for a, b in ends if a in place and b in place]
        periodic = topology.getPeriodicBoxVectors() is not None
        structure = Atoms(numbers=numbers[particles], pbc=periodic)
        self.evaluation = Evaluation(self.calculator, structure, particles, bonds)
        force = PythonForce(self.evaluation)
        force.setForceGroup(forceGroup)
        force.setUsesPeriodicBoundaryConditions(periodic)
        if atoms is not None:
            force.setParticles(particles)
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """No interaction reaches beyond the network's layers times its cutoff."""
        return False


class Evaluation:
    """What OpenMM calls for energy and forces. It can be pickled, as OpenMM's serializer does.

    Args:
        calculator: That computes.
        atoms: Elements and periodicity.
        particles: Their numbers in the system.
        bonds: Between these atoms, as the topology has them, by which positions in wrong units are found.
    """

    def __init__(
        self, calculator: PonitaCalculator, atoms: Atoms, particles: Sequence[int], bonds: Sequence[tuple[int, int]]
    ) -> None:
        self.calculator, self.particles = calculator, list(particles)
        self._atoms, self._bonds = atoms, np.array(bonds, dtype=np.int64).reshape(-1, 2)
        self._checked = False

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Energy in kJ/mol and forces in kJ/(mol nm).

        Args:
            state: Positions of these atoms alone and, for periodic systems, box vectors.

        Raises:
            ValueError: For structures that cannot be calculated.
        """
        self._place(state, state.getPositions(asNumpy=True))
        calculator = self.calculator
        energy = calculator.get_property("energy", self._atoms)
        forces = calculator.get_property("forces", self._atoms)
        return energy * _KJ_PER_MOL, forces * (_KJ_PER_MOL * 10.0)

    def spread(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Standard deviations of energy (eV) and forces (atoms, 3), eV/Å, of a committee.

        Args:
            state: Positions of the whole system and, for periodic systems, box vectors.
        """
        self._place(state, state.getPositions(asNumpy=True)[self.particles])
        energy_std: float = self.calculator.get_property("energy_std", self._atoms)
        return energy_std, self.calculator.get_property("forces_std", self._atoms)

    def _place(self, state: Any, positions: Any) -> None:
        self._atoms.positions = positions.value_in_unit(unit.angstrom)
        if self._atoms.pbc.any():
            self._atoms.cell[:] = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
        if not self._checked and len(self._bonds):
            self._check_units()
        self._checked = True

    def _check_units(self) -> None:
        """Refuse positions whose bonds are those of other units: OpenMM takes bare numbers for nm."""
        vectors = self._atoms.positions[self._bonds[:, 1]] - self._atoms.positions[self._bonds[:, 0]]
        if self._atoms.pbc.any():
            from ase.geometry import find_mic

            vectors, _ = find_mic(vectors, self._atoms.cell, self._atoms.pbc)
        lengths = np.linalg.norm(vectors, axis=1)
        middle = float(np.median(lengths))
        if not _SHORTEST_BOND < middle < _LONGEST_BOND:
            raise ValueError(
                f"the median bond of the topology has {middle:.3g} Å: positions are in other units than OpenMM's, "
                "which are nm; give them with a unit, as in positions * unit.angstrom"
            )


class SpreadReporter:
    """Reporter for OpenMM's simulations: a committee's standard deviations, with one evaluation of their own a report.

    ``simulation.reporters.append(SpreadReporter("spread.csv", 100, potential))`` writes step, energy (eV) and the
    largest of an atom's force (eV/Å, the norm over its components), calibrated where the potential has a calibration.

    Args:
        file: To write; it is overwritten.
        interval: Steps between reports.
        potential: Made with a list of potentials; it reports on the system that it made last.

    Raises:
        ValueError: For a potential that is no committee, or made no system yet.
    """

    def __init__(self, file: str | Path, interval: int, potential: MLPotential) -> None:
        impl = potential._impl
        if not isinstance(impl, PonitaImpl) or len(impl.calculator.potentials) < 2:
            raise ValueError("a spread needs a committee: MLPotential('ponita', potential=[one, another, …])")
        if impl.evaluation is None:
            raise ValueError("make the system first, with this potential's createSystem or createMixedSystem")
        self._evaluation, self._interval = impl.evaluation, interval
        self._out = Path(file).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed with the reporter
        self._out.write("step,energy_std_eV,largest_force_std_eV_per_A\n")

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """What OpenMM asks before each report."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": ["positions"]}

    def report(self, simulation: Any, state: Any) -> None:
        """Write one line."""
        energy, forces = self._evaluation.spread(state)
        self._out.write(f"{simulation.currentStep},{energy:.6g},{np.linalg.norm(forces, axis=1).max():.6g}\n")

    def __del__(self) -> None:
        out = getattr(self, "_out", None)
        if out is not None:
            out.close()
