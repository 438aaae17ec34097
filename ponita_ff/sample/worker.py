"""All frames of one molecule or cluster; runs in a worker, which may be another process or machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from ponita_ff.labels.methods import Method
from ponita_ff.labels.results import set_temporary_folder
from ponita_ff.labels.worker import Failure, one_line
from ponita_ff.sample import kinds
from ponita_ff.sample.filter import refusal
from ponita_ff.sample.geometry import Connectivity, conformers, placed, without_radius
from ponita_ff.sample.kinds import Draft, Start
from ponita_ff.sample.methods import method_of
from ponita_ff.sample.molecules import Molecule
from ponita_ff.sample.settings import CLUSTER_KINDS, MOLECULE_KINDS, Kind, MinimumSettings, SampleSettings

__all__ = ["Made", "SampleTask", "Sampled"]

#: Decimals of positions, Å, as extended XYZ has them.
_DECIMALS = 8


@dataclass(frozen=True, eq=False)
class Sampled:
    """A frame.

    Attributes:
        positions: Å, shape (n, 3); of a molecule about the mean of its atoms.
        info: How it came about: ``kind``, and what belongs to it.
    """

    positions: NDArray[np.float64]
    info: Mapping[str, Any]


@dataclass
class Made:
    """What a task made.

    Attributes:
        numbers: Atomic numbers.
        cell: Å, shape (3, 3).
        pbc: Periodicity.
        program: Name and version of the program that gave the forces.
        frames: The frames that passed the filters.
        dropped: Numbers of those that did not, by kind and reason, e.g. ``"md: broken"``.
        ended: Why a kind, or a conformer, has fewer frames than asked for, by its name.
    """

    numbers: list[int]
    cell: list[list[float]]
    pbc: list[bool]
    program: str
    frames: list[Sampled] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    ended: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleTask:
    """A molecule alone, or a cluster.

    Attributes:
        number: Place in the output.
        molecules: One, or those of the cluster.
        method: Of the forces, with the charge and multiplicity of the whole.
        settings: Of the run.
        retries: How often it was submitted again because a worker process died.
    """

    number: int
    molecules: tuple[Molecule, ...]
    method: Method
    settings: SampleSettings
    retries: int = 0

    @property
    def source(self) -> str:
        """Name for messages."""
        return f"{self.places} ({self.smiles})" if self.smiles else self.places

    @property
    def places(self) -> str:
        """Where the molecules are from, e.g. ``"2 × frames.xyz, frame 3"``."""
        counts = Counter((molecule.source, molecule.key) for molecule in self.molecules)
        named = (f"{number} × {source}" if number > 1 else source for (source, _), number in counts.items())
        return ", ".join(dict.fromkeys(named))

    @property
    def smiles(self) -> str | None:
        """SMILES of the whole; None if a molecule has none."""
        parts = [molecule.smiles for molecule in self.molecules]
        return None if None in parts else ".".join(map(str, parts))

    @property
    def key(self) -> str:
        """SHA-256 of the molecules: the same in every run."""
        return hashlib.sha256("\n".join(molecule.key for molecule in self.molecules).encode()).hexdigest()

    def generator(self, *stream: str | int) -> np.random.Generator:
        """Random numbers of one purpose: they depend on seed, molecules and purpose alone."""
        digest = hashlib.sha256(f"{self.settings.seed} {self.key} {stream}".encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))

    def retry(self) -> SampleTask:
        """The same task for another attempt."""
        return replace(self, retries=self.retries + 1)

    def parts(self) -> list[SampleTask]:
        """Itself: a molecule is not divided."""
        return [self]

    def run(self) -> Made | Failure:
        """All frames; every error is returned as a `Failure`, never raised."""
        try:
            with ExitStack() as stack:
                calculator = self.method.calculator()
                set_temporary_folder(calculator, stack)
                return _Making(self, calculator).run()
        except (Exception, SystemExit) as error:  # calculators may raise anything
            return Failure(one_line(f"{self.source}: {type(error).__name__}: {error}"))


class _Making:
    """The work of one task.

    Args:
        task: The task.
        calculator: One for all of it: many programs begin at the result of the geometry before.
    """

    def __init__(self, task: SampleTask, calculator: BaseCalculator) -> None:
        self.task, self.settings, self.calculator = task, task.settings, calculator
        whole = task.molecules[0].atoms() if len(task.molecules) == 1 else Atoms()
        self.made = Made([], whole.cell.array.tolist(), whole.pbc.tolist(), task.method.program())

    def run(self) -> Made | Failure:
        """All frames; a failure if there are none."""
        if len(self.task.molecules) == 1:
            self._make_molecule(self.task.molecules[0])
        else:
            self._make_cluster()
        if self.made.frames:
            return self.made
        reasons = [f"{name}: {reason}" for name, reason in self.made.ended.items()]
        reasons += [f"{number} {reason}" for reason, number in self.made.dropped.items()]
        return Failure(one_line(f"{self.task.source}: no frame is left: {'; '.join(reasons) or 'no kind fits it'}"))

    def _make_molecule(self, molecule: Molecule) -> None:
        functions: Mapping[Kind, Callable[..., Iterator[Draft]]] = {
            "minimum": kinds.minimum,
            "md": kinds.md,
            "modes": kinds.modes,
            "torsions": kinds.torsions,
            "bonds": kinds.bonds,
        }
        for number, atoms in enumerate(self._geometries(molecule, 0, self.settings.molecules.conformers)):
            self.made.numbers = atoms.numbers.tolist()
            start = self._relaxed(f"conformer {number}", atoms, Connectivity.of(atoms), self.settings.minimum)
            for kind in MOLECULE_KINDS:
                if start is not None and kind in self.settings.kinds:
                    drafts = functions[kind](start, getattr(self.settings, kind), self.task.generator(kind, number))
                    self._keep(kind, drafts, start, {"conformer": number})

    def _make_cluster(self) -> None:
        parts = self._relaxed_parts()
        if parts is None:
            return
        alone = [part.atoms for part in parts]
        missing = without_radius([number for atoms in alone for number in atoms.numbers])
        if missing is not None:
            self.made.ended["cluster"] = f"no van der Waals radius of {missing} is known"
            return
        whole = placed(alone, 1.0, self.task.generator("cluster"))
        whole.calc = self.calculator
        self.made.numbers = whole.numbers.tolist()
        unrelaxed = Start(whole, Connectivity.of_parts(alone), [], False)
        settings, generator = self.settings, self.task.generator
        if "contacts" in settings.kinds:
            self._keep("contacts", kinds.contacts(parts, settings.contacts, generator("contacts")), unrelaxed, {})
        if set(settings.kinds).isdisjoint(CLUSTER_KINDS[1:]):
            return
        start = self._relaxed("cluster", whole.copy(), unrelaxed.connectivity, settings.cluster_minimum)
        if start is None:
            return
        drafts: Mapping[Kind, Iterator[Draft]] = {
            "cluster_minimum": kinds.minimum(start, settings.cluster_minimum, generator("cluster_minimum")),
            "cluster_md": kinds.md(start, settings.cluster_md, generator("cluster_md")),
            "cluster_scan": kinds.cluster_scan(start, len(alone[-1]), settings.cluster_scan, generator("cluster_scan")),
        }
        for kind in CLUSTER_KINDS[1:]:
            if kind in settings.kinds:
                self._keep(kind, drafts[kind], start, {})

    def _relaxed_parts(self) -> list[Start] | None:
        """The molecules of a cluster alone, each with a calculator for its own charge; None if one is not to be had."""
        parts: list[Start] = []
        known: dict[str, Start] = {}
        for number, molecule in enumerate(self.task.molecules):
            if molecule.key not in known:
                method = method_of(self.task.method, molecule.charge, molecule.multiplicity)
                calculator = self.calculator if method == self.task.method else method.calculator()
                with ExitStack() as stack:
                    set_temporary_folder(calculator, stack)
                    atoms = self._geometries(molecule, number, 1)[0]
                    name, settings = f"molecule {number}", self.settings.minimum
                    start = self._relaxed(name, atoms, Connectivity.of(atoms), settings, calculator)
                if start is None:
                    return None
                known[molecule.key] = start
            parts.append(known[molecule.key])
        return parts

    def _geometries(self, molecule: Molecule, number: int, conformer_limit: int) -> list[Atoms]:
        if molecule.structure is not None:
            return [molecule.structure.copy()]
        assert molecule.smiles is not None
        seed = int(self.task.generator("conformers", number).integers(1, 1 << 30))
        return conformers(molecule.smiles, conformer_limit, seed)

    def _relaxed(
        self,
        name: str,
        atoms: Atoms,
        connectivity: Connectivity,
        settings: MinimumSettings,
        calculator: BaseCalculator | None = None,
    ) -> Start | None:
        """A start for frames; None, with the reason in ``ended``, if there is none."""
        atoms.calc = calculator or self.calculator
        try:
            start = kinds.relax(atoms, connectivity, settings.fmax, settings.steps)
        except Exception as error:  # calculators may raise anything
            self.made.ended[name] = one_line(f"its relaxation failed: {type(error).__name__}: {error}")
            return None
        problem = connectivity.problem(atoms) if self.settings.filters.broken else None
        if problem is not None:
            self.made.ended[name] = f"its relaxation changed it: {problem}"
            return None
        return start

    def _keep(self, kind: Kind, drafts: Iterator[Draft], start: Start, info: Mapping[str, Any]) -> None:
        """Filter the frames of a kind and keep the others."""
        atoms = start.copy()
        judged = None if kind == "bonds" else start.connectivity
        try:
            for draft in drafts:
                atoms.positions = draft.positions
                if not atoms.pbc.any():
                    atoms.positions -= atoms.positions.mean(axis=0)
                atoms.positions = np.round(atoms.positions, _DECIMALS) + 0.0  # −0 is 0
                reason = refusal(atoms, judged, self.settings.filters)
                if reason is None:
                    self.made.frames.append(Sampled(atoms.positions.copy(), {"kind": kind, **info, **draft.info}))
                else:
                    self.made.dropped[f"{kind}: {reason}"] += 1
        except Exception as error:  # as above
            name = ", ".join([kind, *(f"{key} {value}" for key, value in info.items())])
            self.made.ended[name] = one_line(f"{type(error).__name__}: {error}")
