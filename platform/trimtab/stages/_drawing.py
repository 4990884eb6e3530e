"""What plots of reports share. Colours become CSS variables, text stays text: one drawing for light and dark."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.stages._report_page import Curve, StageTime, brief, duration, known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1d2329",
    "muted": "#5f6974",
    "line": "#dde2e7",
    "card": "#fffffe",
    "supervisor": "#b85600",
    "student": "#2a62d8",
    "guided": "#2a62d8",
    "ceiling": "#0b7a6b",
    "reference": "#4f6072",
    "intermediate": "#7a5fa8",
    "judge": "#7a5fa8",
    "wrong": "#b3286b",
}
ROOMY = 12  # rows up to which a name may take two lines
DASHES = (0, (4, 3))
_POINTS, _BARS = 150, 18
STYLE = {
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
WIDTH = 5.2


def short(text: str, limit: int) -> str:
    """One printable line; a long one loses its middle."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split()) or "?"
    tail = limit // 3
    return line if len(line) <= limit else f"{line[: limit - tail - 1]}…{line[-tail:]}"


def padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def time_bars(stages: list[StageTime]) -> list[tuple[str, float, float]]:
    """(name, seconds run, seconds reused), longest first; seeds of one label summed, the short tail in one bar."""
    sums: dict[str, list[float]] = {}
    for stage in stages:
        label = brief(stage.label)
        name = label if label.startswith(stage.stage) else f"{stage.stage} {label}"
        sums.setdefault(name, [0.0, 0.0])[stage.cached] += stage.seconds
    bars = sorted(((name, ran, reused) for name, (ran, reused) in sums.items()), key=lambda bar: -bar[1] - bar[2])
    tail = bars[_BARS:]
    rest = [(f"{len(tail)} others", sum(ran for _, ran, _ in tail), sum(reused for *_, reused in tail))] if tail else []
    return bars[:_BARS] + rest


def draw_time(ax: Axes, bars: list[tuple[str, float, float]]) -> None:
    """Seconds a stage; what was reused is hatched."""
    name_rows(ax, [name for name, *_ in bars])
    unit, name = (1, "seconds") if max(ran + reused for _, ran, reused in bars) < 300 else (60, "minutes")
    for y, (_, ran, reused) in enumerate(bars):
        ax.barh(y, ran / unit, height=0.6, color=COLOURS["student"])
        style = {"facecolor": "none", "edgecolor": COLOURS["muted"], "hatch": "////", "linewidth": 0.8}
        ax.barh(y, reused / unit, left=ran / unit, height=0.6, **style)
        write_beside(ax, y, text=duration(ran + reused), x=1, offset=(6, 0), color=COLOURS["ink"], fontsize="small")
    ax.set_xlabel(name)


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal runs of points, at most _POINTS of them."""
    size = math.ceil(len(points) / _POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def name_rows(ax: Axes, names: list[str]) -> None:
    """Names down the left, first on top; a long one takes two lines unless rows are many."""
    ax.set_yticks(range(len(names)), [""] * len(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    size = ax.xaxis.label.get_fontsize()
    width, limit = (22, 40) if len(names) <= ROOMY else (30, 30)
    for y, name in enumerate(names):
        lines = _halves(short(brief(name), limit), width)
        for i, line in enumerate(lines):
            rise = 0.6 * size * (len(lines) - 1 - 2 * i)
            write_beside(ax, y, text=line, x=0, offset=(-6, rise), ha="right", color=COLOURS["ink"])


def _halves(name: str, width: int) -> list[str]:
    """One line, or two no wider than `width`, cut behind the separator nearest the middle."""
    if len(name) <= width:
        return [name]
    cuts = [i for i in range(len(name) - width, width + 1) if name[i - 1] in " _-./"]
    cut = min(cuts, key=lambda i: abs(2 * i - len(name)), default=len(name) // 2)
    return [name[:cut].strip(), name[cut:].strip()]


def write_beside(ax: Axes, y: float, *, text: str, x: float, offset: tuple[float, float], **style: Any) -> None:
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (x, y), xytext=offset, annotation_clip=False, **where, **style)


def draw_reference(ax: Axes, x: float, *, name: str, side: str) -> None:
    ax.axvline(x, color=COLOURS[name], linewidth=1, linestyle=DASHES, zorder=1)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": side, "va": "bottom"}
    shift = -2 if side == "right" else 2
    ax.annotate(name, (x, 1), xytext=(shift, 2), color=COLOURS[name], fontsize="small", **where)


def draw_point(ax: Axes, y: float, *, values: tuple[float | None, ...], colour: str, solid: bool = True) -> None:
    """A value with its interval (value, lo, hi); a value beyond the axis becomes an arrowhead at its edge."""
    value, lo, hi = values
    if known(lo) and known(hi):
        ax.plot([lo, hi], [y, y], color=colour, linewidth=2, alpha=1 if solid else 0.45, solid_capstyle="butt")
    left, right = ax.get_xlim()
    marker = "<o>"[1 + (value > right) - (value < left)]
    face = colour if solid else COLOURS["card"]
    at = min(max(value, left), right)
    ax.plot([at], [y], marker=marker, markersize=7, color=colour, markerfacecolor=face, clip_on=False, zorder=4)


def draw_seeds(ax: Axes, y: float, *, values: list[float], colour: str) -> None:
    if len(values) > 1:
        ax.scatter(values, [y + 0.24] * len(values), s=9, color=colour, alpha=0.55, linewidths=0, zorder=3)


def draw_legend(ax: Axes, *, columns: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        style = {"borderaxespad": 0.2, "borderpad": 0.2, "handlelength": 1.6, "columnspacing": 1.4, "fontsize": "small"}
        colours = [line.get_color() for line in handles]
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, labelcolor=colours, **style)


def rows_svg(draw: Callable[[Axes], None], rows: int, *, alt: str) -> str:
    height = 0.85 + (0.34 if rows <= ROOMY else 0.24) * rows
    return svg(lambda figure: draw(figure.subplots()), (WIDTH, height), alt=alt)


def svg(
    draw: Callable[[Figure], None], size: tuple[float, float], *, alt: str, layout: str | None = "constrained"
) -> str:
    import matplotlib
    from markupsafe import escape
    from matplotlib.figure import Figure

    out, said = io.StringIO(), short(alt, 1200)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": said}), warnings.catch_warnings():
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


def draw_curves(ax: Axes, curves: list[Curve], *, keys: list[str], colour: str, dashed: Callable[[str], bool]) -> None:
    """One thin line a seed and metric; `dashed` metrics are muted too."""
    for key in keys:
        for curve in curves:
            points = thinned([(step, metrics[key]) for step, metrics in curve if known(metrics.get(key))])
            if points:
                hue, line = (COLOURS["muted"], "--") if dashed(key) else (colour, "-")
                marker = "o" if len(points) == 1 else None
                ax.plot(*zip(*points, strict=True), linewidth=1, color=hue, linestyle=line, marker=marker)


def panels_svg(panels: dict[str, Callable[[Axes], None]], *, alt: str, wspace: float = 0.17) -> str:
    """Titled panels, two to a line."""
    lines, columns = math.ceil(len(panels) / 2), min(len(panels), 2)

    def draw(figure: Figure) -> None:
        height = 1.7 * lines
        figure.subplots_adjust(
            left=0.07, right=0.99, bottom=0.221 / height, top=1 - 0.204 / height, wspace=wspace, hspace=0.4
        )
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, (title, fill) in zip(axes, panels.items(), strict=False):
            fill(ax)
            ax.set_title(title, loc="left", fontsize=8.5, color=COLOURS["muted"])
        for ax in axes[len(panels) :]:
            ax.set_axis_off()

    return svg(draw, (WIDTH, 1.7 * lines), alt=alt, layout=None)


def save_headline(title: str, path: Path, draw: Callable[[Axes, Axes], None]) -> None:
    """Save one PNG of 1200 x 480 with two plots side by side."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"font.size": 11, "figure.facecolor": "white"}):
        figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
        figure.suptitle(short(title, 90), x=0.01, ha="left", fontsize=14)
        draw(*figure.subplots(1, 2))
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.06)
        figure.savefig(path, format="png")
