"""Methods that calculate labels, by name: small picklable objects that make a calculator in a worker process.

Label programs are imported only when they are used.
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

import numpy as np
import yaml
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import atomic_numbers, chemical_symbols

from ponita_ff.python_path import PythonPath

__all__ = ["CalculatorMethod", "Factory", "KohnShamMethod", "LabelError", "Method", "TightBinding", "find_method"]

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
    """

    name: str
    charge: int | None = None
    multiplicity: int | None = None

    @abstractmethod
    def calculator(self) -> BaseCalculator:
        """A new calculator; one is made per frame, so that labels do not depend on earlier frames."""

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
    """A density functional in a Gaussian basis, ``functional/basis``, by PySCF; molecules only."""

    @property
    def functional(self) -> str:
        """Name of the functional in PySCF."""
        return self.name.partition("/")[0]

    @property
    def basis(self) -> str:
        """Name of the basis set in PySCF."""
        return self.name.partition("/")[2]

    def calculator(self) -> BaseCalculator:
        from ponita_ff.labels.kohn_sham import KohnSham

        assert self.charge is not None and self.multiplicity is not None
        return KohnSham(self.functional, self.basis, self.charge, self.multiplicity)

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
    method: str | Factory,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    name: str | None = None,
) -> Method:
    """The method of a given name or calculator factory.

    Args:
        method: ``gfn2-xtb``, ``gfn1-xtb`` or ``ipea1-xtb``; ``functional/basis``, e.g. ``pbe/def2-svp``; the Python
            path of an ASE calculator, e.g. ``ase.calculators.emt:EMT``; or a factory, which makes a calculator.
        charge: Charge of every frame in elementary charges; None is 0.
        multiplicity: 2S + 1 of every frame; None is 1.
        name: Name of the method to record with the labels, for a factory; None: the name of the factory.

    Raises:
        LabelError: An unknown method; a multiplicity below 1; charge, multiplicity or a name for a method that takes
            none; a factory without a name.
    """
    if multiplicity is not None and multiplicity < 1:
        raise LabelError(f"--multiplicity {multiplicity}: expected 2S + 1, hence at least 1")
    if name is not None and not name.isprintable():
        raise LabelError(f"the name {name!r} must be one line of printable characters")
    if callable(method):
        found = CalculatorMethod(name or _name(method), factory=method, module=_module(method))
        return _refuse_spin(found, charge, multiplicity)
    if name is not None:
        raise LabelError(f"a name ({name!r}) is for calculators made by a function; {method} already has one")
    path = PythonPath.parse(method)
    if path is not None:
        return _refuse_spin(CalculatorMethod(method, factory=path.calculator, module=path.module), charge, multiplicity)
    folded = method.strip().lower()
    spin = (charge or 0, multiplicity or 1)
    if folded in _TIGHT_BINDING:
        return TightBinding(folded, *spin)
    functional, sign, basis = folded.partition("/")
    if sign and functional and basis:
        return KohnShamMethod(folded, *spin)
    raise LabelError(
        f"unknown method {method!r}; expected {', '.join(_TIGHT_BINDING)} (tblite), FUNCTIONAL/BASIS such as "
        "pbe/def2-svp (PySCF), or the Python path of an ASE calculator such as ase.calculators.emt:EMT"
    )


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
