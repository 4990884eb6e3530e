"""What the report's plots draw on their axes. Rows are models, first on top; colours tell roles apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trimtab.stages._report_page import ModelResult, StageTime, brief, duration, known, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ink": "#1d2329",
    "muted": "#5f6974",
    "line": "#dde2e7",
    "card": "#fffffe",
    "supervisor": "#b85600",
    "student": "#2a62d8",
    "ceiling": "#0b7a6b",
    "intermediate": "#7a5fa8",
    "wrong": "#b3286b",
}
ROOMY = 12  # rows up to which a name may take two lines
_POINTS, _BARS = 150, 18


def short(text: str, limit: int) -> str:
    """One printable line; a long one loses its middle."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split()) or "?"
    tail = limit // 3
    return line if len(line) <= limit else f"{line[: limit - tail - 1]}…{line[-tail:]}"


def draw_pgr(ax: Axes, models: list[ModelResult]) -> None:
    """PGR and interval; small dots are seeds against the mean supervisor and ceiling: their mean is the point."""
    _rows(ax, [model.name for model in models])
    ax.set_xlim(_pgr_window(models))
    _reference(ax, 0, name="supervisor", side="right")
    _reference(ax, 1, name="ceiling", side="left")
    for y, model in enumerate(models):
        pgr = model.pgr
        if pgr.status == "undefined" or not known(pgr.value):
            _beside(ax, y, text="undefined", x=1, offset=(6, 0), color=COLOURS["muted"], style="italic")
            continue
        solid = pgr.status == "ok"
        _seeds(ax, y, values=_pgr_of_seeds(model), colour=COLOURS[model.role])
        _point(ax, y, values=(pgr.value, pgr.lo, pgr.hi), colour=COLOURS[model.role], solid=solid)
        text = number(pgr.value, 2) + ("" if solid else f"  {pgr.status}")
        _beside(ax, y, text=text, x=1, offset=(6, 0), color=COLOURS["ink" if solid else "muted"])
    ax.set_xlabel("performance gap recovered (PGR)")


def _pgr_of_seeds(model: ModelResult) -> list[float]:
    return [(seed - model.pgr.weak) / (model.pgr.ceiling - model.pgr.weak) for seed in model.per_seed]


def _pgr_window(models: list[ModelResult]) -> tuple[float, float]:
    """All of what is informative, within [-2, 3]; points of the rest count within [-0.5, 1.5]."""
    sure = [m for m in models if m.pgr.status == "ok"]
    rest = [m for m in models if m.pgr.status == "uninformative"]
    wide = [v for m in sure for v in (m.pgr.value, m.pgr.lo, m.pgr.hi, *_pgr_of_seeds(m)) if known(v)]
    near = [min(max(m.pgr.value, -0.5), 1.5) for m in rest if known(m.pgr.value)]
    return _padded(max(-2.0, min([-0.1, *wide, *near])), min(3.0, max([1.1, *wide, *near])))


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def draw_accuracy(ax: Axes, models: list[ModelResult]) -> None:
    """Accuracy and interval, with lines at the supervisor and the ceiling."""
    _rows(ax, [model.name for model in models])
    shown = [100 * v for m in models for v in (m.accuracy, m.lo, m.hi, *m.per_seed) if known(v)]
    ax.set_xlim(_padded(min(shown, default=0.0), max(shown, default=100.0)))
    lines = {role: [100 * m.accuracy for m in models if m.role == role][:1] for role in ("supervisor", "ceiling")}
    swapped = sum(lines["supervisor"]) > sum(lines["ceiling"] or [math.inf])
    for (role, at), side in zip(lines.items(), ("left", "right") if swapped else ("right", "left"), strict=True):
        for x in at:
            _reference(ax, x, name=role, side=side)
    for y, model in enumerate(models):
        _seeds(ax, y, values=[100 * seed for seed in model.per_seed], colour=COLOURS[model.role])
        _point(ax, y, values=tuple(100 * v for v in (model.accuracy, model.lo, model.hi)), colour=COLOURS[model.role])
        _beside(ax, y, text=percent(model.accuracy), x=1, offset=(6, 0), color=COLOURS["ink"])
    ax.set_xlabel("accuracy on the test split (%)")


def draw_agreement(ax: Axes, models: list[ModelResult]) -> None:
    """Two bars a model: rows where the supervisor is right, rows where it is wrong."""
    _rows(ax, [model.name for model in models])
    for key, shift, name, colour in (
        ("supervisor_right", -0.19, "supervisor right", "student"),
        ("supervisor_wrong", 0.19, "supervisor wrong", "wrong"),
    ):
        shares = [model.agreement.get(key) for model in models]
        at = [(y + shift, 100 * share) for y, share in enumerate(shares) if known(share)]
        ax.barh([y for y, _ in at], [x for _, x in at], height=0.32, color=COLOURS[colour], label=name)
        for y, x in at:
            _beside(ax, y, text=number(x, 1), x=1, offset=(6, 0), color=COLOURS[colour], fontsize="small")
    ax.set_xlim(0, 100)
    ax.set_xlabel("test rows with the supervisor's answer (%)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, borderpad=0.2)


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
    _rows(ax, [name for name, *_ in bars])
    unit, name = (1, "seconds") if max(ran + reused for _, ran, reused in bars) < 300 else (60, "minutes")
    for y, (_, ran, reused) in enumerate(bars):
        ax.barh(y, ran / unit, height=0.6, color=COLOURS["student"])
        style = {"facecolor": "none", "edgecolor": COLOURS["muted"], "hatch": "////", "linewidth": 0.8}
        ax.barh(y, reused / unit, left=ran / unit, height=0.6, **style)
        _beside(ax, y, text=duration(ran + reused), x=1, offset=(6, 0), color=COLOURS["ink"], fontsize="small")
    ax.set_xlabel(name)


def curve_panels(model: ModelResult) -> dict[str, list[str]]:
    """Panel title -> metric keys that it draws; keys that belong nowhere are left out."""
    keys = {key for curve in model.curves for _, metrics in curve for key in metrics}
    losses = sorted(keys & {"loss", "train/loss", "oracle/loss"})
    shares = sorted(keys & {"eval_agreement"} | {key for key in keys if _oracle(key)} - set(losses))
    labels = "labels" if model.role in ("supervisor", "ceiling") else "weak labels"
    agreement = f"agreement with {labels}" if any(not _oracle(key) for key in shares) else "oracle"
    return {title: found for title, found in (("training loss", losses), (agreement, shares)) if found}


def draw_curves(ax: Axes, model: ModelResult, *, keys: list[str]) -> None:
    """One thin line a seed and metric; metrics that need truth are dashed."""
    for key in keys:
        for curve in model.curves:
            points = _thinned([(step, metrics[key]) for step, metrics in curve if known(metrics.get(key))])
            if points:
                colour, line = (COLOURS["muted"], "--") if _oracle(key) else (COLOURS[model.role], "-")
                marker = "o" if len(points) == 1 else None
                ax.plot(*zip(*points, strict=True), linewidth=1, color=colour, linestyle=line, marker=marker)


def full_bins(model: ModelResult) -> list[tuple[float, float, int]]:
    return [(c, a, n) for c, a, n in model.calibration if n and known(c) and known(a)]


def draw_calibration(ax: Axes, model: ModelResult, *, low: float) -> None:
    """Accuracy against confidence, a dot a bin, its area the share of rows."""
    bins, colour = full_bins(model), COLOURS[model.role]
    total, margin = sum(n for *_, n in bins), 0.04 * (1 - low)
    x, y = [c for c, *_ in bins], [a for _, a, _ in bins]
    ax.plot([low, 1], [low, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    ax.plot(x, y, color=colour, linewidth=1.2)
    ax.scatter(x, y, s=[8 + 70 * n / total for *_, n in bins], color=colour, linewidths=0)
    ax.set(xlim=(low - margin, 1 + margin), ylim=(low - margin, 1 + margin), xlabel="confidence", ylabel="accuracy")


def _oracle(key: str) -> bool:
    return key.startswith("oracle/")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal runs of points, at most _POINTS of them."""
    size = math.ceil(len(points) / _POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _rows(ax: Axes, names: list[str]) -> None:
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
            _beside(ax, y, text=line, x=0, offset=(-6, rise), ha="right", color=COLOURS["ink"])


def _halves(name: str, width: int) -> list[str]:
    """One line, or two no wider than `width`, cut behind the separator nearest the middle."""
    if len(name) <= width:
        return [name]
    cuts = [i for i in range(len(name) - width, width + 1) if name[i - 1] in " _-./"]
    cut = min(cuts, key=lambda i: abs(2 * i - len(name)), default=len(name) // 2)
    return [name[:cut].strip(), name[cut:].strip()]


def _beside(ax: Axes, y: float, *, text: str, x: float, offset: tuple[float, float], **style: Any) -> None:
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (x, y), xytext=offset, annotation_clip=False, **where, **style)


def _reference(ax: Axes, x: float, *, name: str, side: str) -> None:
    ax.axvline(x, color=COLOURS[name], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": side, "va": "bottom"}
    shift = -2 if side == "right" else 2
    ax.annotate(name, (x, 1), xytext=(shift, 2), color=COLOURS[name], fontsize="small", **where)


def _point(ax: Axes, y: float, *, values: tuple[float | None, ...], colour: str, solid: bool = True) -> None:
    """A value with its interval (value, lo, hi); a value beyond the axis becomes an arrowhead at its edge."""
    value, lo, hi = values
    if known(lo) and known(hi):
        ax.plot([lo, hi], [y, y], color=colour, linewidth=2, alpha=1 if solid else 0.45, solid_capstyle="butt")
    left, right = ax.get_xlim()
    marker = "<o>"[1 + (value > right) - (value < left)]
    face = colour if solid else COLOURS["card"]
    at = min(max(value, left), right)
    ax.plot([at], [y], marker=marker, markersize=7, color=colour, markerfacecolor=face, clip_on=False, zorder=4)


def _seeds(ax: Axes, y: float, *, values: list[float], colour: str) -> None:
    if len(values) > 1:
        ax.scatter(values, [y + 0.24] * len(values), s=9, color=colour, alpha=0.55, linewidths=0, zorder=3)
