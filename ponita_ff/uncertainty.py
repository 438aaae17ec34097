"""How sure a committee is: its spread, calibrated on held-out frames, and an observer for molecular dynamics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ponita_ff.files import write_json
from ponita_ff.potential.file import name_before_version_3
from ponita_ff.potential.potential import Potential
from ponita_ff.provenance import weights_hash

if TYPE_CHECKING:
    from ponita_ff.data import Frame

__all__ = ["Calibration", "UncertainForces", "UncertaintyMonitor", "calibrate", "committee_spread", "spread_factor"]

logger = logging.getLogger(__name__)

#: A normal distribution's share within one and within two standard deviations.
NORMAL_SHARES = (0.6827, 0.9545)


class UncertainForces(RuntimeError):
    """The committee's members differ by more than the limit at which a run was to stop."""


@dataclass(frozen=True)
class Calibration:
    """What a committee's standard deviations must be multiplied by to be the size of its errors, and how good that is.

    The factors come from :func:`spread_factor`, over the held-out frames.

    Attributes:
        energy, forces: The factors.
        frames: Held-out frames they come from.
        forces_within: Shares of force components whose error is within one and within two calibrated deviations; a
            normal distribution has 68 % and 95 %.
        forces_rank_correlation: Spearman's, between an atom's force error and its deviation: 1 where the committee
            orders its errors perfectly, 0 where it knows nothing of them.
        forces_std_mean: Mean calibrated deviation of a force component, eV/Å.
        members: SHA-256 of each member's weights.
    """

    energy: float
    forces: float
    frames: int
    forces_within: tuple[float, float]
    forces_rank_correlation: float
    forces_std_mean: float
    members: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read such a file.

        Raises:
            ValueError: Naming the file, if it is none.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{**values, **{name: tuple(values[name]) for name in ("forces_within", "members")}})
        except FileNotFoundError:
            raise ValueError(f"there is no calibration {path}: make one with 'ponita-ff calibrate'") from None
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no calibration that 'ponita-ff calibrate' wrote ({error})") from None

    def check_members(self, potentials: Sequence[Potential]) -> None:
        """Refuse a committee of others than it was measured with.

        Raises:
            ValueError: Where they differ.
        """
        # Hashes are of names and weights, and calibrations of before version 3 of potential files know older names.
        hashes = [[_hash(potential, name) for potential in potentials] for name in (str, name_before_version_3)]
        if sorted(self.members) not in [sorted(each) for each in hashes]:
            raise ValueError(
                "the calibration was measured with other potentials than this committee's: run 'ponita-ff calibrate' "
                "with these"
            )


def _hash(potential: Potential, named: Callable[[str], str] = str) -> str:
    """Of weights alone: a member computes the same whatever dtype and rotations a calculator gives it."""
    return weights_hash({named(name): weight.detach().float() for name, weight in potential.named_parameters()})


def committee_spread(
    members: Sequence[Potential], structures: Sequence[Atoms]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]], NDArray[np.float64], list[NDArray[np.float64]]]:
    """Mean and standard deviation of a committee for many structures.

    Args:
        members: Two potentials or more.
        structures: Any.

    Returns:
        Energies (structures,), forces (atoms, 3) of each structure, and the same of their standard deviations over the
        members; eV and eV/Å, not calibrated.

    Raises:
        ValueError: For fewer than two members, or structures that cannot be calculated.
    """
    if len(members) < 2:
        raise ValueError(f"a committee has two members or more, not {len(members)}: one knows no spread")
    predictions = [member.evaluate(structures) for member in members]
    energies = np.stack([p.energies for p in predictions])
    forces = [np.stack(each) for each in zip(*(p.forces or [] for p in predictions), strict=True)]
    return energies.mean(0), [f.mean(0) for f in forces], energies.std(0), [f.std(0) for f in forces]


def calibrate(members: Sequence[Potential], frames: Sequence[Frame]) -> Calibration:
    """Compare a committee's spread with its errors on labelled frames that none of its members was trained on.

    Raises:
        ValueError: For fewer than two members, no frames, or members that agree to the last bit.
    """
    if not len(frames):
        raise ValueError("no frames to calibrate on")
    energies, forces, energy_std, forces_std = committee_spread(members, [frame.to_atoms() for frame in frames])
    errors = np.concatenate([f - frame.forces for f, frame in zip(forces, frames, strict=True)])
    spread = np.concatenate(forces_std)
    if not spread.any() or not energy_std.any():
        raise ValueError("members of the committee agree to the last bit: they are the same potential")
    factor = spread_factor(errors, spread)
    # All members agree on an atom that nothing is near to: its forces tell nothing.
    told = spread.any(axis=1)
    errors, spread = errors[told], np.maximum(spread[told], 1e-12)
    within = np.abs(errors) / (factor * spread)
    ranks = [np.linalg.norm(values, axis=1).argsort().argsort() for values in (errors, spread)]
    return Calibration(
        energy=spread_factor(energies - np.array([frame.energy for frame in frames]), energy_std),
        forces=factor,
        frames=len(frames),
        forces_within=(float((within < 1).mean()), float((within < 2).mean())),
        forces_rank_correlation=float(np.corrcoef(*ranks)[0, 1]),
        forces_std_mean=float(factor * spread.mean()),
        members=tuple(_hash(member) for member in members),
    )


def spread_factor(errors: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    """What deviations must be multiplied by for their root mean square to be that of the errors.

    Mean variance equal to mean squared error is the condition of Levi et al., "Evaluating and calibrating uncertainty
    prediction in regression tasks" (arXiv:1905.11659), here over all values at once. Pernot (arXiv:2402.10043) prefers
    the mean of squared ratios of error and deviation; but of two or three members some agree by chance, and the
    expectation of that mean is infinite.

    Args:
        errors: Of the committee's mean; any shape.
        spread: Standard deviations over the members, not all zero; the same shape.
    """
    return float(np.linalg.norm(errors) / np.linalg.norm(spread))


class UncertaintyMonitor:
    """Watches a committee's forces in a run and warns, or stops it, before it explores nonsense.

    Attach it to any of ASE's dynamics or optimisers:
    ``dynamics.attach(UncertaintyMonitor(atoms, stop=0.5), interval=10)``.

    Args:
        atoms: With a committee as calculator, best with a calibration.
        warn: eV/Å; from here on a warning is logged, once for each time that it is crossed.
        stop: eV/Å; from here on :class:`UncertainForces` is raised.

    Attributes:
        history: What was seen so far: the largest standard deviation of an atom's force (norm of its three components),
            eV/Å, at each call.
    """

    def __init__(self, atoms: Atoms, warn: float | None = None, stop: float | None = None) -> None:
        for name, limit in (("warn", warn), ("stop", stop)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0 eV/Å, got {limit!r}")
        self.atoms, self.warn, self.stop = atoms, warn, stop
        self.history: list[float] = []
        self._above = False

    def __call__(self) -> None:
        """Look at the present structure."""
        self.atoms.get_forces()
        results: dict[str, Any] = getattr(self.atoms.calc, "results", {})
        if "forces_std" not in results:
            raise ValueError("the calculator gives no forces_std: it must be a committee of two potentials or more")
        spread = np.linalg.norm(results["forces_std"], axis=1)
        worst = int(spread.argmax())
        self.history.append(float(spread[worst]))
        told = (
            f"forces are uncertain by {spread[worst]:.3g} eV/Å at atom {worst} ({self.atoms.symbols[worst]}), at look "
            f"{len(self.history)}"
        )
        if self.stop is not None and spread[worst] >= self.stop:
            raise UncertainForces(f"{told}: stopped, the limit is {self.stop:g} eV/Å")
        above = self.warn is not None and bool(spread[worst] >= self.warn)
        if above and not self._above:
            logger.warning("%s: the potential may be outside what it was trained on", told)
        self._above = above
