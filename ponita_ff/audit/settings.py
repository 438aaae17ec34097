"""Settings of an audit: which points are calculated, the lengths of the runs, and the limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ponita_ff.settings import Section, SettingsError, merged, read_yaml, wrong_fields

__all__ = [
    "QUICK",
    "AuditError",
    "AuditSettings",
    "DomainSettings",
    "ForceSettings",
    "LabelSettings",
    "ModeSettings",
    "NveSettings",
    "NvtSettings",
    "RotationSettings",
    "ScanSettings",
    "ShortRangeSettings",
    "StressSettings",
    "read_settings",
]

logger = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class AuditError(SettingsError):
    """A mistake of the user; the message names the file, option or calculator and says what was expected."""


class LabelSettings(Section):
    """Errors of energies and forces on labelled frames.

    Attributes:
        max_frames: Largest number of frames to use, evenly spaced over the file.
        energy_limit: Largest mean absolute error of the energy, eV/atom.
        force_limit: Largest mean absolute error of force components, eV/Å.
        bin_width: Width of the bins of the nearest-neighbour distance, Å.
    """

    max_frames: Count = 500
    energy_limit: Positive = 5e-3
    force_limit: Positive = 0.05
    bin_width: Positive = 0.05


class RotationSettings(Section):
    """Invariance of the energy and equivariance of the forces under rotations.

    Attributes:
        number: Number of random rotations.
        energy_limit: Largest peak-to-peak spread of the energy, meV/atom.
        force_limit: Largest root mean square of R F(x) − F(R x) over components and rotations R, eV/Å.
        net_force_limit: Largest norm of the sum of all forces, eV/Å.
        torque_limit: Largest norm of the net torque of a molecule, eV.
    """

    number: Count = 100
    energy_limit: Positive = 1.0
    force_limit: Positive = 5e-3
    net_force_limit: Positive = 1e-3
    torque_limit: Positive = 0.02


class ForceSettings(Section):
    """Forces against central differences of the energy.

    Attributes:
        steps: Steps h of the differences, Å; each uses energies at ±h and ±2h, and the best step counts.
        max_atoms: Largest number of atoms to displace; of larger structures, atoms are drawn at random.
        limit: Largest difference of a force component, eV/Å; raised to the level of the energy's rounding noise.
        noise_limit: Largest standard deviation of the energy's rounding noise, eV.
    """

    steps: list[Positive] = Field(default=[0.0025, 0.005, 0.01, 0.02, 0.04], min_length=1)
    max_atoms: Count = 12
    limit: Positive = 1e-3
    noise_limit: Positive = 1e-4


class StressSettings(Section):
    """Stress against central differences of the energy with respect to strain.

    Attributes:
        steps: Strains h of the differences, dimensionless; each uses energies at ±h and ±2h, and the best step counts.
        limit: Largest difference of a stress component, eV/Å³; raised to the level of the energy's rounding noise.
    """

    steps: list[Positive] = Field(default=[0.001, 0.002, 0.004, 0.008], min_length=1)
    limit: Positive = 1e-4


class ScanSettings(Section):
    """Continuity of energy and forces along scans.

    Attributes:
        spacing: Spacing of the points of a scan, Å.
        bonds: Largest number of bonds to scan, one of each pair of elements.
        stretch: Length by which bonds of molecules are stretched, Å.
        compress: Length by which bonds are compressed, Å; in periodic structures bonds are stretched by it, too.
        detach: Length by which the outermost atom of a molecule is moved away, Å; should exceed the cutoff.
        expansion: Largest factor of the cell lengths of periodic structures, dimensionless.
        bisections: Number of times that an interval suspected of a jump is halved.
        bisected_intervals: Number of intervals of each scan that are suspected, for energy and forces each.
        energy_limit: Largest jump of the energy, eV.
        force_limit: Largest jump of a force component, eV/Å.
        slope_limit: Largest difference between the force along the scan and the derivative of the energy, eV/Å.
    """

    spacing: Positive = 0.02
    bonds: Count = 4
    stretch: Positive = 2.5
    compress: Positive = 0.3
    detach: Positive = 10.0
    expansion: Annotated[float, Field(gt=1)] = 1.3
    bisections: Annotated[int, Field(ge=4, le=20)] = 12
    bisected_intervals: Count = 4
    energy_limit: Positive = 1e-3
    force_limit: Positive = 5e-3
    slope_limit: Positive = 0.01


class ShortRangeSettings(Section):
    """Repulsion of atoms at short range.

    Attributes:
        begin: First distance of a pair, in sums of the covalent radii; below any bond length.
        end: Last distance of a pair, in sums of the covalent radii.
        points: Number of distances between the two.
        hole_limit: Largest decrease of the energy while a pair approaches, eV.
        force_limit: Smallest repulsive force of a pair at any of the distances, eV/Å.
        height_limit: Smallest height of the repulsive wall above the energy of the structure, eV; at 2 eV a Boltzmann
            factor at 1000 K is below 10⁻¹⁰.
    """

    begin: Positive = 0.8
    end: Positive = 0.4
    points: Annotated[int, Field(ge=5)] = 60
    hole_limit: Positive = 0.01
    force_limit: float = 0.0
    height_limit: Positive = 2.0


class ModeSettings(Section):
    """Normal modes of the relaxed structure.

    Attributes:
        fmax: Largest force at which the structure counts as relaxed, eV/Å.
        max_steps: Largest number of steps of the relaxation.
        displacement: Displacement of the finite differences, Å.
        reference: Frequencies to compare with, cm⁻¹, without translations and rotations; none by default.
        reference_limit: Largest root mean square difference from the reference, cm⁻¹.
        max_atoms: Number of atoms above which the check is skipped.
    """

    fmax: Positive = 2e-3
    max_steps: Count = 500
    displacement: Positive = 0.01
    reference: list[float] | None = None
    reference_limit: Positive = 30.0
    max_atoms: Count = 200


class NveSettings(Section):
    """Conservation of the energy in NVE dynamics.

    Attributes:
        timesteps: Time steps, fs; one run each.
        picoseconds: Length of each run, ps.
        max_assessed_timestep: Largest time step whose drift is compared with the limit, fs; others are only reported.
        limit: Largest drift of the total energy, meV/atom/ns.
    """

    timesteps: list[Positive] = Field(default=[0.25, 0.5, 1.0], min_length=1)
    picoseconds: Positive = 20.0
    max_assessed_timestep: Positive = 0.5
    limit: Positive = 10.0


class NvtSettings(Section):
    """Stability of bonds in Langevin dynamics.

    Attributes:
        temperature_factors: Temperatures of the runs, in units of the temperature of the training data.
        picoseconds: Length of each run, ps; all bonds must last that long.
        timestep: Time step, fs.
        relaxation_time: Relaxation time of the thermostat (inverse of the friction), fs.
        bond_change_limit: Largest change of a bond from its length in the given structure, Å.
    """

    temperature_factors: list[Positive] = Field(default=[1.0, 2.0], min_length=1)
    picoseconds: Positive = 20.0
    timestep: Positive = 0.5
    relaxation_time: Positive = 50.0
    bond_change_limit: Positive = 0.5


class DomainSettings(Section):
    """Distance from the domain of the labelled frames.

    Attributes:
        max_frames: Largest number of frames that represent the training set, evenly spaced over the file.
        limit: Largest distance of the structure; 1 is the limit of the frames' domain.
        outside_limit: Largest fraction of the NVT run at the training temperature that may lie outside, dimensionless.
    """

    max_frames: Count = 500
    limit: Positive = 1.0
    outside_limit: NotNegative = 0.1


class AuditSettings(Section):
    """Settings of a whole audit.

    Attributes:
        seed: Seed of all random numbers.
        temperature: Temperature of the training data, K.
        rattle: Standard deviation of the noise on positions for the checks of forces, stress and rotations, Å.
        labels: Errors of energies and forces on labelled frames.
        rotations: Invariance of the energy and equivariance of the forces under rotations.
        forces: Forces against central differences of the energy.
        stress: Stress against central differences of the energy with respect to strain.
        scans: Continuity of energy and forces along scans.
        short_range: Repulsion of atoms at short range.
        modes: Normal modes of the relaxed structure.
        nve: Conservation of the energy in NVE dynamics.
        nvt: Stability of bonds in Langevin dynamics.
        domain: Distance from the domain of the labelled frames.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    temperature: Positive = 300.0
    rattle: NotNegative = 0.05
    labels: LabelSettings = LabelSettings()
    rotations: RotationSettings = RotationSettings()
    forces: ForceSettings = ForceSettings()
    stress: StressSettings = StressSettings()
    scans: ScanSettings = ScanSettings()
    short_range: ShortRangeSettings = ShortRangeSettings()
    modes: ModeSettings = ModeSettings()
    nve: NveSettings = NveSettings()
    nvt: NvtSettings = NvtSettings()
    domain: DomainSettings = DomainSettings()

    @classmethod
    def make(cls, *layers: Mapping[str, Any], source: str = "settings") -> AuditSettings:
        """Validate nested mappings; later ones replace single fields of earlier ones.

        Args:
            layers: Settings by section and field; old names of fields are translated.
            source: File or option that the settings come from, for error messages.

        Raises:
            AuditError: Naming every wrong field.
        """
        values: dict[str, Any] = {}
        for layer in layers:
            values = merged(values, _with_new_names(layer))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise AuditError(f"{source}: settings that cannot be used:\n{wrong_fields(error)}") from None


#: Fields of version 0.1 by section, and their present names.
_RENAMED = {
    "scans": {
        "squeeze": "compress",
        "pull": "detach",
        "halvings": "bisections",
        "suspects": "bisected_intervals",
    },
    "modes": {"delta": "displacement"},
    "nve": {"judged": "max_assessed_timestep"},
    "nvt": {"factors": "temperature_factors", "friction_fs": "relaxation_time", "bond_change": "bond_change_limit"},
}

#: Fields of version 0.1 by section that have no meaning any more.
_REMOVED = {"domain": ("quantile", "cutoff")}


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which fields of older versions have their present names, without those that have none."""
    result = dict(values)
    for section, removed in _REMOVED.items():
        if isinstance(result.get(section), Mapping):
            for name in set(removed) & set(result[section]):
                logger.warning("%s.%s has no effect any more", section, name)
            result[section] = {name: value for name, value in result[section].items() if name not in removed}
    for section, names in _RENAMED.items():
        if isinstance(result.get(section), Mapping):
            result[section] = {names.get(field, field): value for field, value in result[section].items()}
    return result


#: Changes made by ``--quick``: less than a minute for a small molecule and a fast calculator.
QUICK: dict[str, Any] = {
    "labels": {"max_frames": 100},
    "rotations": {"number": 30},
    "forces": {"steps": [0.005, 0.01, 0.02], "max_atoms": 6},
    "scans": {"bonds": 2, "spacing": 0.04, "bisected_intervals": 2},
    "short_range": {"points": 30},
    "nve": {"timesteps": [0.5, 1.0], "picoseconds": 1.0},
    "nvt": {"picoseconds": 1.0},
    "domain": {"max_frames": 200},
}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        SettingsError: If the file is missing or is not a mapping.
    """
    return read_yaml(path, "nve: {picoseconds: 50}")
