"""Labelled frames that tests make themselves."""

from __future__ import annotations

import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT

from ponita_ff.data import Frame, InMemoryFrames


def make_frames(number: int, seed: int = 0) -> InMemoryFrames:
    """Rattled methanol, labelled with EMT (eV, eV/Å)."""
    generator = np.random.default_rng(seed)
    frames = []
    for index in range(number):
        atoms = molecule("CH3OH")
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        frames.append(
            Frame(
                numbers=atoms.numbers,
                positions=atoms.positions,
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                source=f"made, frame {index}",
            )
        )
    return InMemoryFrames(frames)
