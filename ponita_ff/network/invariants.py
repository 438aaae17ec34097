"""Pure functions of the geometry: the only place where positions become network inputs.

Two point-orientation pairs (x_i, n), (x_j, n') are equivalent when a rigid motion maps one onto the other; PONITA
(arXiv:2310.02970, Section 3) shows that a1 = x_ij·n, a2 = |x_ij − a1 n| and a3 = n·n' tell the classes apart. The
force-field form uses the same pair (a1, a2) as r = |x_ij| and c = a1/r: smooth wherever r > 0, while a2 itself has a
cusp where a bond points along a grid orientation, and with it the forces.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bond_invariants", "cosines", "legendre", "published_invariants"]


def bond_invariants(vectors: Tensor, orientations: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and cosine to every orientation of each edge.

    Args:
        vectors: Edge vectors x_ij = x_j − x_i, shape (..., 3), Å, none of them zero.
        orientations: Unit vectors, shape (num_ori, 3).

    Returns:
        Distance r, shape (...), Å, and cosine c = x_ij·n / r, shape (..., num_ori).
    """
    distance = vectors.square().sum(-1).sqrt()
    return distance, cosines(vectors / distance.unsqueeze(-1), orientations)


def cosines(units: Tensor, orientations: Tensor) -> Tensor:
    """Cosines between unit vectors (..., 3) and orientations (num_ori, 3), shape (..., num_ori).

    On a GPU no matrix product, which would be rounded to ten bits where TF32 is allowed for those of the network.
    """
    if units.device.type == "cpu":
        return units @ orientations.T
    return _sum_of_products(units, orientations)


def _sum_of_products(units: Tensor, orientations: Tensor) -> Tensor:
    x, y, z = (u.unsqueeze(-1) * n for u, n in zip(units.unbind(-1), orientations.unbind(-1), strict=True))
    return x + y + z


def legendre(cosine: Tensor, l_max: int) -> Tensor:
    """Legendre polynomials by Bonnet's recursion, (l + 1) P_{l+1} = (2l + 1) c P_l − l P_{l−1}.

    Args:
        cosine: Shape (..., num_ori).
        l_max: Highest degree.

    Returns:
        P_l(c), shape (..., l_max + 1, num_ori).
    """
    polynomials = [torch.ones_like(cosine), cosine]
    for degree in range(1, l_max):
        polynomials.append(
            ((2 * degree + 1) * cosine * polynomials[degree] - degree * polynomials[degree - 1]) / (degree + 1)
        )
    return torch.stack(polynomials[: l_max + 1], dim=-2)


def published_invariants(vectors: Tensor, orientations: Tensor) -> Tensor:
    """The pair (a1, a2) of the published code, a2 with the authors' cusp along each orientation.

    At the cusp itself the derivatives of a2 are taken as zero, of every order, so that nothing there is NaN.

    Args:
        vectors: Edge vectors x_ij = x_j − x_i, shape (..., 3), Å.
        orientations: Unit vectors, shape (num_ori, 3).

    Returns:
        Attributes, shape (..., num_ori, 2), Å.
    """
    along = vectors @ orientations.T
    squared = (vectors.unsqueeze(-2) - along.unsqueeze(-1) * orientations).square().sum(-1)
    # Chosen twice, before and after the root: one choice after it would still multiply 0 by the root's infinite slope.
    on_axis = squared == 0.0
    perpendicular = torch.where(on_axis, 0.0, torch.where(on_axis, 1.0, squared).sqrt())
    return torch.stack((along, perpendicular), dim=-1)
