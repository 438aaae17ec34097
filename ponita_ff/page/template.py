"""Templates of HTML pages, all inside one frame that holds style and script, so that a page is one file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

__all__ = ["SCRIPT", "STYLE", "data_url", "load"]

#: Files beside this module: the style of all pages, and the script that sorts tables. The site uses both as well.
STYLE, SCRIPT = "style.css", "sort.js"


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def load(package: str, name: str, filters: Mapping[str, Callable[..., str]] | None = None) -> Template:
    """A template of another package, which may extend ``frame.html.jinja``.

    Args:
        package: The package that the template lies in.
        name: Of its file.
        filters: Functions that the template uses, by name.

    Returns:
        A template that escapes what it is given, and refuses names that it is not given.
    """
    loader = ChoiceLoader([PackageLoader(package, package_path=""), PackageLoader(__package__, package_path="")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters.update(filters or {})
    environment.globals.update(style=_part(STYLE), script=_part(SCRIPT))
    return environment.get_template(name)


def data_url(png: bytes) -> str:
    """A PNG image as an address that holds the image itself."""
    return "data:image/png;base64," + b64encode(png).decode("ascii")
