"""ASE calculators by their Python path, as a command line names them: ``ase.calculators.emt:EMT``."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from ase.calculators.calculator import BaseCalculator, Calculator

__all__ = ["PythonPath", "PythonPathError"]

#: ``package.module:Name``, with keyword arguments as a YAML mapping behind it if any.
_PATTERN = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?P<options>\{.*\})?")


class PythonPathError(ValueError):
    """A Python path from which no calculator comes; the text repeats it and says why."""


@dataclass(frozen=True)
class PythonPath:
    """Where something is that makes a calculator when called.

    Attributes:
        text: As typed, e.g. ``ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}``.
        module: E.g. ``ase.calculators.lj``.
        name: E.g. ``LennardJones``.
        options: Its keyword arguments, a mapping in YAML, or None.
    """

    text: str
    module: str
    name: str
    options: str | None

    @classmethod
    def parse(cls, text: str) -> PythonPath | None:
        """A Python path, or None where ``text`` is none, or is the name of a file that exists."""
        match = _PATTERN.fullmatch(text)
        if match is None or Path(text).exists():
            return None
        return cls(text, match["module"], match["name"], match["options"])

    def calculator(self) -> Calculator:
        """A new calculator.

        Raises:
            PythonPathError: There is no such module or name, the options are no mapping, or what was called failed or
                made something else than a calculator.
        """
        try:
            factory = getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            raise PythonPathError(
                f"cannot find {self.text}: {error}; expected package.module:Name, e.g. ase.calculators.emt:EMT"
            ) from None
        try:
            keywords = yaml.safe_load(self.options) if self.options else {}
        except yaml.YAMLError:
            raise PythonPathError(
                f"{self.text}: {self.options} is not a mapping of keyword arguments, e.g. {{sigma: 3.4}}"
            ) from None
        try:
            calculator = factory(**keywords)
        except Exception as error:  # a factory may raise anything
            raise PythonPathError(f"cannot make {self.text}: {type(error).__name__}: {error}") from error
        if not isinstance(calculator, BaseCalculator):
            raise PythonPathError(f"{self.text} makes a {type(calculator).__name__}, which is no calculator of ASE")
        return cast(Calculator, calculator)
