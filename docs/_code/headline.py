"""The headline figures of README, taken from the pages that scripts wrote, and put between two comments.

python docs/_code/headline.py
"""

from __future__ import annotations

import re

from repository import ROOT
from tables import cell

from ponita_ff.files import write_text

_RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def _first(text: str) -> str:
    """The number that a cell begins with."""
    return text.split(" ")[0].split("/")[0].strip()


def _speed(form: str) -> str:
    """Milliseconds for ethanol and for aspirin."""
    sections = ("Ethanol (9 atoms)", "Aspirin (21 atoms)")
    return ", ".join(_first(cell(_RESULTS / "speed.md", form, "ms", section)) for section in sections)


def _last(section: str) -> str:
    return cell(_RESULTS / "equal_time.md", "60", "force MAE", section)


def rows() -> list[tuple[str, str, str]]:
    """What was measured, the figures, and the page with the name of its script."""
    rmd17, general = (_RESULTS / name for name in ("rmd17.md", "general.md"))
    taught = "aspirin, 50 frames, gfn2-xtb"
    return [
        (
            "energy and forces of ethanol, aspirin on two CPU cores",
            f"{_speed('default form, native')} ms; authors' form in eager torch {_speed('published form, eager')}; "
            f"MACE-OFF23 (small) {_speed('MACE-OFF23 small')}; TensorNet {_speed('TensorNet')}",
            "speed",
        ),
        (
            "aspirin (rMD17), 60 minutes of training on one core",
            f"force MAE {_last('aspirin, ponita_ff')} meV/Å; SchNetPack's PaiNN {_last('aspirin, painn')}",
            "equal_time",
        ),
        (
            "aspirin, 50 labelled frames",
            f"fine-tuned after 2,000 frames of GFN2-xTB {cell(general, taught, 'after the labels')} meV/Å; MACE from "
            f"random weights, as published, {cell(general, taught, 'MACE')}",
            "general",
        ),
        (
            "ethanol, aspirin (rMD17), shipped potentials",
            f"{_first(cell(rmd17, 'ethanol', 'this'))}, {_first(cell(rmd17, 'aspirin', 'this'))} meV/Å; "
            f"published PONITA {_first(cell(rmd17, 'ethanol', 'PONITA'))}, {_first(cell(rmd17, 'aspirin', 'PONITA'))}",
            "rmd17",
        ),
        (
            "3BPA, not trained on, general potential",
            f"{cell(general, '3BPA', 'organic-wb97x')} meV/Å; "
            f"ANI-2x {cell(general, '3BPA', 'ani-2x')}, GFN2-xTB {cell(general, '3BPA', 'gfn2-xtb')}",
            "general",
        ),
    ]


def block() -> str:
    """The table in Markdown."""
    lines = ["| measured | result | page, script |", "| --- | --- | --- |"]
    lines += [
        f"| {what} | {figures} | [{name}](benchmarks/results/{name}.md), `benchmarks/{name}.py` |"
        for what, figures, name in rows()
    ]
    return "\n".join(lines) + "\n"


def with_figures(text: str) -> str:
    """README with the table as it should be now."""
    assert _BLOCK.search(text), "README has no place for the figures"
    return _BLOCK.sub(lambda match: match[1] + block() + match[2], text)


if __name__ == "__main__":
    path = ROOT / "README.md"
    write_text(path, with_figures(path.read_text(encoding="utf-8")))
