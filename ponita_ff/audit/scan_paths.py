"""Paths through configuration space: stretched bonds, a detached atom, a rotated molecule, an expanded cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from scipy.spatial.transform import Rotation

from ponita_ff.audit.settings import ScanSettings
from ponita_ff.audit.target import Array, AuditTarget
from ponita_ff.structure.bonds import Bonds, bond_fragment

__all__ = [
    "PathPoint",
    "ScanPath",
    "all_paths",
    "bond_paths",
    "cell_expansion_path",
    "detachment_path",
    "rotation_path",
    "straight_path",
]

#: Factor of the cell lengths at which the expansion of the cell begins.
_SMALLEST_CELL = 0.95


@dataclass(frozen=True)
class PathPoint:
    """Energy and derivatives at one point of a path.

    Attributes:
        energy: Total energy, eV.
        slope: dE/ds from the forces or the stress, eV/Å; None if the calculator does not provide them.
        forces: Forces on the atoms, eV/Å, shape (n, 3).
    """

    energy: float
    slope: float | None
    forces: Array


@dataclass(frozen=True)
class ScanPath:
    """A path through configuration space, with a parameter s in Å.

    Attributes:
        name: Name for the page.
        values: Equally spaced values of s, Å, shape (k,).
        structure: Returns the atoms at s, with their calculator.
        slope: Returns dE/ds of these atoms by the chain rule, eV/Å; None if the calculator does not provide it.
    """

    name: str
    values: Array
    structure: Callable[[float], Atoms]
    slope: Callable[[Atoms, float], float | None]

    def point(self, s: float) -> PathPoint:
        """Calculate the point at s."""
        atoms = self.structure(s)
        return PathPoint(float(atoms.get_potential_energy()), self.slope(atoms, s), np.array(atoms.get_forces()))


def straight_path(name: str, atoms: Atoms, direction: Array, values: Array) -> ScanPath:
    """Return the path on which positions are displaced by s · direction.

    Args:
        name: Name for the page.
        atoms: Structure at s = 0, with its calculator.
        direction: Shape (n, 3); unit vectors for the atoms that move, zero for the others.
        values: Values of s, Å.
    """

    def structure(s: float) -> Atoms:
        copy = atoms.copy()
        copy.positions = atoms.positions + s * direction
        copy.calc = atoms.calc
        return copy

    return ScanPath(name, values, structure, lambda moved, _: -float(np.sum(moved.get_forces() * direction)))


def rotation_path(atoms: Atoms, axis: Array, spacing: float) -> ScanPath:
    """Return the path on which a molecule is rotated by 180° about its centre of mass.

    Args:
        atoms: The molecule, with its calculator.
        axis: Unit vector of the rotation axis, shape (3,).
        spacing: Spacing of s, Å; s is the arc length of the outermost atom.
    """
    centred = atoms.copy()
    centred.calc = atoms.calc
    centred.positions -= atoms.get_center_of_mass()
    radius = float(np.linalg.norm(np.cross(axis, centred.positions), axis=1).max())

    def structure(s: float) -> Atoms:
        copy = centred.copy()
        copy.positions = Rotation.from_rotvec(s / radius * axis).apply(centred.positions)
        copy.calc = atoms.calc
        return copy

    def slope(rotated: Atoms, _: float) -> float:
        return -float(np.sum(rotated.get_forces() * np.cross(axis, rotated.positions))) / radius

    return ScanPath("molecule rotated", np.arange(0.0, np.pi * radius, spacing), structure, slope)


def cell_expansion_path(atoms: Atoms, factor: float, spacing: float) -> ScanPath:
    """Return the path on which cell and positions are scaled from 0.95 to ``factor``.

    The slope is V tr σ / L, with L the length of the shortest cell vector. It needs the stress, and a structure that is
    periodic in all directions.

    Args:
        atoms: The structure, with its calculator.
        factor: Largest factor of the cell lengths.
        spacing: Spacing of s, Å; s is the change of L.
    """
    length = float(atoms.cell.lengths()[atoms.pbc].min())

    def structure(s: float) -> Atoms:
        copy = atoms.copy()
        copy.calc = atoms.calc
        copy.set_cell(atoms.cell.array * (1 + s / length), scale_atoms=True)
        return copy

    def slope(scaled: Atoms, s: float) -> float | None:
        if not scaled.pbc.all():
            return None
        try:
            trace = float(scaled.get_stress()[:3].sum())
        except (PropertyNotImplementedError, NotImplementedError):
            return None
        return scaled.get_volume() * trace / (length + s)

    values = np.arange((_SMALLEST_CELL - 1) * length, (factor - 1) * length, spacing)
    return ScanPath("cell expanded", values, structure, slope)


def bond_paths(target: AuditTarget, atoms: Atoms, settings: ScanSettings) -> list[ScanPath]:
    """Return one path for each pair of bonded elements: its shortest bond, stretched and compressed.

    In molecules the smaller fragment moves. In periodic structures, where a bond does not separate fragments, one atom
    moves along the bond.

    Args:
        target: Provides the bonds.
        atoms: The structure, with its calculator.
        settings: Lengths and number of the paths.
    """
    bonds = target.bonds
    shortest: dict[tuple[int, int], int] = {}
    for index in np.argsort(bonds.lengths, kind="stable"):
        light, heavy = sorted(int(z) for z in atoms.numbers[bonds.pairs[index]])
        shortest.setdefault((heavy, light), int(index))
    chosen = [index for _, index in sorted(shortest.items(), reverse=True)[: settings.bonds]]
    # The bond of an atom with its own image cannot be stretched.
    return [_bond_path(bonds, index, atoms, settings) for index in chosen if len(set(bonds.pairs[index])) == 2]


def _bond_path(bonds: Bonds, index: int, atoms: Atoms, settings: ScanSettings) -> ScanPath:
    """Return the path of one bond."""
    i, j = (int(atom) for atom in bonds.pairs[index])
    axis = bonds.vectors(atoms)[index]
    axis /= np.linalg.norm(axis)
    direction = np.zeros_like(atoms.positions)
    if atoms.pbc.any():
        direction[j] = axis
        values = np.arange(-settings.compress, settings.compress, settings.spacing)
    else:
        beyond_j, beyond_i = bond_fragment(bonds.pairs, i, j), bond_fragment(bonds.pairs, j, i)
        moving, sign = (beyond_j, 1.0) if len(beyond_j) <= len(beyond_i) else (beyond_i, -1.0)
        direction[sorted(moving)] = sign * axis
        values = np.arange(-settings.compress, settings.stretch, settings.spacing)
    heavy, light = (i, j) if atoms.numbers[i] >= atoms.numbers[j] else (j, i)
    names = [f"{chemical_symbols[atoms.numbers[atom]]}{atom}" for atom in (heavy, light)]
    return straight_path(f"bond {'–'.join(names)}", atoms, direction, values)


def detachment_path(atoms: Atoms, settings: ScanSettings) -> ScanPath:
    """Return the path on which the outermost atom of a molecule moves away from the centre of mass, past any cutoff."""
    lever_arms = atoms.positions - atoms.get_center_of_mass()
    outer = int(np.argmax(np.linalg.norm(lever_arms, axis=1)))
    direction = np.zeros_like(lever_arms)
    direction[outer] = lever_arms[outer] / np.linalg.norm(lever_arms[outer])
    values = np.arange(0.0, settings.detach, settings.spacing)
    return straight_path(f"{atoms.symbols[outer]}{outer} detached", atoms, direction, values)


def all_paths(target: AuditTarget) -> list[ScanPath]:
    """Return all paths of a structure."""
    settings = target.settings.scans
    atoms = target.attach(target.structure)
    paths = bond_paths(target, atoms, settings)
    if target.periodic:
        return [*paths, cell_expansion_path(atoms, settings.expansion, settings.spacing)]
    if len(atoms) > 1:
        axis = target.generator(5).normal(size=3)
        axis /= np.linalg.norm(axis)
        paths += [detachment_path(atoms, settings), rotation_path(atoms, axis, settings.spacing)]
    return paths
