"""The HTML page: verdicts first, then a section per check; nothing outside the file is needed."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import yaml

from ponita_ff.audit.plots import draw, png
from ponita_ff.audit.result import Measure, Outcome, Report
from ponita_ff.audit.run import CHECKS

__all__ = ["format_value", "render", "write_report"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
thead th { border-bottom: 2px solid #888; } tr.check th { padding-top: .9rem; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.limit { white-space: nowrap; color: #555; }
.badge { display: inline-block; min-width: 4.2em; text-align: center; padding: 0 .45em; margin-right: .6em;
  border-radius: .6em; font-size: .8em; }
.pass { background: #d9f0e0; color: #14532d; } .fail { background: #f8d3cd; color: #7f1d1d; font-weight: 600; }
.notdone { background: #fdf0cc; color: #6b4a00; } .info { background: #ececec; color: #444; }
.why, .question, footer { color: #555; font-size: .9rem; } .why { display: block; white-space: normal; }
img { max-width: 100%; } details { margin-top: 2rem; } pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
.summary li { margin: .2rem 0; }
"""


def format_value(value: float) -> str:
    """Three significant digits; powers of ten where zeros would be counted."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = (
            f"{mantissa}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
            if exponent
            else mantissa
        )
    return text.replace("-", "−")


def _badge(verdict: str) -> str:
    return f'<span class="badge {verdict.replace(" ", "")}">{verdict}</span>'


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return "<td>–</td>"
    text = "" if measure.value is None else format_value(measure.value)
    if measure.error is not None:
        text += f" ± {format_value(measure.error)}"
    note = f'<span class="why">{escape(measure.note)}</span>' if measure.note else ""
    return f'<td class="number">{_badge(measure.verdict)}{text}{note}</td>'


def _limit(measures: list[Measure]) -> str:
    limits = {
        f"{'≤' if m.sense == 'at most' else '≥'} {format_value(m.limit)}" for m in measures if m.limit is not None
    }
    return " / ".join(sorted(limits)) or "–"


def _rows(check: str, outcomes: dict[str, Outcome]) -> list[str]:
    """Table rows of a check: a heading with what was not done or raised, then one row per measure."""
    states = []
    for outcome in outcomes.values():
        if outcome.error is not None:
            states.append(f'<td>{_badge("fail")}<span class="why">{escape(outcome.error)}</span></td>')
        elif outcome.not_done is not None:
            states.append(f'<td>{_badge("not done")}<span class="why">{escape(outcome.not_done)}</span></td>')
        else:
            states.append("<td></td>")
    title = escape(CHECKS[check].title)
    rows = [f'<tr class="check"><th><a href="#{check}">{title}</a></th>{"".join(states)}<td></td><td></td></tr>']
    names = dict.fromkeys(measure.name for outcome in outcomes.values() for measure in outcome.measures)
    for name in names:
        found = [next((m for m in outcome.measures if m.name == name), None) for outcome in outcomes.values()]
        known = [measure for measure in found if measure is not None]
        cells = "".join(_cell(measure) for measure in found)
        unit = escape(known[0].unit)
        rows.append(f'<tr><td>{escape(name)}</td>{cells}<td>{unit}</td><td class="limit">{_limit(known)}</td></tr>')
    return rows


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in report.outcomes)
    rows = [row for check in CHECKS for row in _rows(check, _of(report, check))]
    return (
        f"<table><thead><tr><th>check</th>{head}<th>unit</th><th>limit</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _of(report: Report, check: str) -> dict[str, Outcome]:
    return {name: checks[check] for name, checks in report.outcomes.items()}


def _section(check: str, outcomes: dict[str, Outcome]) -> str:
    parts = [f'<h2 id="{check}">{escape(CHECKS[check].title)}</h2>']
    parts.append(f'<p class="question">{escape(CHECKS[check].question)}</p>')
    figure = draw(check, outcomes)
    if figure is not None:
        parts.append(f'<img alt="{escape(CHECKS[check].title)}" src="{png(figure)}">')
    lines = []
    for name, outcome in outcomes.items():
        texts = list(outcome.notes)
        if outcome.not_done is not None:
            texts.append(f"Not done: {outcome.not_done}.")
        if outcome.error is not None:
            texts.append(f"The calculator raised {outcome.error}")
        if texts:
            lines.append(f"<li><b>{escape(name)}</b>: {escape(' '.join(texts))}</li>")
    return "".join(parts) + (f"<ul>{''.join(lines)}</ul>" if lines else "")


def _summary(report: Report) -> str:
    lines = []
    for name, checks in report.outcomes.items():
        failed = sum(len(outcome.failures) for outcome in checks.values())
        undone = sum(len(outcome.undone) for outcome in checks.values())
        held = sum(m.verdict == "pass" for outcome in checks.values() for m in outcome.measures)
        badge = _badge("fail" if failed else "pass")
        lines.append(f"<li>{badge}<b>{escape(name)}</b>: {held} limits hold, {failed} broken, {undone} not judged</li>")
    return f'<ul class="summary" style="list-style: none; padding: 0">{"".join(lines)}</ul>'


def render(report: Report) -> str:
    """The whole page."""
    title = f"Audit of {', '.join(report.outcomes)}"
    settings = yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True, default_flow_style=None)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    sections = "".join(_section(check, _of(report, check)) for check in CHECKS)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="question">Structure: {escape(report.structure)}. Seed {report.settings["seed"]}. '
        f"Training temperature {report.settings['temperature']:g} K.</p>"
        f"{_summary(report)}{_table(report)}{sections}"
        f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>"
        f"<footer>{escape(versions)}</footer></body></html>\n"
    )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``audit.html`` and ``audit.json`` into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, numbers = folder / "audit.html", folder / "audit.json"
    page.write_text(render(report), encoding="utf-8")
    numbers.write_text(json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return page, numbers
