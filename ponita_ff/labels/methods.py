"""Methods that calculate labels, by name: small picklable objects that make a calculator in a worker process.

Label programs are imported only when they are used.
"""

from __future__ import annotations

import contextlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import yaml
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import atomic_numbers, chemical_symbols

from ponita_ff.labels import ani, so3lr
from ponita_ff.labels.results import Labels, by_calculator, of_ensemble
from ponita_ff.python_path import PythonPath, PythonPathError, keyword_arguments, split_arguments

__all__ = [
    "AniMethod",
    "CalculatorMethod",
    "Factory",
    "KohnShamMethod",
    "LabelError",
    "Method",
    "So3lrMethod",
    "TightBinding",
    "find_method",
    "with_weights",
]

Factory = Callable[[], BaseCalculator]

#: Names of methods here and in tblite.
_TIGHT_BINDING = {"gfn1-xtb": "GFN1-xTB", "gfn2-xtb": "GFN2-xTB", "ipea1-xtb": "IPEA1-xTB"}
_TIGHT_BINDING_LAST_ELEMENT = atomic_numbers["Rn"]
_LANTHANIDES = range(atomic_numbers["La"], atomic_numbers["Lu"] + 1)

#: tblite's factor of its SCF thresholds; the default is 1. The smaller one costs few more iterations.
ACCURACY = 0.01


class LabelError(ValueError):
    """A user's mistake; the message names the file, frame or option and says what was expected."""


@dataclass(frozen=True)
class Method(ABC):
    """A method that calculates labels.

    Attributes:
        name: Name in the labelled file and the journal.
        charge: Charge of every frame in elementary charges; None if it is set in the calculator itself.
        multiplicity: 2S + 1 of every frame; None if it is set in the calculator itself.
        batch_atoms: Largest number of atoms, with those that fill up smaller frames, of several frames that `compute`
            gets at once; 0 if it gets one frame at a time.
        ensemble: Whether labels have the spread over an ensemble.
    """

    batch_atoms: ClassVar[int] = 0
    ensemble: ClassVar[bool] = False

    name: str
    charge: int | None = None
    multiplicity: int | None = None

    @abstractmethod
    def calculator(self) -> BaseCalculator:
        """A new calculator; one is made per frame, so that labels do not depend on earlier frames."""

    def compute(self, frames: Sequence[Atoms]) -> list[Labels]:
        """The labels of a batch, in its order; they are validated afterwards. Any exception may be raised."""
        return [by_calculator(self.calculator(), atoms, self.program()) for atoms in frames]

    def weights_sha256(self) -> tuple[str, ...]:
        """SHA-256 of the weights, where the method has some: with other ones it is another method."""
        return ()

    def with_spin(self, charge: int, multiplicity: int) -> Self:
        """The same method for frames of another charge (elementary charges) and multiplicity (2S + 1)."""
        return replace(self, charge=charge, multiplicity=multiplicity)

    @abstractmethod
    def program(self) -> str:
        """Name and version of the program, e.g. ``"tblite 0.8.0"``."""

    @abstractmethod
    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        """Check program and frames before any calculation.

        Args:
            frames: Each with its name for error messages, e.g. ``"frames.xyz, frame 7"``.

        Raises:
            LabelError: The program is not installed, or the method cannot calculate a frame.
        """


@dataclass(frozen=True)
class TightBinding(Method):
    """GFN1-xTB, GFN2-xTB or IPEA1-xTB by tblite; crystals at the Γ point."""

    def calculator(self) -> BaseCalculator:
        from tblite.ase import TBLite

        method = _TIGHT_BINDING[self.name]
        return TBLite(method=method, charge=self.charge, multiplicity=self.multiplicity, accuracy=ACCURACY, verbosity=0)

    def program(self) -> str:
        return f"tblite {_version('tblite')}"

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        _require_package("tblite", self.name)
        for source, atoms in frames:
            unknown = np.flatnonzero(atoms.numbers > _TIGHT_BINDING_LAST_ELEMENT)
            if unknown.size:
                raise LabelError(f"{source}: atom {unknown[0]} is {atoms.symbols[unknown[0]]}; {self.name} ends at Rn")
            if atoms.pbc.any() and not atoms.pbc.all():
                raise LabelError(
                    f"{source}: periodic in some directions only, which {self.name} does not support; make it "
                    "periodic in all (with empty space in the cell) or in none"
                )
            # Lanthanides have 3 valence electrons in this method, independent of the number of 4f electrons.
            counted = np.where(np.isin(atoms.numbers, _LANTHANIDES), _LANTHANIDES[0], atoms.numbers)
            _check_electrons(self, source, atoms, int(counted.sum()))


@dataclass(frozen=True)
class KohnShamMethod(Method):
    """A density functional in a Gaussian basis, ``functional/basis``, by PySCF; molecules only.

    The name may end with ``/cartesian`` (six d functions) and ``/density-fitting``; see `KohnSham`.
    """

    #: In the order in which they are recorded.
    WORDS: ClassVar[tuple[str, ...]] = ("cartesian", "density-fitting")

    @classmethod
    def parse(cls, name: str, charge: int, multiplicity: int) -> KohnShamMethod | None:
        """The method of a name in lower case; None if it has not the form of one.

        Raises:
            LabelError: Words behind the basis that are not among `WORDS`.
        """
        functional, *others = name.split("/")
        if not functional or not others or not others[0]:
            return None
        for word in others[1:]:
            if word not in cls.WORDS:
                raise LabelError(f"{name}: {word!r} behind FUNCTIONAL/BASIS; expected {' or '.join(cls.WORDS)}")
        words = [word for word in cls.WORDS if word in others[1:]]
        return cls("/".join([functional, others[0], *words]), charge, multiplicity)

    @property
    def functional(self) -> str:
        """Name of the functional in PySCF."""
        return self.name.split("/")[0]

    @property
    def basis(self) -> str:
        """Name of the basis set in PySCF."""
        return self.name.split("/")[1]

    def calculator(self) -> BaseCalculator:
        from ponita_ff.labels.kohn_sham import KohnSham

        assert self.charge is not None and self.multiplicity is not None
        cartesian, fitting = (word in self.name.split("/")[2:] for word in self.WORDS)
        return KohnSham(
            self.functional,
            self.basis,
            self.charge,
            self.multiplicity,
            cartesian=cartesian,
            density_fitting=fitting,
        )

    def program(self) -> str:
        return f"PySCF {_version('pyscf')}"

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        _require_package("pyscf", self.name)
        from ponita_ff.labels.kohn_sham import basis_problem, functional_problem

        problem = functional_problem(self.functional)
        if problem:
            raise LabelError(f"--method {self.name}: {problem}")
        checked: set[int] = set()
        for source, atoms in frames:
            if atoms.pbc.any():
                raise LabelError(
                    f"{source}: periodic, but {self.name} labels molecules only; use gfn2-xtb or another calculator "
                    "for crystals, or remove the frame's periodicity if it is a molecule"
                )
            for index, number in enumerate(atoms.numbers):
                problem = None if number in checked else basis_problem(self.basis, chemical_symbols[number])
                if problem:
                    raise LabelError(f"{source}: atom {index} is {chemical_symbols[number]}: {problem}")
                checked.add(number)
            _check_electrons(self, source, atoms, int(atoms.numbers.sum()))


@dataclass(frozen=True)
class _Network(Method):
    """A network for neutral closed-shell molecules of some elements."""

    elements: ClassVar[tuple[str, ...]]
    package: ClassVar[str]

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        _require_package(self.package, self.name)
        if self.charge or self.multiplicity != 1:
            raise LabelError(
                f"{self.name} is for neutral closed-shell molecules, not for charge {self.charge} and multiplicity "
                f"{self.multiplicity}; use gfn2-xtb or FUNCTIONAL/BASIS for these"
            )
        for source, atoms in frames:
            if atoms.pbc.any():
                raise LabelError(
                    f"{source}: periodic, but {self.name} labels molecules only; remove the frame's periodicity if it "
                    "is a molecule"
                )
            unknown = np.flatnonzero(~np.isin(atoms.numbers, [atomic_numbers[symbol] for symbol in self.elements]))
            if unknown.size:
                raise LabelError(
                    f"{source}: atom {unknown[0]} is {atoms.symbols[unknown[0]]}; {self.name} knows "
                    f"{', '.join(self.elements)} only"
                )
            _check_electrons(self, source, atoms, int(atoms.numbers.sum()))


@dataclass(frozen=True)
class AniMethod(_Network):
    """ANI-2x by torchani, an ensemble of eight networks.

    Attributes:
        weights: Absolute path of a folder of weights in NeuroChem's format; None: what torchani downloads.
        sha256: Of the files in the folder.
    """

    elements = ani.ELEMENTS
    package = "torchani"
    batch_atoms = 2000  # a GB of memory
    ensemble = True

    weights: str | None = None
    sha256: str = ""

    @classmethod
    def of(cls, name: str, charge: int, multiplicity: int, weights: str | None = None) -> AniMethod:
        """The method with the weights of a folder.

        Raises:
            LabelError: A file is missing there.
        """
        if weights is None:
            return cls(name, charge, multiplicity)
        folder = str(Path(weights).expanduser().absolute())
        try:
            return cls(name, charge, multiplicity, folder, ani.files_sha256(folder))
        except OSError as error:
            raise LabelError(
                f"--weights {weights}: not a folder of ANI-2x's weights in NeuroChem's format ({error})"
            ) from None

    def _networks(self) -> ani.AniNetworks:
        return ani.load(self.weights, self.sha256)

    def calculator(self) -> BaseCalculator:
        return ani.Ani(self._networks())

    def compute(self, frames: Sequence[Atoms]) -> list[Labels]:
        program = self.program()
        return [of_ensemble(energies, forces, program) for energies, forces in self._networks().members(frames)]

    def program(self) -> str:
        return f"torchani {_version('torchani')} (weights {self.weights_sha256()[0]})"

    def weights_sha256(self) -> tuple[str, ...]:
        return (self.sha256 or self._networks().sha256,)

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        super().check(frames)
        if self.weights is None:
            try:
                self._networks()
            except Exception as error:  # whatever its way of downloading raises
                raise LabelError(
                    f"torchani cannot download the weights of {self.name} ({type(error).__name__}: {error}); give a "
                    "folder of them, --weights FOLDER"
                ) from error


@dataclass(frozen=True)
class So3lrMethod(_Network):
    """SO3LR by so3krates-torch; its energies are relative, no totals."""

    elements = so3lr.ELEMENTS
    package = "so3krates_torch"

    def calculator(self) -> BaseCalculator:
        return so3lr.calculator()

    def program(self) -> str:
        return f"so3krates-torch {_version('so3krates_torch')}"


@dataclass(frozen=True)
class CalculatorMethod(Method):
    """Any ASE calculator; charge and spin are set in the calculator itself.

    Attributes:
        factory: Makes a new calculator; must be importable in the worker processes.
        module: Module of the factory; the version of its package is recorded with the labels.
    """

    factory: Factory | None = None
    module: str = ""

    def calculator(self) -> BaseCalculator:
        assert self.factory is not None
        return self.factory()

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        """No check: the capabilities of the calculator are not known."""

    def program(self) -> str:
        package = self.module.partition(".")[0]
        return f"{package} {_version(package)}"


@cache  # the look-up reads the metadata of all packages, which takes longer than a small frame
def _version(package: str) -> str:
    try:
        return version(packages_distributions().get(package, [package])[0])
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "(no version)"))


def find_method(
    method: str | Factory | Method,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    name: str | None = None,
) -> Method:
    """The method of a given name or calculator factory.

    Args:
        method: ``gfn2-xtb``, ``gfn1-xtb`` or ``ipea1-xtb``; ``functional/basis``, e.g. ``pbe/def2-svp``, or
            ``functional/basis/cartesian/density-fitting``; ``ani-2x`` or ``ani-2x{weights: FOLDER}``; ``so3lr``; the
            Python path of an ASE calculator, e.g. ``ase.calculators.emt:EMT``; a factory, which makes a calculator; or
            a method of your own.
        charge: Charge of every frame in elementary charges; None is 0.
        multiplicity: 2S + 1 of every frame; None is 1.
        name: Name of the method to record with the labels, for a factory; None: the name of the factory.

    Raises:
        LabelError: An unknown method; a multiplicity below 1; charge, multiplicity, a name or arguments for a method
            that takes none; a factory without a name; a folder without weights.
    """
    if multiplicity is not None and multiplicity < 1:
        raise LabelError(f"--multiplicity {multiplicity}: expected 2S + 1, hence at least 1")
    if name is not None and not name.isprintable():
        raise LabelError(f"the name {name!r} must be one line of printable characters")
    if isinstance(method, Method):
        if (charge, multiplicity, name) != (None, None, None):
            raise LabelError(f"{method.name}: charge, multiplicity and name are in the method itself")
        return method
    if callable(method):
        found = CalculatorMethod(name or _name(method), factory=method, module=_module(method))
        return _refuse_spin(found, charge, multiplicity)
    if name is not None:
        raise LabelError(f"a name ({name!r}) is for calculators made by a function; {method} already has one")
    path = PythonPath.parse(method)
    if path is not None:
        return _refuse_spin(CalculatorMethod(method, factory=path.calculator, module=path.module), charge, multiplicity)
    named, options = split_arguments(method)
    folded = named.lower()
    spin = (charge or 0, multiplicity or 1)
    if folded in _NETWORKS:
        make, names = _NETWORKS[folded]
        return make(folded, *spin, **_arguments(method, options, names))
    known = TightBinding(folded, *spin) if folded in _TIGHT_BINDING else KohnShamMethod.parse(folded, *spin)
    if known is None:
        raise LabelError(
            f"unknown method {method!r}; expected {', '.join(_TIGHT_BINDING)} (tblite), FUNCTIONAL/BASIS such as "
            f"pbe/def2-svp (PySCF), {', '.join(_NETWORKS)}, or the Python path of an ASE calculator such as "
            "ase.calculators.emt:EMT"
        )
    _arguments(method, options, ())
    return known


#: Networks by name: what makes them, and the names of their arguments.
_NETWORKS: dict[str, tuple[Callable[..., Method], tuple[str, ...]]] = {
    "ani-2x": (AniMethod.of, ("weights",)),
    "so3lr": (So3lrMethod, ()),
}


def _arguments(method: str, options: str | None, names: Sequence[str]) -> dict[str, str]:
    """The arguments of a method.

    Raises:
        LabelError: Arguments of other names than these, or that are no texts.
    """
    try:
        found = keyword_arguments(options, method)
    except PythonPathError as error:
        raise LabelError(str(error)) from None
    expected = f"expected {', '.join(names)}" if names else "it takes no arguments"
    for name, value in found.items():
        if name not in names:
            raise LabelError(f"{method}: unknown argument {name!r}; {expected}")
        if not isinstance(value, str):
            raise LabelError(
                f"{method}: {name} is {value!r}; expected a text, in quotes if it looks like something else"
            )
    return found


def with_weights(method: str, folder: Path) -> str:
    """A method by name with a folder of weights as its argument.

    Raises:
        LabelError: It has arguments already.
    """
    name, options = split_arguments(method)
    if options is not None:
        raise LabelError(f"--weights {folder}: --method {method} has arguments already; give one of both")
    return f"{name}{{weights: {json.dumps(str(folder), ensure_ascii=False)}}}"


def _refuse_spin(method: CalculatorMethod, charge: int | None, multiplicity: int | None) -> CalculatorMethod:
    if charge is not None or multiplicity is not None:
        raise LabelError(
            f"{method.name}: --charge and --multiplicity are for methods of tblite and PySCF; set them in the "
            "calculator itself, e.g. package.module:Name{charge: 1}"
        )
    return method


def _module(factory: Factory) -> str:
    return _module(factory.func) if isinstance(factory, partial) else str(getattr(factory, "__module__", ""))


def _name(factory: Factory) -> str:
    """``module:name`` and arguments, if any; the same in every run, since a journal records it."""
    if isinstance(factory, partial):
        arguments = [*factory.args, factory.keywords] if factory.args else factory.keywords
        with contextlib.suppress(yaml.YAMLError):
            text = yaml.safe_dump(arguments, default_flow_style=True, width=float("inf")).strip()
            return f"{_name(factory.func)}{text}"
    name = getattr(factory, "__qualname__", "<none>")
    if "<" in name:
        raise LabelError(f"{factory} has no name that is the same in every run; give label_frames a name for it")
    return f"{factory.__module__}:{name}"


def _require_package(package: str, method: str) -> None:
    if find_spec(package) is None:
        raise LabelError(f"{method} needs {package}, which is not installed: pip install {package}")


def _check_electrons(method: Method, source: str, atoms: Atoms, protons: int) -> None:
    assert method.charge is not None and method.multiplicity is not None
    for key, value in (("charge", method.charge), ("multiplicity", method.multiplicity)):
        if atoms.info.get(key, value) != value:
            raise LabelError(
                f"{source}: the frame says {key}={atoms.info[key]}, but --{key} is {value}; label frames of one {key} "
                "at a time"
            )
    electrons, unpaired = protons - method.charge, method.multiplicity - 1
    if electrons < 1:
        raise LabelError(f"{source}: charge {method.charge} leaves {electrons} electrons; give another --charge")
    if unpaired > electrons or (electrons - unpaired) % 2:
        expected = "an even one" if electrons % 2 else "an odd one"
        raise LabelError(
            f"{source}: {electrons} electrons (charge {method.charge}) cannot have multiplicity {method.multiplicity}; "
            f"give {expected} of at most {electrons + 1} with --multiplicity, or another --charge"
        )
