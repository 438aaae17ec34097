"""Model cards: what is measured, and the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.io import read
from click.testing import CliRunner
from matplotlib.figure import Figure

from ponita_ff import load_potential
from ponita_ff.potential.file import read_header, save_potential

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "potentials").glob("*/card.json"))


@pytest.fixture(scope="module")
def model_card(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("model_card")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_cards_are_what_the_script_writes(model_card: ModuleType, folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    text = model_card.render(folder, read_header(folder / "potential.safetensors"), card)
    assert text == (folder / "README.md").read_text(encoding="utf-8")


def test_a_card_from_nothing(
    model_card: ModuleType, tmp_path: Path, tiny_potential_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: savefig(self, path, **options | {"dpi": 20}))
    monkeypatch.setattr(model_card, "ROTATION_SETTINGS", ((None, None), (None, 2)))
    monkeypatch.setattr(model_card, "NUM_ROTATIONS", 3)
    folder = tmp_path / "tiny"
    save_potential(load_potential(tiny_potential_path), folder / "potential.safetensors", {"name": "tiny"})
    arguments = [str(folder), "--geometry", "H2O", "--nve-ps", "0.5", "--nvt-ps", "0.01"]
    result = CliRunner().invoke(model_card.main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["formula"] == "H2O" and len(card["frequencies_invcm"]) == 9
    assert card["forces_against_central_differences_eV_per_A"] < 1e-5
    assert [row["rotations"] for row in card["rotations"]] == [1, 2]
    assert card["nve"]["picoseconds"] == pytest.approx(0.5) and card["nvt"]["temperature_K"] == 500.0
    atoms = read(folder / "structure.xyz")
    assert np.abs(load_potential(folder / "potential.safetensors").evaluate([atoms]).forces[0]).max() < 2e-3
    assert f"{card['rotations'][0]['peak_to_peak_meV']:.2f}" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "nve.png").read_bytes().startswith(b"\x89PNG")
    # With --only the other parts stay.
    result = CliRunner().invoke(model_card.main, [str(folder), "--nvt-ps", "0.02", "--only", "nvt"])
    assert result.exit_code == 0, (result.output, result.exception)
    again = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert again["nvt"]["picoseconds"] == pytest.approx(0.02) and again["nve"] == card["nve"]
