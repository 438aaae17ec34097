"""Progress bars: on a terminal only."""

from __future__ import annotations

import io

import pytest

from ponita_ff.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "show", "shown"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_is_shown_on_a_terminal_only(file: type[io.StringIO], show: bool, shown: bool) -> None:
    with file() as output:
        with progress_bar(show, iterable=range(3), file=output) as bar:
            assert list(bar) == [0, 1, 2]
        assert bool(output.getvalue()) == shown
