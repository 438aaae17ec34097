"""PONITA force fields for ASE: energies and exact forces from a network on position-orientation space."""

from typing import TYPE_CHECKING

from ponita_ff.lazy import loader

if TYPE_CHECKING:
    from ponita_ff.calculator import PonitaCalculator
    from ponita_ff.network.config import PonitaConfig
    from ponita_ff.network.ponita import Ponita
    from ponita_ff.potential.file import PotentialFileError, load_potential, save_potential
    from ponita_ff.potential.potential import Potential, Prediction
    from ponita_ff.structure.rigid import FixRigidMotion

__all__ = [
    "FixRigidMotion",
    "Ponita",
    "PonitaCalculator",
    "PonitaConfig",
    "Potential",
    "PotentialFileError",
    "Prediction",
    "load_potential",
    "save_potential",
]

_HOMES = {
    "FixRigidMotion": "structure.rigid",
    "Ponita": "network.ponita",
    "PonitaCalculator": "calculator",
    "PonitaConfig": "network.config",
    "Potential": "potential.potential",
    "PotentialFileError": "potential.file",
    "Prediction": "potential.potential",
    "load_potential": "potential.file",
    "save_potential": "potential.file",
}

if not TYPE_CHECKING:
    __getattr__ = loader(__name__, _HOMES)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
