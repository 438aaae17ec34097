"""Settings of a sampling run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from ponita_ff.settings import Section, SettingsError, with_changes, wrong_fields

__all__ = ["CLUSTER_KINDS", "KINDS", "MOLECULE_KINDS", "Kind", "SampleError", "SampleSettings"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[int, Field(ge=0, le=100)]
Temperatures = Annotated[list[Positive], Field(min_length=1)]

Kind = Literal[
    "minimum", "md", "modes", "torsions", "bonds", "contacts", "cluster_minimum", "cluster_md", "cluster_scan"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Kinds of frames of single molecules, and of clusters.
MOLECULE_KINDS, CLUSTER_KINDS = KINDS[:5], KINDS[5:]


class SampleError(SettingsError):
    """An error of the user's input; the message names the file, option or folder and what is expected."""


class MoleculeSettings(Section):
    """Molecules that are used; the others are listed in skipped.csv with the reason.

    Attributes:
        elements: Symbols of the elements that a molecule may have; null for all.
        max_heavy_atoms: Largest number of atoms other than hydrogen; null for any.
        charged: Whether ions are used, and molecules with a charged atom that has no opposite charge beside it. Nitro
            groups are neutral here.
        open_shell: Whether molecules with unpaired electrons are used.
        conformers: Largest number of conformers of each molecule of a SMILES file.
    """

    elements: list[str] | None = None
    max_heavy_atoms: Count | None = None
    charged: bool = False
    open_shell: bool = False
    conformers: Count = 2


class HoldOutSettings(Section):
    """Molecules that are kept for tests: not used, alone or in clusters.

    Attributes:
        molecules: SMILES or InChIKeys. Their first blocks are compared, without stereochemistry and mobile hydrogens.
        file: File of more SMILES or InChIKeys, one a line.
        scaffold_percent: Share of Murcko scaffolds that is held out, by a hash; an acyclic molecule is its own one.
        clusters: SMILES or InChIKeys of molecules that are used alone, but not in a cluster of each other.
    """

    molecules: list[str] = Field(default=[])
    file: Path | None = None
    scaffold_percent: Share = 0
    clusters: list[str] = Field(default=[])


class MinimumSettings(Section):
    """Relaxed conformers, and structures on the way there.

    Attributes:
        frames: Frames of each conformer; the first is the relaxed one, the others are evenly spaced on the path to it.
        fmax: Largest force of a relaxed structure, eV/Å.
        steps: Steps after which a relaxation ends in any case.
    """

    frames: Count = 2
    fmax: Positive = 0.02
    steps: Count = 200


class MdSettings(Section):
    """Langevin dynamics from the relaxed structure.

    Attributes:
        frames: Frames of each conformer, evenly over the temperatures.
        temperatures: K; one trajectory each.
        timestep: fs.
        relaxation_time: Of the thermostat (inverse of the friction), fs.
        equilibration: Time before the first frame, fs.
        interval: Time between frames, fs.
    """

    frames: Count = 6
    temperatures: Temperatures = Field(default=[300.0, 600.0, 1000.0])
    timestep: Positive = 0.5
    relaxation_time: Positive = 50.0
    equilibration: NotNegative = 100.0
    interval: Positive = 25.0


class ModeSettings(Section):
    """Random thermal displacements along the normal modes of the relaxed structure.

    Attributes:
        frames: Frames of each conformer, evenly over the temperatures.
        temperatures: Of the classical amplitudes, K.
        displacement: Of the finite differences for the second derivatives, Å.
        softest: Modes of a lower wavenumber are displaced as if they had this one, cm⁻¹.
        max_atoms: Larger structures have no frames of this kind: the second derivatives take 6 calculations an atom.
    """

    frames: Count = 4
    temperatures: Temperatures = Field(default=[100.0, 300.0, 1000.0, 2000.0])
    displacement: Positive = 0.01
    softest: Positive = 100.0
    max_atoms: Count = 60


class TorsionSettings(Section):
    """Single bonds outside rings turned through the full circle.

    Attributes:
        frames: Frames of each conformer; they take turns over its rotatable bonds.
        steps: Steps of a relaxation after each turn, which ends close contacts; 0 for none.
    """

    frames: Count = 4
    steps: Annotated[int, Field(ge=0)] = 5


class BondSettings(Section):
    """Bonds outside rings stretched and compressed.

    Attributes:
        frames: Frames of each conformer, of random bonds.
        shortest: Smallest length of the bond, in lengths of the relaxed bond.
        longest: Largest length of the bond, in lengths of the relaxed bond.
        rattle: Standard deviation of random displacements of all coordinates, Å.
    """

    frames: Count = 3
    shortest: Positive = 0.85
    longest: Positive = 1.35
    rattle: NotNegative = 0.03


class ClusterSettings(Section):
    """Dimers and small clusters of the molecules. Lines A.B of a SMILES file are clusters, too.

    Attributes:
        per_molecule: Random clusters for each molecule of the input.
        sizes: Numbers of molecules in a random cluster, each as often as the others.
        max_heavy_atoms: Largest number of atoms other than hydrogen in a random cluster.
    """

    per_molecule: NotNegative = 1.0
    sizes: Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(min_length=1)] = Field(default=[2])
    max_heavy_atoms: Count = 20


class ContactSettings(Section):
    """Molecules of a cluster at random orientations and many distances.

    Attributes:
        frames: Frames of each cluster.
        nearest: Smallest distance of the closest atoms of two molecules, in sums of their van der Waals radii.
        farthest: Largest such distance.
        rattle: Standard deviation of random displacements of all coordinates, Å.
    """

    frames: Count = 4
    nearest: Positive = 0.75
    farthest: Positive = 2.0
    rattle: NotNegative = 0.04


class ClusterMdSettings(MdSettings):
    """Langevin dynamics from the relaxed cluster.

    Attributes:
        frames: Frames of each cluster, evenly over the temperatures.
        temperatures: K; one trajectory each.
        timestep: fs.
        relaxation_time: Of the thermostat (inverse of the friction), fs.
        equilibration: Time before the first frame, fs.
        interval: Time between frames, fs.
    """

    frames: Count = 4
    temperatures: Temperatures = Field(default=[100.0, 300.0])


class ClusterMinimumSettings(MinimumSettings):
    """Clusters relaxed from contact, and structures on the way there.

    Attributes:
        frames: Frames of each cluster; the first is the relaxed one, the others are evenly spaced on the path to it.
        fmax: Largest force of a relaxed structure, eV/Å.
        steps: Steps after which a relaxation ends in any case.
    """

    steps: Count = 60


class ClusterScanSettings(Section):
    """The last molecule of the relaxed cluster pulled away or pushed nearer, along the closest contact or the line of
    the centres.

    Attributes:
        frames: Frames of each cluster.
        nearest: Smallest distance of the closest atoms, in distances of the relaxed cluster.
        farthest: Largest such distance.
    """

    frames: Count = 4
    nearest: Positive = 0.85
    farthest: Positive = 2.0


class FilterSettings(Section):
    """Frames that are left out.

    Attributes:
        broken: Whether frames are left out in which bonds are not those of the molecule: a bond whose length has
            changed by more than 0.5 Å, or a new one. Frames of kind bonds are not judged.
        closest: Smallest distance of two atoms, in sums of their covalent radii.
        max_force: Largest force on an atom by the method, eV/Å; null for any.
    """

    broken: bool = True
    closest: NotNegative = 0.6
    max_force: Positive | None = 30.0


class SelectionSettings(Section):
    """Which frames of the same composition differ enough to be kept. Applied at the end, so that it may change when a
    run goes on.

    Attributes:
        distance: Frames nearer than this to a frame that is kept are left out: root mean square over the atoms of the
            difference of their radial symmetry functions, those of each element in ascending order; 0 keeps all.
        cutoff: Of the symmetry functions, Å.
        functions: Number of symmetry functions for each element.
        frames: Largest number of frames in the file, the most different ones of each composition; null for all.
    """

    distance: NotNegative = 0.02
    cutoff: Annotated[float, Field(gt=1)] = 5.0
    functions: Annotated[int, Field(ge=2)] = 8
    frames: Count | None = None


class SampleSettings(Section):
    """Settings of a sampling run.

    Attributes:
        method: Method of forces: gfn2-xtb, gfn1-xtb or ipea1-xtb; FUNCTIONAL/BASIS; ani-2x, ani-2x{weights: FOLDER} or
            so3lr; the name or file of a potential; or the Python path of an ASE calculator.
        seed: Seed of all random numbers.
        kinds: Kinds of frames to make; each has its section below.
    """

    method: str
    seed: Annotated[int, Field(ge=0)] = 1
    kinds: Annotated[list[Kind], Field(min_length=1)] = Field(default=list(KINDS))
    molecules: MoleculeSettings = MoleculeSettings()
    hold_out: HoldOutSettings = HoldOutSettings()
    minimum: MinimumSettings = MinimumSettings()
    md: MdSettings = MdSettings()
    modes: ModeSettings = ModeSettings()
    torsions: TorsionSettings = TorsionSettings()
    bonds: BondSettings = BondSettings()
    clusters: ClusterSettings = ClusterSettings()
    contacts: ContactSettings = ContactSettings()
    cluster_minimum: ClusterMinimumSettings = ClusterMinimumSettings()
    cluster_md: ClusterMdSettings = ClusterMdSettings()
    cluster_scan: ClusterScanSettings = ClusterScanSettings()
    filters: FilterSettings = FilterSettings()
    selection: SelectionSettings = SelectionSettings()

    @field_validator("kinds")
    @classmethod
    def _in_one_order(cls, kinds: list[Kind]) -> list[Kind]:
        return [kind for kind in KINDS if kind in kinds]

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name, low, high in (
            ("bonds", "shortest", "longest"),
            ("contacts", "nearest", "farthest"),
            ("cluster_scan", "nearest", "farthest"),
        ):
            section = getattr(self, name)
            if getattr(section, low) > getattr(section, high):
                raise ValueError(f"{name}.{low} must not be above {name}.{high}")
        return self

    @classmethod
    def make(cls, values: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> SampleSettings:
        """Validate settings.

        Args:
            values: Nested settings, e.g. of a file.
            changes: Settings by dotted name that replace them.

        Raises:
            SampleError: Naming every wrong field.
        """
        try:
            return cls.model_validate(with_changes(values, changes or {}))
        except ValidationError as error:
            raise SampleError(f"these settings cannot be used:\n{wrong_fields(error)}") from None
        except SettingsError as error:
            raise SampleError(str(error)) from error
