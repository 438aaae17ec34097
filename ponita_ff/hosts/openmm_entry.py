"""What openmmml loads whenever it is imported, whatever potential is then used: nothing else is loaded here.

Not even openmmml, which may be half imported itself, because something else of this package has asked for it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PonitaImplFactory"]


class PonitaImplFactory:
    """Makes the potential that ``MLPotential("ponita", …)`` holds: openmmml's ``MLPotentialImplFactory``."""

    def createImpl(self, name: str, **args: Any) -> Any:
        """The potential that ``MLPotential("ponita", **args)`` holds.

        Args:
            name: ``"ponita"``.
            args: ``potential`` (a shipped name, a file, a ``Potential``, or a list of these for a committee) and
                options of :class:`ponita_ff.calculator.PonitaCalculator`: device, dtype, calibration, strict, …

        Raises:
            TypeError: Without ``potential``, or for a misspelt option.
            FileNotFoundError, PotentialFileError, ValueError: As the calculator raises them.
        """
        from ponita_ff.calculator import PonitaCalculator
        from ponita_ff.hosts.openmm import PonitaImpl

        if "potential" not in args:
            raise TypeError(f"say which potential: MLPotential({name!r}, potential='ethanol-rmd17'), or a file")
        return PonitaImpl(PonitaCalculator(**args))
