"""Plots of the page."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from ponita_ff.audit import CHECKS, AuditReport, CheckResult
from ponita_ff.audit.plots import COLOURS, PLOTS, draw, png


def test_there_is_a_plot_for_every_check() -> None:
    assert set(PLOTS) == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_checks_with_arrays_are_drawn(check: str, molecule_report: AuditReport) -> None:
    results = molecule_report.for_check(check)
    # Two calculators, of which the second was not measured.
    figure = draw(check, {**results, "other": CheckResult(skip_reason="no reason")})
    if check == "stress":
        assert figure is None
        return
    assert figure is not None
    axes = [axes for axes in figure.axes if axes.has_data()]
    assert axes and all(each.get_xlabel() or each.get_ylabel() for each in axes)
    colours = {artist.get_color() for each in axes for artist in each.lines}
    assert check == "modes" or COLOURS[0] in colours
    assert COLOURS[1] not in colours


def test_curves_are_the_arrays(molecule_report: AuditReport) -> None:
    figure = draw("nve", molecule_report.for_check("nve"))
    arrays = molecule_report.results["springs"]["nve"].arrays["0.5 fs"]
    assert figure is not None
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), arrays["time"])
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), arrays["energy"])


def test_png_is_a_data_url(molecule_report: AuditReport) -> None:
    figure = draw("rotations", molecule_report.for_check("rotations"))
    assert figure is not None
    head, _, content = png(figure, dpi=40).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")
