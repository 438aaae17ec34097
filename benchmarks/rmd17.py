"""The shipped rMD17 potentials beside published figures: force and energy errors on the official test frames.

    python benchmarks/rmd17.py                   # as their files record them from the end of their training
    python benchmarks/rmd17.py --data FOLDER     # measured again, on FOLDER/rmd17_<molecule>_test_01.npz
    python benchmarks/rmd17.py --beside aspirin=run/potential.safetensors    # a potential that is not shipped, as well

Writes ``results/rmd17.json`` and ``results/rmd17.md``. Three ways to train are kept apart: from random weights on the
molecule alone, as published; from a base that saw other molecules; and with cheap labels of the molecule learned first
(``ponita-ff finetune --teacher``). What was measured of a way before stays in ``rmd17.json`` until there is another
potential of this way. Published: models trained on 950 frames, validated on 50, tested on 1,000 of split 01. PONITA:
arXiv:2310.02970, MACE: arXiv:2206.07697, Allegro: arXiv:2204.05249.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pages import read_results, table, write_results

from ponita_ff.data import file_sha256, read_frames
from ponita_ff.files import write_text
from ponita_ff.potential.file import find_potential, load_potential, read_header
from ponita_ff.training.evaluate import evaluate

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

#: Force MAE in meV/Å and energy MAE in meV.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "aspirin": {"PONITA": (5.8, 1.7), "MACE": (6.6, 2.2), "Allegro": (7.3, 2.3)},
    "azobenzene": {"PONITA": (2.3, 0.7), "MACE": (3.0, 1.2), "Allegro": (2.6, 1.2)},
    "benzene": {"PONITA": (0.3, 0.17), "MACE": (0.3, 0.4), "Allegro": (0.2, 0.3)},
    "ethanol": {"PONITA": (2.5, 0.4), "MACE": (2.1, 0.4), "Allegro": (2.1, 0.4)},
    "malonaldehyde": {"PONITA": (4.0, 0.6), "MACE": (4.1, 0.8), "Allegro": (3.6, 0.6)},
    "naphthalene": {"PONITA": (1.3, 0.3), "MACE": (1.6, 0.5), "Allegro": (0.9, 0.2)},
    "paracetamol": {"PONITA": (4.3, 1.1), "MACE": (4.8, 1.3), "Allegro": (4.9, 1.5)},
    "salicylic": {"PONITA": (3.3, 0.7), "MACE": (3.1, 0.9), "Allegro": (2.9, 0.9)},
    "toluene": {"PONITA": (1.3, 0.3), "MACE": (1.5, 0.5), "Allegro": (1.8, 0.4)},
    "uracil": {"PONITA": (2.4, 0.4), "MACE": (2.1, 0.5), "Allegro": (1.8, 0.6)},
}

#: Ways of training, and what the page calls them.
WAYS = {
    "random": "from random weights",
    "base": "from a base of other molecules",
    "taught": "cheap labels of the molecule first",
}


def way_of(header: dict[str, Any], name: str) -> str:
    """Return the way in which a potential was trained, a key of ``WAYS``, from its record."""
    stage: dict[str, Any] | None = header["metadata"]
    names = set()
    while stage:
        if any("forces_taught" in errors for errors in stage.get("finetuning") or []):
            return "taught"
        names.add(stage.get("name"))
        stage = stage.get("started_from")
    return "base" if names - {None, name} else "random"


def training_hours(header: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return hours, grid and hardware of every training that led to a potential, in order of time."""
    stages: list[dict[str, Any]] = []
    stage: dict[str, Any] | None = header["metadata"]
    while stage:
        training = stage.get("training")
        if training:
            description = f"{stage.get('num_ori', header['network']['num_ori'])} orientations"
            if stage.get("name") not in (None, name):
                description = f"{stage['name']}, {description}"
            stages.insert(
                0, {"stage": description, "hours": training["seconds"] / 3600, "hardware": training["hardware"]}
            )
        stage = stage.get("started_from")
    return stages


def measured_errors(path: Path, molecule: str, folder: Path) -> dict[str, float]:
    """Measure the errors on the test frames of a folder, which must be those that the potential's file names."""
    data = folder / f"rmd17_{molecule}_test_01.npz"
    expected = read_header(path)["metadata"]["data"]["test_sha256"]
    if file_sha256(data) != expected:
        raise SystemExit(f"{data} is not the file that {path.parent.name} was tested on")
    return evaluate(load_potential(path), read_frames(data), batch_size=50, backend="auto").errors.as_dict()


def row(path: Path, molecule: str, folder: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the way of a potential's training, and its errors and hours."""
    header = read_header(path)
    recorded = header["metadata"].get("errors", {}).get("test")
    if folder is None and recorded is None:
        raise SystemExit(f"{path} records no errors on test frames: train it with data.test, the official file")
    errors = recorded if folder is None else measured_errors(path, molecule, folder)
    name = header["metadata"].get("name", f"{molecule}-rmd17")
    return way_of(header, name), {
        "force_mae": 1e3 * errors["forces_mae"],
        "energy_mae": 1e3 * errors["energy_mae"],
        "frames": errors["frames"],
        "training": training_hours(header, name),
    }


def errors_of(found: dict[str, Any] | None) -> str:
    """Return a cell of force and energy errors."""
    return f"{found['force_mae']:.2f} / {found['energy_mae']:.2f}" if found else ""


def hours_of(found: dict[str, Any]) -> str:
    """Return a cell of the hours of each stage."""
    return " + ".join(f"{stage['hours']:.2f} ({stage['stage']})" for stage in found["training"])


def report(rows: dict[str, dict[str, Any]], command: str) -> str:
    """Return the page."""
    names = list(next(iter(PUBLISHED.values())))
    shipped = []
    for molecule, published in PUBLISHED.items():
        theirs = [f"{force:g} / {energy:g}" for force, energy in published.values()]
        if molecule not in rows:
            shipped.append([molecule, "not shipped", *theirs, "", "", ""])
            continue
        way = rows[molecule]["shipped"]
        found = rows[molecule][way]
        ratio = f"{found['force_mae'] / published['PONITA'][0]:.2f}"
        shipped.append([molecule, errors_of(found), *theirs, ratio, WAYS[way], hours_of(found)])
    each = [[molecule, *(errors_of(found.get(way)) for way in WAYS)] for molecule, found in rows.items()]
    trainings = [stage for found in rows.values() for way in WAYS if way in found for stage in found[way]["training"]]
    head = ["molecule", "this package", *names, "forces, times PONITA's", "trained", "hours of training"]
    hardware = sorted({stage["hardware"] for stage in trainings})
    lines = [
        "# rMD17",
        "",
        f"*Written by `{command}`. Mean absolute errors of forces (meV/Å) / energies (meV) on the 1,000 official test "
        "frames of split 01; 950 frames to train on. Published figures from the papers that the script names.*",
        "",
        *table(head, shipped),
        "",
        "## By the way of training",
        "",
        "From random weights on the molecule's 950 frames alone, as the published models; from a potential that saw",
        "other molecules; or with cheap labels of other frames of the same molecule learned before the 950.",
        "",
        *table(["molecule", *WAYS.values()], each),
        "",
        f"Trained on: {'; '.join(hardware)}. A base that all share is counted in full in every row.",
    ]
    return "\n".join(lines) + "\n"


def pair(text: str) -> tuple[str, Path]:
    """Read MOLECULE=FILE."""
    molecule, _, file = text.partition("=")
    if molecule not in PUBLISHED or not Path(file).is_file():
        raise argparse.ArgumentTypeError(
            f"{text}: expected MOLECULE=FILE, one of {', '.join(PUBLISHED)} and a potential"
        )
    return molecule, Path(file)


def main() -> None:
    """Collect the figures, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the test frames; without it, what the files record")
    parser.add_argument(
        "--beside",
        type=pair,
        action="append",
        default=[],
        metavar="MOLECULE=FILE",
        help="a potential that is not shipped",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = read_results(arguments.out / "rmd17.json")
    for molecule, file in arguments.beside:
        way, found = row(file, molecule, arguments.data)
        rows.setdefault(molecule, {})[way] = found
    for molecule in PUBLISHED:
        try:
            way, found = row(find_potential(f"{molecule}-rmd17"), molecule, arguments.data)
        except FileNotFoundError as error:
            print(f"{molecule}: {error}")
            rows.pop(molecule, None)
        else:
            rows[molecule] = rows.get(molecule, {}) | {"shipped": way, way: found}
    if not rows:
        raise SystemExit("no rMD17 potential is shipped")
    rows = {molecule: rows[molecule] for molecule in PUBLISHED if molecule in rows}
    text = report(rows, "python benchmarks/rmd17.py" + (" --data FOLDER" if arguments.data else ""))
    write_results(arguments.out / "rmd17.json", rows)
    write_text(arguments.out / "rmd17.md", text)
    print(text)


if __name__ == "__main__":
    main()
