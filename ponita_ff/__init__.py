"""PONITA force fields for ASE: energies and exact forces from a network on position-orientation space."""

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.checkpoint import PotentialFileError, load_potential, save_potential
from ponita_ff.model import Ponita, PonitaConfig
from ponita_ff.potential import Potential, Prediction

__all__ = [
    "Ponita",
    "PonitaCalculator",
    "PonitaConfig",
    "Potential",
    "PotentialFileError",
    "Prediction",
    "load_potential",
    "save_potential",
]
