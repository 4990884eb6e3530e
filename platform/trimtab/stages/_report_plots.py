"""Plots of the report of labels: accuracy, PGR, agreement, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.stages import _report_draw as marks
from trimtab.stages._drawing import COLOURS, draw_curves, draw_time, panels_svg, rows_svg, save_headline, svg, time_bars
from trimtab.stages._report_page import ModelResult, ReportData, duration, known, number, percent, pgr_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def overview(data: ReportData) -> dict[str, str]:
    """The plots that compare models, and where time went: name -> inline SVG, "" where there is nothing to draw."""
    scored = [model for model in data.models if known(model.accuracy)]
    judged = [model for model in data.models if model.pgr]
    agreeing = [model for model in data.models if model.agreement]
    bars = time_bars(data.stages)
    said = {
        "pgr": "PGR by method. " + "; ".join(f"{m.name}: {pgr_text(m.pgr)}" for m in judged),
        "accuracy": "Accuracy by model. " + "; ".join(f"{m.name}: {percent(m.accuracy)}" for m in scored),
        "agreement": "Agreement with the supervisor where it is right and where it is wrong; numbers in the table.",
        "time": "Time by stage. " + "; ".join(f"{name}: {duration(ran + reused)}" for name, ran, reused in bars),
    }
    draws: dict[str, tuple[int, Callable[[Axes], None]]] = {
        "pgr": (len(judged), lambda ax: marks.draw_pgr(ax, judged)),
        "accuracy": (len(scored), lambda ax: marks.draw_accuracy(ax, scored)),
        "agreement": (len(agreeing), lambda ax: marks.draw_agreement(ax, agreeing)),
        "time": (len(bars), lambda ax: draw_time(ax, bars)),
    }
    return {name: rows_svg(draw, rows, alt=said[name]) if rows else "" for name, (rows, draw) in draws.items()}


def curves(data: ReportData) -> list[tuple[ModelResult, str]]:
    """Inline SVG of every model that has learning curves."""
    return [(model, _curves(model)) for model in data.models if marks.curve_panels(model)]


def calibrations(data: ReportData) -> list[tuple[ModelResult, str]]:
    """Inline SVG of every model that has filled bins, all on one scale."""
    models = [model for model in data.models if marks.full_bins(model)]
    least = min((min(c, a) for model in models for c, a, _ in marks.full_bins(model)), default=0.0)
    low = min(math.floor(10 * least) / 10, 0.5)
    return [(model, _calibration(model, low)) for model in models]


def _curves(model: ModelResult) -> str:
    """Training loss, and agreement with the weak labels, of every seed; what needs truth is dashed."""
    panels = marks.curve_panels(model)
    style = {"colour": COLOURS[model.role], "dashed": marks.is_oracle}
    said = f"Learning curves of {model.name}: {', '.join(panels)}; {len(model.curves)} seeds"
    drawn = {title: partial(draw_curves, curves=model.curves, keys=keys, **style) for title, keys in panels.items()}
    return panels_svg(drawn, alt=said)


def _calibration(model: ModelResult, low: float) -> str:
    """Reliability, both axes from `low` to 1."""

    def draw(figure: Figure) -> None:
        figure.subplots_adjust(left=0.2, right=0.98, bottom=0.2, top=0.98)
        marks.draw_calibration(figure.subplots(), model, low=low)

    said = ", ".join(f"{number(c, 2)} {number(a, 2)}" for c, a, _ in marks.full_bins(model))
    alt = f"Calibration of {model.name}, confidence and accuracy by bin: {said}"
    return svg(draw, (2.2, 2.2), alt=alt, layout=None)


def headline_plot(data: ReportData, path: Path) -> None:
    """Save one PNG of 1200 x 480: accuracy by model with intervals, and PGR."""
    scored = [model for model in data.models if known(model.accuracy)]
    judged = [model for model in data.models if model.pgr]

    def draw(left: Axes, right: Axes) -> None:
        marks.draw_accuracy(left, scored)
        marks.draw_pgr(right, judged)

    save_headline(data.title, path, draw)
