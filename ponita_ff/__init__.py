"""PONITA force fields for ASE: energies and exact forces from a network on position-orientation space."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    # Torch takes seconds and hundreds of MB to load. What needs none of it does without: the command's help, and every
    # one of the processes that label frames.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
