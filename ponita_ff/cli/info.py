"""``ponita-ff info``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command

if TYPE_CHECKING:
    from ponita_ff.potential.header import PotentialContent


@click.command("info", cls=Command)
@click.argument("potential")
@click.option("--json", "as_json", is_flag=True, help="Print the whole header as JSON.")
@options.common
def command(potential: str, as_json: bool) -> None:
    """Print the header, the training data and the errors of a potential file."""
    from ponita_ff.potential.header import find_potential, read_content

    path = find_potential(potential)
    content = read_content(path)
    text = json.dumps(content.header, indent=2) if as_json else _describe(path, content)
    click.echo("\n".join(map(_printable, text.split("\n"))))


def _describe(path: Path, content: PotentialContent) -> str:
    from ase.data import chemical_symbols

    from ponita_ff.potential.header import PotentialFileError
    from ponita_ff.settings import SettingsError
    from ponita_ff.training.legacy import rename_metadata

    header = content.header
    try:
        metadata = rename_metadata(header["metadata"])
    except SettingsError as error:
        raise PotentialFileError(f"{path} has metadata that cannot be used: {error}") from None
    network, references = content.config.model_dump(), content.arrays["reference_energies"].tolist()
    lines = [
        f"file              {path} (version {header['version']})",
        f"name              {metadata.get('name', '-')}",
        f"form              {header['form']}, {header['dtype']}",
        f"network           {', '.join(f'{k}={v}' for k, v in network.items() if k not in ('form', 'cutoff'))}",
        f"cutoff            {header['cutoff'] or 'none'}" + (" Å" if header["cutoff"] else ""),
        f"units             {', '.join(f'{k}: {v}' for k, v in header['units'].items())}",
        "reference (eV)    "
        + ", ".join(f"{chemical_symbols[z]} {e:.6f}" for z, e in zip(header["species"], references, strict=True)),
        f"  from            {metadata.get('reference_energies_from', '-')}",
        *(f"data {key:<13}{value}" for key, value in _entries(metadata, "data")),
        *(f"errors {part:<11}{_errors(errors)}" for part, errors in _entries(metadata, "errors")),
        f"made with         {', '.join(f'{k} {v}' for k, v in header['versions'].items())}",
        f"weights SHA-256   {header['weights_sha256']}",
        f"file SHA-256      {header['sha256']} (header and weights)",
    ]
    return "\n".join(line.replace("\n", "\\n") for line in lines)


def _entries(metadata: dict[str, Any], section: str) -> Iterable[tuple[str, Any]]:
    """Entries of a section of the metadata, which anybody may have written in any form."""
    found = metadata.get(section, {})
    return found.items() if isinstance(found, dict) else [("", found)]


def _errors(errors: Any) -> str:
    """Errors on one set of frames, as training writes them; anything else as it is."""
    from ponita_ff.potential.header import fact

    energy, forces = fact(errors, "energy_mae"), fact(errors, "forces_mae")
    if not isinstance(energy, float) or not isinstance(forces, float):
        return str(errors)
    return f"energy MAE {1e3 * energy:.3f} meV, force MAE {1e3 * forces:.3f} meV/Å ({fact(errors, 'frames')} frames)"


def _printable(line: str) -> str:
    """A line whose characters a terminal only shows, and any encoding has a spelling for."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in line)
