"""Settings of an audit: what is done, how long, and the limits; every field with its unit."""

from __future__ import annotations

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
]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class AuditError(SettingsError):
    """A user's mistake; the message names the file, option or calculator and says what was expected."""


class LabelSettings(Section):
    """Errors against labelled frames.

    Attributes:
        max_frames: At most so many frames, evenly spaced over the file.
        energy_limit: Mean absolute error of the energy, eV/atom.
        force_limit: Mean absolute error of force components, eV/Å.
        bin_width: Å of the bins of nearest-neighbour distance.
    """

    max_frames: Count = 500
    energy_limit: Positive = 5e-3
    force_limit: Positive = 0.05
    bin_width: Positive = 0.05


class RotationSettings(Section):
    """Invariance under rotations.

    Attributes:
        number: Random rotations.
        energy_limit: Peak-to-peak spread of the energy, meV/atom.
        force_limit: Root mean square over components and rotations of R F(x) − F(R x), eV/Å.
        net_force_limit: Largest norm of the sum of all forces, eV/Å.
        torque_limit: Largest norm of the net torque, eV (not for periodic structures).
    """

    number: Count = 100
    energy_limit: Positive = 1.0
    force_limit: Positive = 5e-3
    net_force_limit: Positive = 1e-3
    torque_limit: Positive = 0.02


class ForceSettings(Section):
    """Forces against central differences of the energy.

    Attributes:
        steps: Å; the best of them counts. Every step h uses energies at ±h and ±2h.
        max_atoms: Atoms that are moved, drawn at random where the structure has more.
        limit: Largest difference of a component, eV/Å; raised to what the energy's rounding noise allows.
        noise_limit: Standard deviation of the energy's rounding noise, eV.
    """

    steps: list[Positive] = Field(default=[0.0025, 0.005, 0.01, 0.02, 0.04], min_length=1)
    max_atoms: Count = 12
    limit: Positive = 1e-3
    noise_limit: Positive = 1e-4


class StressSettings(Section):
    """Stress against central differences of the energy with respect to strain.

    Attributes:
        steps: Strains (no unit); the best of them counts.
        limit: Largest difference of a component, eV/Å³; raised to what the energy's rounding noise allows.
    """

    steps: list[Positive] = Field(default=[0.001, 0.002, 0.004, 0.008], min_length=1)
    limit: Positive = 1e-4


class ScanSettings(Section):
    """Scans of the energy surface for jumps.

    Attributes:
        spacing: Å between points.
        bonds: Scan at most so many bonds, one of each pair of elements.
        stretch: Å by which bonds are stretched (molecules).
        squeeze: Å by which bonds are compressed; for periodic structures atoms move by this much either way.
        pull: Å by which an outer atom is pulled away: beyond the cutoff (molecules).
        expansion: Largest factor of cell lengths (periodic structures).
        halvings: How often a suspicious interval is halved: a jump stays, a slope does not.
        suspects: Intervals of each scan that are looked at so, for energy and for forces.
        energy_limit: Largest jump of the energy, eV.
        force_limit: Largest jump of a force component, eV/Å.
        slope_limit: Largest difference between the force along the scan and the scan's own derivative, eV/Å.
    """

    spacing: Positive = 0.02
    bonds: Count = 4
    stretch: Positive = 2.5
    squeeze: Positive = 0.3
    pull: Positive = 10.0
    expansion: Annotated[float, Field(gt=1)] = 1.3
    halvings: Annotated[int, Field(ge=4, le=20)] = 12
    suspects: Count = 4
    energy_limit: Positive = 1e-3
    force_limit: Positive = 5e-3
    slope_limit: Positive = 0.01


class NveSettings(Section):
    """Drift of the total energy.

    Attributes:
        timesteps: fs.
        picoseconds: Length of each run, ps.
        judged: Timesteps up to this one are held against the limit, fs.
        limit: Drift, meV/atom/ns.
    """

    timesteps: list[Positive] = Field(default=[0.25, 0.5, 1.0], min_length=1)
    picoseconds: Positive = 20.0
    judged: Positive = 0.5
    limit: Positive = 10.0


class NvtSettings(Section):
    """Stability under Langevin dynamics.

    Attributes:
        factors: Runs are at these multiples of the temperature.
        picoseconds: Length of each run, ps; all of it must be stable.
        timestep: fs.
        friction_fs: Relaxation time of the thermostat, fs.
        bond_change: Å by which a bond may differ from its length in the given structure.
    """

    factors: list[Positive] = Field(default=[1.0, 2.0], min_length=1)
    picoseconds: Positive = 20.0
    timestep: Positive = 0.5
    friction_fs: Positive = 50.0
    bond_change: Positive = 0.5


class ModeSettings(Section):
    """Normal modes of the relaxed structure.

    Attributes:
        fmax: Largest force to relax to, eV/Å.
        max_steps: Steps of the relaxation.
        delta: Displacement of the finite differences, Å.
        reference: Frequencies to compare with in rising order, cm⁻¹, without translations and rotations.
        reference_limit: Root mean square difference from them, cm⁻¹.
        max_atoms: Larger structures are not done.
    """

    fmax: Positive = 2e-3
    max_steps: Count = 500
    delta: Positive = 0.01
    reference: list[float] | None = None
    reference_limit: Positive = 30.0
    max_atoms: Count = 200


class ShortRangeSettings(Section):
    """Pairs of atoms pushed together.

    Attributes:
        begin: First distance, in sums of covalent radii: inside any bond.
        end: Last distance, in the same unit.
        points: Distances between the two.
        hole_limit: Depth of the deepest hole on the way in, eV.
        force_limit: Repulsion along the pair must be at least this everywhere, eV/Å.
        height_limit: The highest energy on the way in must be at least so much above the structure's own, eV; from 2 eV
            on a Boltzmann factor at 1000 K is below 10⁻¹⁰.
    """

    begin: Positive = 0.8
    end: Positive = 0.4
    points: Annotated[int, Field(ge=5)] = 60
    hole_limit: Positive = 0.01
    force_limit: float = 0.0
    height_limit: Positive = 2.0


class DomainSettings(Section):
    """Where the labelled frames stop.

    Attributes:
        max_frames: Frames that stand for the training set, evenly spaced over the file.
        quantile: Part of the frames that lies inside the range, seen from the others.
        limit: Distance of the structure, in units of that range.
        outside_limit: Part of the frames of the NVT run at the training temperature that may lie outside.
        cutoff: Radius of an atom's environment, Å.
    """

    max_frames: Count = 500
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.99
    limit: Positive = 1.0
    outside_limit: NotNegative = 0.1
    cutoff: Positive = 5.0


class AuditSettings(Section):
    """A whole audit.

    Attributes:
        seed: Of everything random.
        temperature: Of the training data, K.
        rattle: Å (standard deviation) of noise on the structure for forces, stress and rotations.
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
        """Validate nested mappings, later ones replacing single fields of earlier ones.

        Raises:
            AuditError: Naming every wrong field.
        """
        values: dict[str, Any] = {}
        for layer in layers:
            values = merged(values, layer)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise AuditError(f"{source}: settings that cannot be used:\n{wrong_fields(error)}") from None


#: What ``--quick`` changes: under a minute for a small molecule and a fast calculator.
QUICK: dict[str, Any] = {
    "labels": {"max_frames": 100},
    "rotations": {"number": 30},
    "forces": {"steps": [0.005, 0.01, 0.02], "max_atoms": 6},
    "scans": {"bonds": 2, "spacing": 0.04, "suspects": 2},
    "short_range": {"points": 30},
    "nve": {"timesteps": [0.5, 1.0], "picoseconds": 1.0},
    "nvt": {"picoseconds": 1.0},
    "domain": {"max_frames": 200},
}


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: For a missing file or one that holds anything else.
    """
    return read_yaml(path, "nve: {picoseconds: 50}")
