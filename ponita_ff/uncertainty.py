"""Uncertainty of a committee: the spread of its members, its calibration, and an observer for molecular dynamics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ponita_ff.files import write_json
from ponita_ff.potential.domain_watch import Uncertainty
from ponita_ff.potential.header import name_before_version_3
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import weights_hash
from ponita_ff.settings import wrong_fields
from ponita_ff.structure.graph import Graph
from ponita_ff.structure.lattice import is_number

if TYPE_CHECKING:
    from ponita_ff.data import Frame

__all__ = [
    "Calibration",
    "Companions",
    "UncertainForces",
    "UncertaintyMonitor",
    "calibrate",
    "committee_spread",
    "hash_of_weights",
    "is_calibration",
    "spread_factor",
]

logger = logging.getLogger(__name__)

#: Share of held-out frames whose largest uncertainty is below the limit of a calibration.
_KNOWN_SHARE = 0.99

#: Shares of a normal distribution within one and two standard deviations.
NORMAL_SHARES = (0.6827, 0.9545)


class UncertainForces(RuntimeError):
    """The uncertainty of a committee's forces reached the limit at which a run is stopped."""


@dataclass(frozen=True)
class Calibration:
    """Factors that scale a committee's standard deviations to the size of its errors, and how well they do.

    The factors are those of :func:`spread_factor` over held-out frames.

    Attributes:
        energy: Factor for standard deviations of energies.
        forces: Factor for standard deviations of forces.
        frames: Number of held-out frames.
        forces_within: Shares of force components with an error within one and two calibrated standard deviations; for
            a normal distribution 68 % and 95 %.
        forces_rank_correlation: Spearman's rank correlation between the force error of an atom and its standard
            deviation, both as norms: 1 if the order is the same, 0 if they are independent.
        forces_std_mean: Mean calibrated standard deviation of a force component, eV/Å.
        members: SHA-256 of the weights of each member.
        forces_limit: That 99 of 100 held-out frames have no atom above: calibrated standard deviation of its force,
            norm over components, eV/Å; None in files of before there was one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    energy: float
    forces: float
    frames: int
    forces_within: tuple[float, float]
    forces_rank_correlation: float
    forces_std_mean: float
    members: tuple[str, ...]
    forces_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse factors and figures that no calibration gives.

        Raises:
            ValueError: Naming the first wrong field.
        """
        for name in ("energy", "forces"):
            value = getattr(self, name)
            if not is_number(value) or not 0.0 < value < math.inf:
                raise ValueError(f"{name}: a factor must be a finite number above 0, got {value!r}")
        if not is_number(self.frames) or self.frames < 1:
            raise ValueError(f"frames: must be a number of frames, got {self.frames!r}")
        limit = self.forces_limit
        if limit is not None and (not is_number(limit) or not 0 < limit < math.inf):
            raise ValueError(f"forces_limit: must be a finite number above 0 or null, got {limit!r}")
        shares = self.forces_within
        if len(shares) != 2 or not all(is_number(share) and 0 <= share <= 1 for share in shares):
            raise ValueError(f"forces_within: must be two shares from 0 to 1, got {shares!r}")
        if not self.members or not all(isinstance(member, str) for member in self.members):
            raise ValueError(f"members: must be the hashes of the members, got {self.members!r}")

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file written by `save`.

        Raises:
            ValueError: Naming the file, if it is missing or not a calibration.
        """
        try:
            return _CALIBRATION.validate_json(Path(path).read_bytes(), strict=True)
        except FileNotFoundError:
            raise ValueError(f"there is no calibration {path}: make one with 'ponita-ff calibrate'") from None
        except ValidationError as error:
            wrong = "; ".join(line.strip() for line in wrong_fields(error).splitlines())
            raise ValueError(f"{path} is not a calibration written by 'ponita-ff calibrate' ({wrong})") from None
        except OSError as error:
            raise ValueError(f"cannot read the calibration {path}: {error.strerror}") from None

    def check_members(self, potentials: Sequence[Potential]) -> None:
        """Check that a committee is the one that was calibrated, in any order.

        Raises:
            ValueError: It has other members.
        """
        # Hashes include the names of weights, which were others before version 3 of potential files.
        for name in (str, name_before_version_3):
            if sorted(self.members) == sorted(hash_of_weights(potential, name) for potential in potentials):
                return
        raise ValueError(
            "the calibration is of another committee than this one: run 'ponita-ff calibrate' with these potentials"
        )


_CALIBRATION = TypeAdapter(Calibration)


def is_calibration(path: Path) -> bool:
    """Whether a file is a calibration."""
    try:
        Calibration.load(path)
    except ValueError:
        return False
    return True


def hash_of_weights(potential: Potential, rename: Callable[[str], str] = str) -> str:
    """SHA-256 of names and weights in single precision, which does not depend on a calculator's dtype or rotations."""
    return weights_hash({rename(name): weight.detach().float() for name, weight in potential.named_parameters()})


def committee_spread(
    members: Sequence[Potential], structures: Sequence[Atoms]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]], NDArray[np.float64], list[NDArray[np.float64]]]:
    """Mean and standard deviation of a committee's energies and forces, not calibrated.

    Args:
        members: At least two potentials.
        structures: The structures to evaluate.

    Returns:
        Mean energies, shape (structures,), eV; mean forces of each structure, shape (atoms, 3), eV/Å; standard
        deviations over the members of energies and of forces, of the same shapes and units.

    Raises:
        ValueError: For fewer than two members, or structures that cannot be calculated.
    """
    if len(members) < 2:
        raise ValueError(f"a committee has two members or more, got {len(members)}")
    predictions = [member.evaluate(structures) for member in members]
    energies = np.stack([p.energies for p in predictions])
    forces = [np.stack(each) for each in zip(*(p.forces or [] for p in predictions), strict=True)]
    return energies.mean(0), [f.mean(0) for f in forces], energies.std(0), [f.std(0) for f in forces]


def calibrate(members: Sequence[Potential], frames: Sequence[Frame]) -> Calibration:
    """Compare a committee's standard deviations with its errors.

    Args:
        members: At least two potentials.
        frames: Labelled frames that no member was trained on.

    Raises:
        ValueError: For fewer than two members, no frames, or identical members.
    """
    from scipy.stats import spearmanr  # here, since scipy.stats takes long to import and calculators do not need it

    if not len(frames):
        raise ValueError("no frames to calibrate on")
    energies, forces, energy_std, forces_std = committee_spread(members, [frame.to_atoms() for frame in frames])
    errors = np.concatenate([f - frame.forces for f, frame in zip(forces, frames, strict=True)])
    spread = np.concatenate(forces_std)
    worst = [float(np.linalg.norm(deviations, axis=1).max()) for deviations in forces_std]
    if not spread.any() or not energy_std.any():
        raise ValueError("all members of the committee give the same results: they are the same potential")
    factor = spread_factor(errors, spread)
    # Atoms without neighbours within the cutoff have zero forces in all members, and are left out.
    has_spread = spread.any(axis=1)
    errors, spread = errors[has_spread], np.maximum(spread[has_spread], 1e-12)
    within = np.abs(errors) / (factor * spread)
    correlation = spearmanr(np.linalg.norm(errors, axis=1), np.linalg.norm(spread, axis=1)).statistic
    return Calibration(
        energy=spread_factor(energies - np.array([frame.energy for frame in frames]), energy_std),
        forces=factor,
        frames=len(frames),
        forces_within=(float((within < 1).mean()), float((within < 2).mean())),
        forces_rank_correlation=float(correlation),
        forces_std_mean=float(factor * spread.mean()),
        members=tuple(hash_of_weights(member) for member in members),
        forces_limit=factor * float(np.quantile(worst, _KNOWN_SHARE)),
    )


def spread_factor(errors: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    """Factor by which the root mean square of the standard deviations becomes that of the errors.

    Equality of mean variance and mean squared error is the condition of Levi et al., "Evaluating and calibrating
    uncertainty prediction in regression tasks" (arXiv:1905.11659), here for all values together. Pernot
    (arXiv:2402.10043) prefers the mean of the squared ratio of error and standard deviation. But of two or three
    members some agree by chance, so that the expectation of that mean is infinite.

    Args:
        errors: Errors of the committee's mean, any shape.
        spread: Standard deviations over the members, not all zero, of the same shape.
    """
    return float(np.linalg.norm(errors) / np.linalg.norm(spread))


class Companions:
    """How much a potential and its companions, the other members of a committee, differ about a structure.

    Args:
        potential: The first member.
        companions: The others, on the same device and in the same dtype.
        calibration: Of all of them.
        backend: See :class:`ponita_ff.backends.predictor.Predictor`.

    Raises:
        ValueError: For a calibration of other potentials, or one without a limit.
    """

    def __init__(
        self, potential: Potential, companions: Sequence[Potential], calibration: Calibration, backend: str = "auto"
    ) -> None:
        if calibration.forces_limit is None:
            raise ValueError("the calibration has no forces_limit: run 'ponita-ff calibrate' again")
        self._members, self._backend = [potential, *companions], backend
        calibration.check_members(self._members)
        self._factor, self._limit = calibration.forces, calibration.forces_limit

    def __call__(self, graph: Graph) -> Uncertainty:
        """Ask all of them about a structure with edges up to the longest cutoff."""
        forces = torch.stack([member.predictor(self._backend)(graph)[2].cpu() for member in self._members])
        spread = self._factor * torch.linalg.vector_norm(forces.std(dim=0, correction=0), dim=-1)
        atom = int(spread.argmax())
        return Uncertainty(float(spread[atom]), self._limit, atom)


class UncertaintyMonitor:
    """Observer of dynamics or optimisers that warns, or stops the run, when a committee's forces are too uncertain.

    The uncertainty of a structure is the largest standard deviation of an atom's force, the norm over its three
    components, in eV/Å. Attach the observer to any of ASE's dynamics or optimisers:
    ``dynamics.attach(UncertaintyMonitor(atoms, stop=0.5), interval=10)``.

    Args:
        atoms: Atoms with a committee as calculator, preferably with a calibration.
        warn: Uncertainty in eV/Å from which a warning is logged, once each time that it is reached.
        stop: Uncertainty in eV/Å from which :class:`UncertainForces` is raised.

    Raises:
        ValueError: A limit that is not above zero; from a call, a calculator that is not a committee.

    Attributes:
        history: Uncertainty at each call so far, eV/Å.
    """

    def __init__(self, atoms: Atoms, warn: float | None = None, stop: float | None = None) -> None:
        for name, limit in (("warn", warn), ("stop", stop)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0 eV/Å, got {limit!r}")
        self.atoms, self.warn, self.stop = atoms, warn, stop
        self.history: list[float] = []
        self._above = False

    def __call__(self) -> None:
        """Check the current structure.

        Raises:
            UncertainForces: The uncertainty is at or above ``stop``.
        """
        self.atoms.get_forces()
        results: dict[str, Any] = getattr(self.atoms.calc, "results", {})
        if "forces_std" not in results:
            raise ValueError("the calculator has no forces_std: it must be a committee of two potentials or more")
        spread = np.linalg.norm(results["forces_std"], axis=1)
        worst = int(spread.argmax())
        self.history.append(float(spread[worst]))
        message = (
            f"forces are uncertain by {spread[worst]:.3g} eV/Å at atom {worst} ({self.atoms.symbols[worst]}), at check "
            f"{len(self.history)}"
        )
        if self.stop is not None and spread[worst] >= self.stop:
            raise UncertainForces(f"{message}: stopped, the limit is {self.stop:g} eV/Å")
        above = self.warn is not None and bool(spread[worst] >= self.warn)
        if above and not self._above:
            logger.warning("%s: the structure may be outside the training data of the potential", message)
        self._above = above
