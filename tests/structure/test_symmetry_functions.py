"""Radial symmetry functions against the sum written out."""

from __future__ import annotations

from math import cos, exp, pi

import numpy as np
import torch
from ase import Atoms

from ponita_ff.structure.graph import build_graph, squared_distances
from ponita_ff.structure.symmetry_functions import radial_symmetry_functions


def test_the_formula(system: Atoms) -> None:
    cutoff, number, elements = 3.5, 5, [1, 6, 8]
    cell = system.cell.array if system.pbc.any() else None
    graph = build_graph(system.numbers, system.positions, 4.0, cell, system.pbc)
    species = torch.searchsorted(torch.tensor(elements), graph.atomic_numbers)
    distances = squared_distances(graph).sqrt()
    found = radial_symmetry_functions(distances, species[graph.neighbours], 3, cutoff, number)

    centres = np.linspace(0.8, cutoff, number)
    width = centres[1] - centres[0]
    expected = np.zeros((len(system), 3, number))
    for i, m in zip(*np.nonzero(graph.used.numpy()), strict=True):
        r, z = float(distances[i, m]), int(graph.atomic_numbers[graph.neighbours[i, m]])
        if r < cutoff:
            for k, centre in enumerate(centres):
                smooth = 0.5 + 0.5 * cos(pi * r / cutoff)
                expected[i, elements.index(z), k] += exp(-((r - centre) ** 2) / (2 * width**2)) * smooth
    np.testing.assert_allclose(found.numpy(), expected.reshape(len(system), -1), atol=1e-12)
