"""Add statistics of the training data to shipped potentials that were trained before there were any.

    python benchmarks/training_domains.py RMD17 --methanol train_eth_meth.xyz [potentials/ethanol-rmd17 ...]

RMD17 is a folder with the files that the potentials' headers name; their SHA-256 are compared. Of train_eth_meth.xyz
(BOTNet datasets) the frames with config_type=methanol count, which organic-rmd17 was trained on as well. The weights
of a potential stay as they are; hashes of the single files are added to its metadata, for ``ponita-ff evaluate``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from ase.io import read

from ponita_ff.data import DataError, Frame, InMemoryFrames, JoinedFrames, file_sha256, files_sha256, read_frames
from ponita_ff.data.splits import joined_split, rmd17_split
from ponita_ff.files import write_text
from ponita_ff.potential.file import load_potential, read_header, save_potential
from ponita_ff.training.run import training_domain

FILE = "potential.safetensors"


def training_frames(header: dict, folder: Path) -> tuple[Sequence[Frame], list[str]]:
    """The frames that ``metadata["data"]`` of a potential says it was trained on, and the hashes of their files.

    Raises:
        DataError: For a file with another hash.
    """
    paths = [folder / name for name in header["file"].split(", ")]
    if files_sha256(paths) != header["sha256"]:
        raise DataError(f"{folder}: the files {header['file']} are not those that the potential was trained on")
    parts = [read_frames(path) for path in paths]
    split = joined_split([rmd17_split(len(part), header["split_seed"]) for part in parts])
    return split.apply(JoinedFrames(parts))[0], [file_sha256(path) for path in paths]


def methanol_frames(path: Path) -> Sequence[Frame]:
    """The frames of methanol in a file of ethanol and methanol."""
    chosen = [atoms for atoms in read(path, ":") if atoms.info["config_type"] == "methanol"]
    return InMemoryFrames(
        Frame(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=atoms.positions,
            energy=atoms.get_potential_energy(),
            forces=atoms.get_forces(),
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            source=f"{path} frame {index}",
        )
        for index, atoms in enumerate(chosen)
    )


def _follow(path: Path, before: str, now: str) -> None:
    """Put the new hash into a card: hashes include the names of weights, and version 3 of the files changed some."""
    if path.exists():
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["weights_sha256"] == before:
            write_text(path, json.dumps({**card, "weights_sha256": now}, indent=2) + "\n")


@click.command()
@click.argument("rmd17", type=click.Path(path_type=Path, exists=True))
@click.argument("folders", type=click.Path(path_type=Path, exists=True), nargs=-1)
@click.option("--methanol", type=click.Path(path_type=Path, exists=True), help="train_eth_meth.xyz")
def main(rmd17: Path, folders: tuple[Path, ...], methanol: Path | None) -> None:
    """See the module's docstring."""
    for folder in folders or sorted(path.parent for path in Path("potentials").glob(f"*/{FILE}")):
        potential = load_potential(folder / FILE)
        data = potential.metadata["data"]
        frames, hashes = training_frames(data, rmd17)
        number = data.get("further", data.get("extra_train", 0))
        if number:
            if methanol is None:
                raise click.UsageError(f"{folder} was trained on methanol as well: give --methanol")
            further = methanol_frames(methanol)
            if len(further) != number:
                raise DataError(f"{methanol}: {len(further)} frames of methanol, but {folder} was trained on {number}")
            frames = JoinedFrames([frames, further])
        if len(frames) != data["train"]:
            raise DataError(f"{folder} was trained on {data['train']} frames, and {len(frames)} were found")
        potential.domain = training_domain(potential, frames)
        data["files_sha256"] = hashes
        before = read_header(folder / FILE)["weights_sha256"]
        save_potential(potential, folder / FILE)
        _follow(folder / "card.json", before, read_header(folder / FILE)["weights_sha256"])
        size = (folder / FILE).stat().st_size
        click.echo(f"{folder.name}: {potential.domain.frames} frames, the file now has {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
