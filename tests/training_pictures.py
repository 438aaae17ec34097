"""Left out where a training is only a part of what is tested: pictures and the page, which take longer than it does."""

from __future__ import annotations

import pytest


@pytest.fixture
def drawn_plots() -> None:
    """For tests that look at the plots of a run."""


@pytest.fixture(autouse=True)
def plots_left_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no plots, except where a test asks for ``drawn_plots``; import both where they are to be in force."""
    if "drawn_plots" not in request.fixturenames:
        for name in ("plot_learning_curve", "plot_parity"):
            monkeypatch.setattr(f"ponita_ff.training.run.{name}", lambda *_: None)
        for module in ("run", "finetune"):
            monkeypatch.setattr(f"ponita_ff.training.{module}.write_report_page", lambda *_: None)
