"""Translation and rotation of a molecule as a whole: their directions, and an ASE constraint that holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixBondLengths, FixCom, FixInternals, FixLinearTriatomic
from ase.constraints.constraint import FixConstraint
from numpy.typing import NDArray
from scipy.linalg import orth

__all__ = ["FixRigidMotion", "rigid_motions"]

#: Singular values below this part of the largest are zero: a linear molecule has only two rotations.
_RANK_TOLERANCE = 1e-3

#: Constraints that a molecule may have as well, since they leave it free to move as a whole.
_COMPATIBLE = (FixBondLengths, FixCom, FixInternals, FixLinearTriatomic)


def rigid_motions(atoms: Atoms, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Orthonormal basis of the translations and, for molecules, rotations, each coordinate times √weight of its atom.

    Args:
        atoms: At least one.
        weights: Of each atom, shape (n,): masses for a basis of mass-weighted coordinates; None for 1 each.

    Returns:
        Shape (3n, k) with k = 3 for periodic structures and single atoms, 5 for linear molecules and 6 for others.
    """
    weights = np.ones(len(atoms)) if weights is None else weights
    arms = atoms.positions - weights @ atoms.positions / weights.sum()
    motions = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        motions += [np.cross(axis, arms) for axis in np.eye(3)]
    weighted = np.array(motions) * np.sqrt(weights)[:, None]
    return np.asarray(orth(weighted.reshape(len(motions), -1).T, rcond=_RANK_TOLERANCE))


class FixRigidMotion(FixConstraint):
    """ASE constraint that holds translation and rotation of a molecule as a whole, for optimisers.

    The energy of a network with a finite grid of orientations depends a little on how the molecule is turned. Without
    this constraint an optimiser turns it without end, once the forces along vibrations are smaller than that torque.
    With it, ``atoms.get_forces()`` has no net force and no net torque (the forces are projected), and steps keep
    Eckart's conditions with unit masses, so that every ASE optimiser converges as it does for an energy that is exactly
    invariant: ``atoms.set_constraint(FixRigidMotion())``.

    For molecules that are free to move: not periodic, all atoms movable. Linear molecules have two rotations, a single
    atom none. Constraints of bonds and angles may stand after it in a list. It is not meant for dynamics, where
    :class:`ase.constraints.FixCom` holds the centre of mass. ASE's files know no constraint but its own: they keep this
    one as ``FixCom``.

    Raises:
        ValueError: From calls with atoms that are periodic or held by another constraint, and for momenta.
    """

    def get_removed_dof(self, atoms: Atoms) -> int:
        """Number of translations and rotations: 3 for a single atom, 5 for a linear molecule, 6 otherwise."""
        return int(self._basis(atoms).shape[1])

    def adjust_positions(self, atoms: Atoms, new: NDArray[np.float64]) -> None:
        """Remove translation and rotation from the step that leads to ``new``, shape (n, 3), in place."""
        step = new - atoms.positions
        self._project(atoms, step)
        new[:] = atoms.positions + step

    def adjust_forces(self, atoms: Atoms, forces: NDArray[np.float64]) -> None:
        """Remove net force and net torque from forces, shape (n, 3), in place."""
        self._project(atoms, forces)

    def adjust_momenta(self, atoms: Atoms, momenta: NDArray[np.float64]) -> None:
        """Refuse dynamics."""
        raise ValueError("FixRigidMotion is for optimisers, not for dynamics: use ase.constraints.FixCom there")

    def copy(self) -> FixRigidMotion:
        """Another one."""
        return FixRigidMotion()

    def index_shuffle(self, atoms: Atoms, ind: Any) -> None:
        """It holds whatever atoms there are, in any order."""

    def repeat(self, m: Any, n: int) -> FixRigidMotion:
        """It holds whatever atoms there are."""
        return self

    def todict(self) -> dict[str, Any]:
        """As ASE's files keep it, and ASE alone can read it."""
        return {"name": "FixCom", "kwargs": {}}

    def __repr__(self) -> str:
        return "FixRigidMotion()"

    def _project(self, atoms: Atoms, vectors: NDArray[np.float64]) -> None:
        basis = self._basis(atoms)
        flat = vectors.reshape(-1)
        vectors[:] = (flat - basis @ (basis.T @ flat)).reshape(vectors.shape)

    def _basis(self, atoms: Atoms) -> NDArray[np.float64]:
        if atoms.pbc.any():
            raise ValueError(
                f"FixRigidMotion is for molecules, but pbc is {atoms.pbc.tolist()}: a cell does not rotate freely"
            )
        others = [other for other in atoms.constraints if not isinstance(other, FixRigidMotion)]
        anchors = [type(other).__name__ for other in others if not isinstance(other, _COMPATIBLE)]
        if anchors:
            raise ValueError(
                f"FixRigidMotion is for molecules that are free to move, but {', '.join(anchors)} holds this one in "
                "space: leave out one of them"
            )
        return rigid_motions(atoms)
