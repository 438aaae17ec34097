"""The code of README and of the guides runs: Python, commands, and settings.

A comment before a block says what the tests do with it: ``<!-- skip: next -->`` for what needs files of the reader's or
a long time, ``<!-- needs: MODULE -->`` for optional packages, ``<!-- fast: OPTIONS -->`` with options that are added to
its commands, ``<!-- fast: OLD -> NEW -->`` with a replacement in Python.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from ponita_ff.cli import main
from ponita_ff.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENTS = re.compile(r"((?:^[ \t]*<!-- (?:skip|needs|fast): [^\n]*? -->\n)+)[ \t]*\Z", re.MULTILINE)


def remarks(example: Example) -> list[tuple[str, str]]:
    """Kind and text of the comments right before a block."""
    found = COMMENTS.search(example.document.text[: example.region.start])
    return re.findall(r"<!-- (\w+): (.*?) -->", found[1]) if found else []


def is_left_out(example: Example) -> bool:
    """Whether a block is not for the tests, or its packages are not installed."""
    return any(
        kind == "skip" or (kind == "needs" and any(find_spec(name) is None for name in text.split()))
        for kind, text in remarks(example)
    )


def python(example: Example) -> None:
    """Run a block in the namespace of its page."""
    if is_left_out(example):
        return
    for kind, text in remarks(example):
        if kind == "fast":
            old, _, new = text.partition(" -> ")
            assert old in example.parsed, f"{old!r} is not in the block"
            example.parsed = type(example.parsed)(
                example.parsed.replace(old, new), example.parsed.offset, example.parsed.line_offset
            )
    PythonEvaluator()(example)


def commands(example: Example) -> None:
    """Run each command of a block in this process."""
    if is_left_out(example):
        return
    extra = [option for kind, text in remarks(example) if kind == "fast" for option in shlex.split(text)]
    for line in textwrap.dedent(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "ponita-ff", f"{line}: say <!-- skip: next --> for what is not a command of this package"
        result = CliRunner().invoke(main, [*words[1:], *extra], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}:\n{result.output}"


def settings(example: Example) -> None:
    """Settings of training are valid."""
    if not is_left_out(example):
        TrainConfig.from_mapping(yaml.safe_load(example.parsed))


SYBIL = Sybil(
    parsers=[
        CodeBlockParser("python", python),
        CodeBlockParser("bash", commands),
        CodeBlockParser("yaml", settings),
    ]
)


def blocks(page: Path) -> list[Example]:
    """The blocks of a page that are run, in their order."""
    return [example for example in SYBIL.parse(page).examples() if not is_left_out(example)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, workplace: Path) -> None:
    for example in SYBIL.parse(page).examples():
        example.evaluate()


def test_every_block_says_its_language() -> None:
    fence = re.compile(r"^[ \t]*```(.*)$", re.MULTILINE)
    for page in PAGES:
        opening = fence.findall(page.read_text(encoding="utf-8"))[::2]
        assert set(opening) <= {"python", "bash", "yaml", "text"}, page


def test_what_is_wrong_in_a_block_is_found(tmp_path: Path) -> None:
    for text in (
        "```bash\nponita-ff info no-such-potential\n```\n",
        "```bash\nls\n```\n",
        "```python\nassert 1 == 2\n```\n",
        "<!-- fast: 7 -> 8 -->\n```python\nprint(1)\n```\n",
    ):
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        (example,) = SYBIL.parse(page).examples()
        with pytest.raises(AssertionError):
            example.evaluate()
        page.write_text(f"<!-- skip: next -->\n{text}", encoding="utf-8")
        assert not blocks(page)
