"""What all pages of commands share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import ponita_ff.page
from ponita_ff.page import template

FOLDER = Path(ponita_ff.page.__file__).parent


def test_a_page_has_the_frame_is_escaped_and_asks_nobody() -> None:
    page = template.load("ponita_ff.training", "report.html.jinja", {"milli": str, "duration": str})
    with pytest.raises(UndefinedError, match="title"):
        page.render()
    text = (FOLDER / "frame.html.jinja").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=", text)
    for name in (template.STYLE, template.SCRIPT):
        content = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp", content)


def test_the_style_is_for_phones_dark_screens_and_paper() -> None:
    style = (FOLDER / template.STYLE).read_text(encoding="utf-8")
    for condition in ("(max-width:", "screen and (prefers-color-scheme: dark)", "@media print"):
        assert condition in style
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert light == dark, "a colour is missing in one scheme"
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= light


def test_an_image_becomes_its_own_address() -> None:
    assert template.data_url(b"\x89PNG") == "data:image/png;base64,iVBORw=="
