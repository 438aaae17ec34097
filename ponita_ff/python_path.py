"""ASE calculators given by a Python path on the command line, e.g. ``ase.calculators.emt:EMT``."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from ase.calculators.calculator import BaseCalculator, Calculator

__all__ = ["PythonPath", "PythonPathError", "keyword_arguments", "split_arguments"]

#: ``package.module:Name``, followed by an optional YAML mapping of keyword arguments.
_PATTERN = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?P<options>\{.*\})?")


#: A name, followed by the same.
_WITH_ARGUMENTS = re.compile(r"(?P<name>[^{}]*?)\s*(?P<options>\{.*\})")


class PythonPathError(ValueError):
    """A Python path that does not give a calculator; the message repeats it and gives the reason."""


@dataclass(frozen=True)
class PythonPath:
    """The Python path of a class or function that returns a calculator when it is called.

    Attributes:
        text: The whole path, e.g. ``ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}``.
        module: The module, e.g. ``ase.calculators.lj``.
        name: The name in the module, e.g. ``LennardJones``.
        options: Keyword arguments as a YAML mapping, e.g. ``{sigma: 3.4, epsilon: 0.01}``, or None.
    """

    text: str
    module: str
    name: str
    options: str | None

    @classmethod
    def parse(cls, text: str) -> PythonPath | None:
        """Parse a Python path; None if ``text`` is not one, or is the name of an existing file."""
        match = _PATTERN.fullmatch(text)
        if match is None or Path(text).exists():
            return None
        return cls(text, match["module"], match["name"], match["options"])

    def calculator(self) -> Calculator:
        """Make a new calculator.

        Raises:
            PythonPathError: There is no such module or name, the options are not a mapping, or the call failed or
                returned something else than a calculator.
        """
        try:
            factory = getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            raise PythonPathError(
                f"cannot find {self.text}: {error}; expected package.module:Name, e.g. ase.calculators.emt:EMT"
            ) from None
        keywords = keyword_arguments(self.options, self.text)
        try:
            calculator = factory(**keywords)
        except Exception as error:  # a calculator may raise anything
            raise PythonPathError(f"cannot make {self.text}: {type(error).__name__}: {error}") from error
        if not isinstance(calculator, BaseCalculator):
            raise PythonPathError(
                f"{self.text} returns an object of type {type(calculator).__name__}, expected an ASE calculator"
            )
        return cast(Calculator, calculator)


def split_arguments(text: str) -> tuple[str, str | None]:
    """A name and its keyword arguments, or None: ``ani-2x`` and ``{weights: here}`` of ``ani-2x{weights: here}``."""
    match = _WITH_ARGUMENTS.fullmatch(text.strip())
    return (text.strip(), None) if match is None else (match["name"], match["options"])


def keyword_arguments(options: str | None, text: str) -> dict[str, Any]:
    """Read keyword arguments.

    Args:
        options: A YAML mapping, or None for no arguments.
        text: What they belong to, for the message.

    Raises:
        PythonPathError: They are no mapping of names.
    """
    try:
        found = yaml.safe_load(options) if options else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise PythonPathError(f"{text}: {options} is not a mapping of keyword arguments, e.g. {{sigma: 3.4}}")
    return found
