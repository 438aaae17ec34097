"""Deterministic, symmetric orientation grids on the sphere S².

A grid is a set of unit vectors with quadrature weights. Every grid here is a union of orbits of the icosahedral
(or octahedral) rotation group, so that a network on it is *exactly* invariant under that group, and its weights
integrate every polynomial up to ``degree`` exactly, which bounds the error under all other rotations.

Sources: McLaren, Math. Comp. 17, 361 (1963) and Sobolev, Sib. Math. J. 3, 769 (1962): a rule that is invariant
under a group is exact for degree L as soon as it is exact for the group's own invariant polynomials up to L. For
the icosahedral rotations those have degree 6, 10, 12 and 15, so a few free weights and angles suffice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from ponita_ff.network.config import GRID_SIZES

Array = NDArray[np.float64]

__all__ = [
    "OrientationGrid",
    "averaging_rotations",
    "even_rotations",
    "grid_residual",
    "orientation_grid",
    "quotients",
    "random_rotations",
    "rotation_about",
    "rotation_group",
]

_PHI = (1.0 + math.sqrt(5.0)) / 2.0


#: Rotations beside the identity, as quaternions (x, y, z, w), by the size of the set: those for which rotated copies of
#: an icosahedral grid have the smallest quadrature error at degree 6, then at 10 and 12, the degrees of its invariants.
#: Found by minimising |Σ_k D(R_k) v|² for the icosahedral invariant v of each degree; see :func:`grid_residual`.
_AVERAGING: dict[int, tuple[tuple[float, float, float, float], ...]] = {
    2: ((-0.79056941, -0.57206141, 0.00000000, 0.21850802),),
    3: (
        (0.19746540, 0.03189538, 0.56857902, 0.79793984),
        (-0.69061936, -0.56857902, -0.24907326, 0.37111359),
    ),
    4: (
        (-0.89116102, 0.18625222, -0.41369330, 0.00000000),
        (0.51411772, 0.18625224, -0.57341879, 0.61006881),
        (0.66755807, 0.23008100, 0.37227886, 0.60235987),
    ),
    5: (
        (0.59983623, 0.31147572, 0.00000007, 0.73700704),
        (-0.15216379, -0.00000002, 0.39837008, 0.90451504),
        (-0.38348549, 0.62587299, 0.22432328, 0.64101556),
        (-0.77965486, 0.02052291, 0.00000011, 0.62587307),
    ),
    6: (
        (0.26928974, -0.63037012, -0.67846269, 0.26420620),
        (0.18667533, 0.67256880, 0.42672057, 0.57507658),
        (-0.30698150, -0.72626884, 0.50000029, 0.35818380),
        (0.38374108, 0.25098676, 0.82502603, 0.33027335),
        (-0.59429972, 0.52230290, -0.56679906, 0.22966574),
    ),
}


@dataclass(frozen=True)
class OrientationGrid:
    """Orientations and quadrature weights on S².

    Attributes:
        orientations: Unit vectors, shape (num_ori, 3).
        weights: Quadrature weights, shape (num_ori,), positive, summing to one.
        degree: Largest polynomial degree that the weights integrate exactly over the sphere.
        group: Name of the rotation group that maps the grid onto itself.
    """

    orientations: Array
    weights: Array
    degree: int
    group: str


def rotation_about(axis: Array, angle: float) -> Array:
    """Rotation matrix (3, 3) about ``axis`` by ``angle`` in radians."""
    matrix: Array = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    return matrix


@cache
def rotation_group(name: str) -> Array:
    """All rotations of a finite group.

    Args:
        name: ``"icosahedral"`` (60 rotations), ``"octahedral"`` (24), ``"tetrahedral"`` (12), in the frame of the
            grids, or ``"trivial"`` (1).

    Returns:
        Rotation matrices, shape (order, 3, 3), the identity first.

    Raises:
        ValueError: For another name.
    """
    names = {"icosahedral": "I", "octahedral": "O", "tetrahedral": "T", "trivial": "C1"}
    if name not in names:
        raise ValueError(f"unknown rotation group {name!r}: expected one of {', '.join(names)}")
    elements: Array = Rotation.create_group(names[name]).as_matrix()
    return elements[np.argsort(-np.trace(elements, axis1=1, axis2=2), kind="stable")]  # only the identity's trace is 3


@cache
def quotients(name: str) -> NDArray[np.int64]:
    """Number of g⁻¹g' among the rotations of a finite group, for every g and g', shape (order, order)."""
    elements = rotation_group(name)
    traces = np.einsum("gba,hbc,kac->ghk", elements, elements, elements)  # 3 where gᵀh and k are equal, else less
    return np.asarray(traces.argmax(-1), dtype=np.int64)


def _orbit(point: Array, group: str) -> Array:
    """Distinct images, shape (k, 3), of a unit vector under a group."""
    images: list[Array] = []
    for image in rotation_group(group) @ (point / np.linalg.norm(point)):
        if not any(np.allclose(image, known, atol=1e-9) for known in images):
            images.append(image)
    return np.stack(images)


def _invariant_mean(orbit: Array, degree: int) -> float:
    """Mean over an orbit of the group's invariant polynomial of that degree, P_degree(point · vertex)."""
    coefficients = np.zeros(degree + 1)
    coefficients[degree] = 1.0
    vertex = np.array([0.0, 1.0, _PHI]) / math.hypot(1.0, _PHI)
    return float(np.polynomial.legendre.legval(orbit @ vertex, coefficients).mean())


def _orbit_weights(orbits: list[Array], degrees: list[int]) -> Array:
    """Weight of each orbit such that the group's invariants of the given degrees average to zero."""
    rows = [[_invariant_mean(orbit, degree) for orbit in orbits] for degree in degrees]
    rows.append([1.0] * len(orbits))
    right = np.zeros(len(rows))
    right[-1] = 1.0
    return np.linalg.lstsq(np.array(rows), right, rcond=None)[0]


@cache
def orientation_grid(num_ori: int) -> OrientationGrid:
    """The grid with ``num_ori`` orientations; the same numbers on every machine and in every run.

    Args:
        num_ori: One of :data:`ponita_ff.network.config.GRID_SIZES`.

    Raises:
        ValueError: For another size.
    """
    if num_ori not in GRID_SIZES:
        raise ValueError(f"no orientation grid with num_ori={num_ori}: choose one of {GRID_SIZES}, or 0 for PNITA")
    if num_ori in (6, 8):
        seed = np.array([0.0, 0.0, 1.0]) if num_ori == 6 else np.ones(3)
        return OrientationGrid(_orbit(seed, "octahedral"), np.full(num_ori, 1.0 / num_ori), 3, "octahedral")

    vertices = _orbit(np.array([0.0, 1.0, _PHI]), "icosahedral")
    faces = _orbit(np.ones(3), "icosahedral")
    edges = _orbit(np.array([0.0, 0.0, 1.0]), "icosahedral")
    if num_ori == 12:
        orbits, shares, degree = [vertices], np.ones(1), 5
    elif num_ori == 20:
        orbits, shares, degree = [faces], np.ones(1), 5
    elif num_ori == 32:
        orbits, degree = [vertices, faces], 9
        shares = _orbit_weights(orbits, [6])
    else:
        orbits, degree = [vertices, faces, edges], 11
        shares = _orbit_weights(orbits, [6, 10])
    weights = np.concatenate(
        [np.full(len(orbit), share / len(orbit)) for orbit, share in zip(orbits, shares, strict=True)]
    )
    return OrientationGrid(np.concatenate(orbits), weights, degree, "icosahedral")


def even_rotations(number: int) -> Tensor:
    """Rotations spread evenly over SO(3), the identity first, the same ones every time.

    Shoemake's map (Graphics Gems III (1992), p. 124) from the unit cube to unit quaternions, fed with the additive
    recurrence of the generalised golden ratio in three dimensions.

    Args:
        number: How many.

    Returns:
        Rotation matrices, shape (number, 3, 3), float64.
    """
    ratio = 1.2207440846057596  # the real root of x⁴ = x + 1
    steps = np.arange(number)[:, None] * (1.0 / ratio ** np.arange(1, 4))
    u, v, w = np.moveaxis(steps % 1.0, 1, 0)
    inner, outer = np.sqrt(1.0 - u), np.sqrt(u)
    # At index 0 all three coordinates are 0: the quaternion (x, y, z, w) = (0, 1, 0, 0), made the identity below.
    x, y = inner * np.sin(2 * np.pi * v), inner * np.cos(2 * np.pi * v)
    z, q = outer * np.sin(2 * np.pi * w), outer * np.cos(2 * np.pi * w)
    matrices = _matrices(np.stack([x, y, z, q], axis=1))
    return torch.from_numpy(matrices @ matrices[0].T)


def averaging_rotations(number: int, group: str) -> Tensor:
    """Rotations of a grid over which to average, the identity first, shape (number, 3, 3), float64.

    For an icosahedral grid and up to six rotations those that cancel its leading error best, else evenly spread ones.

    Args:
        number: How many.
        group: The grid's.
    """
    if group != "icosahedral" or number not in _AVERAGING:
        return even_rotations(number)
    quaternions = np.array([(0.0, 0.0, 0.0, 1.0), *_AVERAGING[number]])
    return torch.from_numpy(_matrices(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)))


def grid_residual(rotations: Array, degree: int) -> float:
    """Share of the icosahedral grids' error at a degree that is left after averaging over rotations of the grid.

    |Σ_k D(R_k) v|² / n² for the icosahedral invariant v of this degree, through Σ P_degree(a · R b) over the vertices
    a, b of an icosahedron: 1 for one rotation, 1/n on average for n independent random rotations.
    """
    vertices = orientation_grid(12).orientations
    coefficients = np.zeros(degree + 1)
    coefficients[degree] = 1.0
    turns = np.einsum("kji,ljm->klim", rotations, rotations)  # R_kᵀ R_l
    overlap = np.polynomial.legendre.legval(vertices @ turns @ vertices.T, coefficients).sum((-1, -2))
    return float(overlap.mean() / overlap[0, 0])


def random_rotations(number: int, seed: tuple[int, ...]) -> Array:
    """Rotations drawn uniformly (normalised Gaussian quaternions), shape (number, 3, 3)."""
    quaternions = np.random.default_rng(seed).normal(size=(number, 4))
    w, *xyz = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), 1, 0)
    return _matrices(np.stack([*xyz, w], axis=1))


def _matrices(quaternions: Array) -> Array:
    """Rotation matrices, shape (n, 3, 3), of unit quaternions (x, y, z, w), shape (n, 4)."""
    matrices: Array = Rotation.from_quat(quaternions).as_matrix()
    return matrices
