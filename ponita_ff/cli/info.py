"""``ponita-ff info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ponita_ff.cli import options
from ponita_ff.cli.group import Command


@click.command("info", cls=Command)
@click.argument("potential")
@click.option("--json", "as_json", is_flag=True, help="Print the whole header as JSON.")
@options.common
def command(potential: str, as_json: bool) -> None:
    """Print the header, the training data and the errors of a potential file."""
    from ponita_ff.potential.file import find_potential, read_header

    path = find_potential(potential)
    header = read_header(path)
    click.echo(json.dumps(header, indent=2) if as_json else _describe(path, header))


def _describe(path: Path, header: dict[str, Any]) -> str:
    from ase.data import chemical_symbols

    from ponita_ff.potential.file import load_potential
    from ponita_ff.training.legacy import rename_metadata

    metadata, network = rename_metadata(header["metadata"]), header["network"]
    references = load_potential(path).reference_energies.tolist()
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
    ]
    for key, value in metadata.get("data", {}).items():
        lines.append(f"data {key:<13}{value}")
    for part, errors in metadata.get("errors", {}).items():
        lines.append(
            f"errors {part:<11}energy MAE {1e3 * errors['energy_mae']:.3f} meV, "
            f"force MAE {1e3 * errors['forces_mae']:.3f} meV/Å ({errors['frames']} frames)"
        )
    lines += [
        f"made with         {', '.join(f'{k} {v}' for k, v in header['versions'].items())}",
        f"weights SHA-256   {header['weights_sha256']}",
        f"file SHA-256      {header['sha256']} (header and weights)",
    ]
    return "\n".join(lines)
