"""Check: atoms repel each other at short range."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import Array, AuditTarget

__all__ = ["closest_pairs", "compress_pair", "short_range"]


def closest_pairs(atoms: Atoms) -> list[tuple[int, int]]:
    """Return the closest two atoms of each pair of elements."""
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    np.fill_diagonal(distances, np.inf)
    pairs = []
    for low, high in combinations_with_replacement(sorted(set(atoms.numbers)), 2):
        block = np.where((atoms.numbers[:, None] == high) & (atoms.numbers[None, :] == low), distances, np.inf)
        if np.isfinite(block.min()):
            i, j = np.unravel_index(int(block.argmin()), block.shape)
            pairs.append((int(i), int(j)))
    return pairs


def compress_pair(atoms: Atoms, first: int, second: int, distances: Array) -> tuple[Array, Array]:
    """Calculate the energy while two atoms are placed at given distances about their midpoint; all others are fixed.

    Args:
        atoms: The structure, with a calculator.
        first: Index of one atom.
        second: Index of the other.
        distances: Distances r, Å, shape (k,).

    Returns:
        Energies, eV, and repulsive forces −dE/dr, eV/Å, both of shape (k,).
    """
    vector = find_mic(atoms.positions[second] - atoms.positions[first], atoms.cell, atoms.pbc)[0]
    axis, middle = vector / np.linalg.norm(vector), atoms.positions[first] + 0.5 * vector
    energies, repulsions = [], []
    for r in distances:
        moved = atoms.copy()
        moved.positions[first], moved.positions[second] = middle - 0.5 * r * axis, middle + 0.5 * r * axis
        moved.calc = atoms.calc
        forces = moved.get_forces()
        energies.append(moved.get_potential_energy())
        repulsions.append(0.5 * float((forces[second] - forces[first]) @ axis))
    return np.array(energies), np.array(repulsions)


def short_range(target: AuditTarget) -> CheckResult:
    """Push two atoms of each pair of elements together: they must repel, without holes, up to a high wall.

    A hole is a region where the energy falls as the atoms approach each other.

    Returns:
        One mapping of arrays per pair of elements: ``r`` (k,), Å, descending; ``energy`` (k,), eV, relative to the
        structure as given; ``repulsion`` (k,), eV/Å.

    Raises:
        CheckSkipped: For a single atom, or if ``short_range.end`` is not below ``short_range.begin``.
    """
    settings = target.settings.short_range
    if settings.end >= settings.begin:
        raise CheckSkipped("short_range.end must be below short_range.begin")
    atoms = target.attach(target.structure)
    scale = np.linspace(settings.begin, settings.end, settings.points)
    reference = atoms.get_potential_energy()
    arrays: dict[str, dict[str, Array]] = {}
    for i, j in closest_pairs(atoms):
        r = scale * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
        energy, repulsion = compress_pair(atoms, i, j, r)
        name = f"{atoms.symbols[i]}–{atoms.symbols[j]}"
        arrays[name] = {"r": r, "energy": energy - reference, "repulsion": repulsion}
    if not arrays:
        raise CheckSkipped("a single atom has no pairs")
    # Depth below the highest energy at any larger distance.
    holes = {name: float((np.maximum.accumulate(a["energy"]) - a["energy"]).max()) for name, a in arrays.items()}
    repulsions = {name: float(a["repulsion"].min()) for name, a in arrays.items()}
    heights = {name: float(a["energy"].max()) for name, a in arrays.items()}
    measurements = [
        Measurement("depth of the deepest hole", max(holes.values()), "eV", settings.hole_limit),
        Measurement("weakest repulsive force", min(repulsions.values()), "eV/Å", settings.force_limit, "minimum"),
        Measurement("height of the lowest wall", min(heights.values()), "eV", settings.height_limit, "minimum"),
    ]
    weakest, lowest = min(repulsions, key=repulsions.__getitem__), min(heights, key=heights.__getitem__)
    notes = [f"Pairs: {', '.join(arrays)}; weakest repulsion: {weakest}; lowest wall: {lowest}."]
    wrong = [name for name in arrays if holes[name] > settings.hole_limit or repulsions[name] < settings.force_limit]
    if wrong:
        notes.append(f"Not repulsive everywhere: {', '.join(wrong)}.")
    return CheckResult(measurements, dict(arrays), notes)
