"""Open every page of the built site in a headless Chromium: errors, requests to other hosts, width, sorting, search.

    python docs/_code/look.py site-out --pictures look-out
    python docs/_code/look.py site-out --only guides/audit.html --only index.html

Needs Chromium (``CHROMIUM`` names its program, else it is looked for) and playwright, of the extra ``docs``. The pages
are served on this machine; whatever they ask of another host is refused and reported. With ``--pictures``, screenshots
of whole pages.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click

_WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
_SCHEMES = ("light", "dark")

#: What is searched for, and a page that must be found.
_SEARCH, _FOUND, _TRIES = "thermostat", "guides/md.html", 10

#: Chromium's own services look for the network, which no page does.
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine, at the address that is given."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def chromium() -> str | None:
    """Chromium's program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _watch(page: Any, address: str, problems: list[str]) -> None:
    """Report errors of the console and of scripts, failed requests, and requests to other hosts."""

    def request(route: Any) -> None:
        url = route.request.url
        if url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"asks another host: {url}")
            route.abort()

    page.route("**/*", request)
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("response", lambda answer: answer.status >= 400 and problems.append(f"{answer.status}: {answer.url}"))


def _is_wider_than_the_screen(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"))


def _sorts(page: Any) -> bool:
    """Whether a click on a head sorts the first table that can be sorted."""
    return bool(
        page.evaluate(
            """() => {
              const head = document.querySelector('.sortable th[aria-sort]:nth-child(5)');
              if (!head) return true;
              head.click();
              const table = head.closest('table');
              const values = [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[4].textContent));
              return values.every((value, i) => i === 0 || values[i - 1] <= value);
            }"""
        )
    )


def _moves(page: Any) -> bool:
    """Whether a viewer is there and its slider changes what is said."""
    page.wait_for_selector(".viewer-canvas canvas", timeout=60_000)
    return bool(
        page.evaluate(
            """() => {
              const slider = document.querySelector('.viewer-bar input');
              const label = document.querySelector('.viewer-bar span');
              const before = label.textContent;
              slider.value = 7;
              slider.dispatchEvent(new Event('input'));
              return label.textContent !== before && label.textContent.length > 0;
            }"""
        )
    )


def _search(page: Any, address: str) -> list[str]:
    """Problems of the search."""
    page.goto(f"{address}/index.html")
    page.wait_for_load_state("networkidle")
    field, wanted = page.locator("input.md-search__input"), page.locator(f"a.md-search-result__link[href*='{_FOUND}']")
    field.click()
    # The index is loaded once the field has the focus, and keys pressed before it is there go unheard.
    for _ in range(_TRIES):
        field.fill("")
        field.press_sequentially(_SEARCH, delay=20)
        page.wait_for_timeout(3_000)
        if wanted.count():
            return []
    return [f"search for {_SEARCH!r} does not find {_FOUND}"]


def _look_at(page: Any, address: str, name: str, picture: Path | None) -> None:
    page.goto(f"{address}/{name}")
    page.wait_for_load_state("networkidle")
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(picture), full_page=True)


@click.command()
@click.argument("site", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--only", multiple=True, help="Only these pages, e.g. index.html.  [default: all]")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for screenshots.")
@click.option("--every", is_flag=True, help="Both schemes at both widths, not light on a desktop and dark on a phone.")
def main(site: Path, only: tuple[str, ...], pictures: Path | None, every: bool) -> None:
    """Look at the pages of SITE, and end with exit code 1 if something is wrong; 2 if there is no browser."""
    program = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise click.UsageError("playwright is not installed: pip install '.[docs]'") from None
    if program is None:
        raise click.UsageError("there is no Chromium: install it, or name its program in CHROMIUM")
    names = list(only) or sorted(
        str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html"
    )
    failed = 0
    with sync_playwright() as playwright, _served(site) as address:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        problems: list[str] = []
        for kind, (width, height) in _WIDTHS.items():
            for scheme in _SCHEMES if every else _SCHEMES[kind == "phone" :][:1]:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                page.set_default_timeout(120_000)
                _watch(page, address, problems)
                for name in names:
                    problems.clear()
                    picture = (
                        pictures and pictures / f"{name.removesuffix('.html').replace('/', '_')}-{kind}-{scheme}.png"
                    )
                    _look_at(page, address, name, picture)
                    if _is_wider_than_the_screen(page):
                        problems.append("is wider than the screen")
                    if not _sorts(page):
                        problems.append("a click on the head of a column does not sort")
                    if page.query_selector("[data-source]") and not _moves(page):
                        problems.append("the viewer does not move")
                    for problem in problems:
                        click.echo(f"{name} ({kind}, {scheme}): {problem}")
                    failed += len(problems)
                context.close()
        page = browser.new_page()
        page.set_default_timeout(120_000)
        problems = []
        _watch(page, address, problems)
        if (site / "search").is_dir():
            problems += _search(page, address)
        for problem in problems:
            click.echo(f"search: {problem}")
        failed += len(problems)
        browser.close()
    click.echo(f"{len(names)} pages: {failed or 'no'} problems")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
