"""What MkDocs asks while it builds the site: pages of the repository, and what is made from the code or from results.

A page of ``docs/`` says where something made goes, by a comment such as ``<!-- made: gallery -->``.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import commands
import drawings
import gallery
import links
import notebooks
import tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ROOT, included, with_site_links
from settings_tables import settings_tables

from ponita_ff.cli.config import settings_models
from ponita_ff.page.template import SCRIPT

_MARK = re.compile(r"<!-- made: ([\w.-]+(?: [\w./()-]+)*) -->")


def _settings(command: str) -> str:
    return settings_tables(settings_models()[command])


def _data(name: str) -> str:
    """Measured numbers, inside the page, so that it also works as a file."""
    values = json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{name}">{text}</script>'


def _drawing(name: str) -> str:
    """A drawing in the colours of both schemes."""
    title = html.escape(drawings.DRAWINGS[name].__doc__ or name, quote=True).split("\n")[0]
    schemes = ("light", "dark")
    return "\n".join(f"![{title}](DOCS/assets/{name}-{scheme}.svg#only-{scheme})" for scheme in schemes)


def _source(name: str) -> str:
    """What the numbers of a page come from."""
    values = json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))
    curves = values.get("curves", [values])
    made_of = ", ".join(f"{one['potential']} (`{one['sha256'][:12]}`)" for one in curves)
    return f"*Computed by `python docs/_code/measure.py {name}` with {made_of}.*"


def _tried() -> str:
    """The steps of the first page as a script ran them, with the time of each."""
    values = json.loads((ROOT / "docs" / "data" / "tried.json").read_text(encoding="utf-8"))
    lines = ["| step | seconds of CPU time | seconds |", "| --- | --- | --- |"]
    lines += [f"| {html.escape(one['step'])} | {one['cpu']:.0f} | {one['wall']:.0f} |" for one in values["steps"]]
    lines.append(
        f"| all | {sum(o['cpu'] for o in values['steps']):.0f} | {sum(o['wall'] for o in values['steps']):.0f} |"
    )
    return "\n".join([*lines, "", f"*{values['note']} Measured by `python docs/_code/try_start.py`.*"])


def _other_benchmarks() -> str:
    """Pages of results that the page does not name itself."""
    named = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = []
    for source in included():
        if source.startswith("benchmarks/") and source.endswith(".md") and source not in named:
            title = (ROOT / source).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            lines.append(f"- [{title}](../{source})")
    return "\n".join(["Also measured:", "", *lines]) if lines else ""


def _table(source: str, columns: str = "", *section: str) -> str:
    """The first table of a page of results or of a section of it, or its first columns."""
    found = tables.tables(tables.part((ROOT / source).read_text(encoding="utf-8"), " ".join(section)))[0]
    return tables.markdown([row[: int(columns)] if columns else row for row in found])


_MAKERS: dict[str, Callable[..., str]] = {
    "gallery": gallery.table,
    "pictures": gallery.pictures,
    "commands": commands.reference,
    "settings": _settings,
    "data": _data,
    "drawing": _drawing,
    "source": _source,
    "tried": _tried,
    "benchmarks": _other_benchmarks,
    "table": _table,
    "notebooks": notebooks.listing,
}


@cache
def _pages() -> dict[str, str]:
    return included() | notebooks.pages()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in ``docs/``: included pages and pictures, notebooks, drawings, and the script of tables."""
    for source, target in _pages().items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            files.append(File.generated(config, target, content=notebooks.as_markdown(path)))
        elif path.suffix == ".md":
            files.append(File.generated(config, target, content=path.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, target, abs_src_path=str(path)))
    for name in drawings.DRAWINGS:
        for scheme in ("light", "dark"):
            files.append(File.generated(config, f"assets/{name}-{scheme}.svg", content=drawings.svg(name, scheme)))
    script = ROOT / "ponita_ff" / "page" / SCRIPT
    files.append(File.generated(config, f"assets/{SCRIPT}", abs_src_path=str(script)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is made, then lead links to files of the repository to their pages."""

    sources = {target: source for source, target in _pages().items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    docs = posixpath.relpath("docs", posixpath.dirname(source))

    def make(match: re.Match[str]) -> str:
        kind, *arguments = match[1].split()
        if kind not in _MAKERS:
            raise PluginError(f"{page.file.src_uri}: nothing is made by {match[0]}; known are {sorted(_MAKERS)}")
        return _MAKERS[kind](*arguments).replace("DOCS/", f"{docs}/")

    made = _MARK.sub(make, markdown)
    if wrong := re.search(r"^<!-- made:.*", made, re.MULTILINE):
        raise PluginError(f"{page.file.src_uri}: {wrong[0]} cannot be read")
    return with_site_links(made, source, _pages())


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site with a link that leads nowhere, or with a page that asks another host for anything."""
    problems = links.problems(Path(config.site_dir))
    if problems:
        raise PluginError("\n".join(["the site has broken links or requests to other hosts:", *problems]))
