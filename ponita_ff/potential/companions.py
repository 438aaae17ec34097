"""The committee that lies beside a potential's file: its companions, and the calibration of their spread."""

from __future__ import annotations

from pathlib import Path

from ponita_ff.files import why_not_a_file
from ponita_ff.potential.header import find_potential

__all__ = ["CALIBRATION_FILE", "COMMITTEE", "committee_members", "companions_of", "shipped_calibration"]

#: After the name of a potential: it and its companions, as a committee.
COMMITTEE = "@committee"

#: Beside the file of a potential: the other members of its committee, and the calibration of all of them.
_COMPANIONS, CALIBRATION_FILE = "companion-*.safetensors", "calibration.json"


def companions_of(file: Path) -> list[Path]:
    """Files of the other members of the committee that a potential's file was shipped with; empty for most."""
    return [path for path in sorted(file.parent.glob(_COMPANIONS)) if path != file]


def committee_members(text: str) -> list[str]:
    """Names or files of the potentials in a text.

    Args:
        text: One potential, several joined by commas, or one with ``@committee`` behind it, which is the potential with
            its companions.

    Raises:
        FileNotFoundError: For ``@committee`` behind what is no potential.
        ValueError: For ``@committee`` behind a potential without companions.
    """
    if why_not_a_file(Path(text)) is None:
        return [text]
    names = [name.strip() for name in text.split(",")]
    return [member for name in names for member in (_with_companions(name) if name.endswith(COMMITTEE) else [name])]


def _with_companions(name: str) -> list[str]:
    file = find_potential(name.removesuffix(COMMITTEE))
    companions = companions_of(file)
    if not companions:
        raise ValueError(
            f"{name}: this potential has no companions; give the members of a committee joined by commas instead"
        )
    return [str(path) for path in (file, *companions)]


def shipped_calibration(text: str) -> Path | None:
    """The calibration of ``NAME@committee``; None for anything else, and where there is none."""
    if not text.endswith(COMMITTEE) or why_not_a_file(Path(text)) is None or "," in text:
        return None
    path = find_potential(text.removesuffix(COMMITTEE)).with_name(CALIBRATION_FILE)
    return path if path.is_file() else None
