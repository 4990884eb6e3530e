"""Plots of the report. Colours become CSS variables and text stays text: one drawing for light, dark and search."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.stages import _report_draw as marks
from trimtab.stages._report_draw import COLOURS, short
from trimtab.stages._report_page import ModelResult, ReportData, duration, known, number, percent, pgr_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {
    "svg.fonttype": "none",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
}
_WIDTH = 5.2


def overview(data: ReportData) -> dict[str, str]:
    """The plots that compare models, and where time went: name -> inline SVG, "" where there is nothing to draw."""
    scored = [model for model in data.models if known(model.accuracy)]
    judged = [model for model in data.models if model.pgr]
    agreeing = [model for model in data.models if model.agreement]
    bars = marks.time_bars(data.stages)
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
        "time": (len(bars), lambda ax: marks.draw_time(ax, bars)),
    }
    return {name: _rows_svg(draw, rows, alt=said[name]) if rows else "" for name, (rows, draw) in draws.items()}


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

    def draw(figure: Figure) -> None:
        figure.subplots_adjust(left=0.07, right=0.99, bottom=0.13, top=0.88, wspace=0.17)
        for ax, (title, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            marks.draw_curves(ax, model, keys=keys)
            ax.set_title(title, loc="left", fontsize=8.5, color=COLOURS["muted"])

    said = f"Learning curves of {model.name}: {', '.join(panels)}; {len(model.curves)} seeds"
    return _svg(draw, (_WIDTH, 1.7), alt=said, layout=None)


def _calibration(model: ModelResult, low: float) -> str:
    """Reliability, both axes from `low` to 1."""

    def draw(figure: Figure) -> None:
        figure.subplots_adjust(left=0.2, right=0.98, bottom=0.2, top=0.98)
        marks.draw_calibration(figure.subplots(), model, low=low)

    said = ", ".join(f"{number(c, 2)} {number(a, 2)}" for c, a, _ in marks.full_bins(model))
    alt = f"Calibration of {model.name}, confidence and accuracy by bin: {said}"
    return _svg(draw, (2.2, 2.2), alt=alt, layout=None)


def headline_plot(data: ReportData, path: Path) -> None:
    """Save one PNG of 1200 x 480: accuracy by model with intervals, and PGR."""
    import matplotlib
    from matplotlib.figure import Figure

    scored = [model for model in data.models if known(model.accuracy)]
    judged = [model for model in data.models if model.pgr]
    with matplotlib.rc_context(_STYLE | {"font.size": 11, "figure.facecolor": "white"}):
        figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
        figure.suptitle(short(data.title, 90), x=0.01, ha="left", fontsize=14)
        left, right = figure.subplots(1, 2)
        marks.draw_accuracy(left, scored)
        marks.draw_pgr(right, judged)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.06)
        figure.savefig(path, format="png")


def _rows_svg(draw: Callable[[Axes], None], rows: int, *, alt: str) -> str:
    height = 0.85 + (0.34 if rows <= marks.ROOMY else 0.24) * rows
    return _svg(lambda figure: draw(figure.subplots()), (_WIDTH, height), alt=alt)


def _svg(
    draw: Callable[[Figure], None], size: tuple[float, float], *, alt: str, layout: str | None = "constrained"
) -> str:
    import matplotlib
    from markupsafe import escape
    from matplotlib.figure import Figure

    out, said = io.StringIO(), short(alt, 1200)
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": said}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts of its own
        figure = Figure(figsize=size, layout=layout)
        draw(figure)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r'<g id="[^"]*"', "<g", out.getvalue())
    text = re.sub(r'style="[^"]*"', lambda found: _themed(found[0]), text)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = f'<svg {box} role="img" aria-label="{escape(said)}" {xlink}>'
    return opening + text[text.index(">", text.index("<svg")) + 1 :]


def _themed(style: str) -> str:
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return re.sub(r"font-family: [^;\"]*;?", "", style)
