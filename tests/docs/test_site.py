"""What builds the site: links, what is made from code and results, and the check of what was built."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from ponita_ff.cli.config import settings_models
from ponita_ff.cli.group import COMMANDS
from ponita_ff.potential.shipped import list_shipped
from ponita_ff.settings import dotted

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]


def code(name: str) -> ModuleType:
    """A module of ``docs/_code``."""
    return importlib.import_module(name)


# ------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    repository = code("repository")
    for match in repository._LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"].partition("#")[0]
        if target and ":" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {match[0]}"


def test_links_lead_to_the_page_that_is_made_of_a_file() -> None:
    repository = code("repository")
    pages = {"benchmarks/results/speed.md": "benchmarks/speed.md", "potentials/a/README.md": "potentials/a.md"}
    text = "[s](../../benchmarks/results/speed.md#x) ![p](../../gone.png) [c](md.md) [w](https://a.b/c)\n"
    nested = "[![p](../../potentials/a/README.md)<br>a](../../potentials/a/README.md)"
    assert repository.with_site_links(nested, "docs/guides/x.md", pages).count("(../potentials/a.md)") == 2
    found = repository.with_site_links(text, "docs/guides/x.md", pages)
    assert found == "[s](../benchmarks/speed.md#x) p [c](md.md) [w](https://a.b/c)\n"
    card = "[f](../../benchmarks/results/speed.md)\n```\n[f](../../benchmarks/results/speed.md)\n```\n"
    found = repository.with_site_links(card, "potentials/a/README.md", pages)
    assert found == "[f](../benchmarks/speed.md)\n```\n[f](../../benchmarks/results/speed.md)\n```\n"


def test_broken_links_and_other_hosts_are_found(tmp_path: Path) -> None:
    links = code("links")
    (tmp_path / "other.html").write_text('<h1 id="there">x</h1>', encoding="utf-8")
    (tmp_path / "style.css").write_text("a {background: url(local.png)} @import 'https://c.d/e.css';", encoding="utf-8")
    page = (
        '<a href="other.html#there">fine</a> <a href="https://far.away/">leads there, fetches nothing</a> '
        '<a href="other.html#gone"></a> <a href="missing.html"></a> <img src="missing.png"> <a href="../out.html"></a>'
        '<script src="https://far.away/x.js"></script> <link rel="stylesheet" href="//far.away/x.css">'
    )
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert links.problems(tmp_path) == [
        "index.html: fetches https://far.away/x.js",
        "index.html: fetches //far.away/x.css",
        "index.html: other.html#gone has no place #gone",
        "index.html: missing.html does not exist",
        "index.html: ../out.html leads out of the site",
        "index.html: missing.png does not exist",
        "style.css: fetches https://c.d/e.css",
    ]


# ---------------------------------------------------------------------------- made from the code


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    tables = code("settings_tables")
    for name, model in settings_models().items():
        text = tables.settings_tables(model)
        for field in model.model_fields:
            assert re.search(rf"`{field}`", text), f"{name}: {field}"
    text = tables.settings_tables(settings_models()["train"])
    assert "| `optimiser.batch_size` | `5` | Structures in a batch." in text
    assert "| `data.path` | required |" in text
    assert "one of: random, rmd17" in text


def test_settings_and_options_that_pages_name_exist() -> None:
    """``--set NAME=VALUE`` on any page names a setting; those of a teacher's training have the same names."""
    known = {
        name
        for model in settings_models().values()
        for name in re.findall(r"^\| `([\w.]+)` ", code("settings_tables").settings_tables(model), re.MULTILINE)
    } | set(dotted({"preset": 0, "seed": 0, "name": 0}))
    for page in PAGES:
        for name in re.findall(r"--set (?:teacher\.)?([\w.]+)=", page.read_text(encoding="utf-8")):
            assert name in known, f"{page.name}: {name}"


def test_the_gallery_has_every_potential_with_the_figures_of_its_file() -> None:
    gallery = code("gallery")
    head, *rows = code("tables").tables(gallery.table())[0]
    assert [row[0] for row in rows] == [f"[{p.name}](../potentials/{p.name}/README.md)" for p in list_shipped()]
    for row, potential in zip(rows, list_shipped(), strict=True):
        assert row[head.index("force MAE (meV/Å)")] == f"{1e3 * (potential.force_mae or 0):.2f}"
        assert all(row)
    assert gallery.pictures().count("parity.png") == len(rows)


# ------------------------------------------------------------------------- made from results


def test_cells_of_tables_are_found() -> None:
    tables = code("tables")
    page = ROOT / "benchmarks" / "results" / "rmd17.md"
    assert tables.cell(page, "ethanol", "PONITA") == "2.5 / 0.4"
    with pytest.raises(KeyError, match="no cell 'gold'"):
        tables.cell(page, "gold", "PONITA")
    with pytest.raises(KeyError, match="no section 'Gold'"):
        tables.cell(page, "ethanol", "PONITA", "Gold")
    assert tables.tables("| a | b |\n| --- | --- |\n| 1 | \\| |\n") == [[["a", "b"], ["1", "\\|"]]]


def test_the_headline_figures_of_readme_are_those_of_the_pages() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert code("headline").with_figures(text) == text, "run python docs/_code/headline.py"


def test_readme_is_short_and_names_every_page_of_results_that_it_quotes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    for _, _, page in code("headline").rows():
        assert f"benchmarks/results/{page}.md" in text
        assert (ROOT / "benchmarks" / f"{page}.py").is_file()


# ------------------------------------------------------------------------------------ drawings


@pytest.mark.parametrize("name", ["network", "spaces", "grid"])
def test_drawings_are_the_same_each_time_and_differ_by_scheme(name: str) -> None:
    drawings = code("drawings")
    assert name in drawings.DRAWINGS
    dark = drawings.svg(name, "dark")
    assert dark.startswith("<?xml") and drawings.SCHEMES["dark"].atom in dark
    assert not re.search(r"(href|src)=\"http", dark)
    if name == "grid":
        assert drawings.svg(name, "dark") == dark
        assert drawings.SCHEMES["light"].atom in drawings.svg(name, "light")


# ------------------------------------------------------------------------------- the whole of it


def test_everything_that_pages_ask_for_is_made() -> None:
    source = (ROOT / "docs" / "_code" / "hooks.py").read_text(encoding="utf-8")
    makers = set(re.findall(r'^    "(\w+)": ', source, re.MULTILINE))
    asked = set()
    for page in PAGES:
        for kind, *arguments in (
            m.split() for m in re.findall(r"<!-- made: (.*?) -->", page.read_text(encoding="utf-8"))
        ):
            asked.add(kind)
            if kind == "data":
                values = json.loads((ROOT / "docs" / "data" / f"{arguments[0]}.json").read_text(encoding="utf-8"))
                assert values["symbols"]
            if kind == "table":
                assert code("tables").tables((ROOT / arguments[0]).read_text(encoding="utf-8"))
    assert asked == makers


def test_no_page_is_missing_in_the_navigation() -> None:
    _, _, navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    named = set(re.findall(r"[\w/.-]+\.md", navigation))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}


def test_docstrings_become_markdown_with_an_entry_for_each_argument() -> None:
    pytest.importorskip("griffe")
    text = "As :func:`~ponita_ff.x.train`.\n\nArgs:\n    a, b: Of :class:`P`,\n        more.\n    c: One."
    expected = (
        "As `ponita_ff.x.train`.\n\nArgs:\n    a: Of `P`,\n        more.\n    b: Of `P`,\n        more.\n    c: One."
    )
    assert code("docstrings").as_markdown(text) == expected


def test_every_command_and_option_is_in_the_reference() -> None:
    text = code("commands").reference()
    for name in COMMANDS:
        assert f"\n## {name}\n" in text
    for option in ("--warn-above", "--teacher", "--max-spread", "--march", "--no-replay"):
        assert f"<code>{option.replace('--', '&#45;&#45;').replace('_', '&#95;')}" in text
    assert "ponita-ff audit ethanol-rmd17 --structure CH3CH2OH --quick\n" in text  # an example stays as it is
    assert "Sentinel" not in text and "None" not in text.replace("None for", "")
