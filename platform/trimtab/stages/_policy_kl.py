"""Gold reward against KL to the reference: models, on-policy rounds and best-of-n (after Gao et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.stages._drawing import COLOURS, DASHES, draw_legend, padded, short
from trimtab.stages._policy_page import PolicyReport, PolicyResult
from trimtab.stages._report_page import brief, known

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEGIBLE = 24  # letters of a name


def placed_models(report: PolicyReport) -> list[tuple[PolicyResult, float]]:
    """Models that have a reward and a KL; the reference is at KL 0."""
    at = [(model, 0.0 if model.role == "reference" else model.kl and model.kl.value) for model in report.models]
    return [(model, kl) for model, kl in at if known(kl) and known(model.gold.value)]


def draw_kl(ax: Axes, report: PolicyReport) -> None:
    """A point a model with both intervals, its rounds joined from the reference, and what best-of-n would reach."""
    from matplotlib.ticker import MaxNLocator

    placed = placed_models(report)
    if not placed:
        ax.set_axis_off()
        return
    ax.set_xscale("function", functions=(_root, _square))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    start = [(0.0, model.gold.value) for model, _ in placed if model.role == "reference"][:1]
    by_supervisor = "best of n by the supervisor"
    _draw_best_of_n(ax, report.best_of_n, label="best of n by gold reward", colour=COLOURS["ceiling"])
    _draw_best_of_n(ax, report.best_of_n_weak, label=by_supervisor, colour=COLOURS["supervisor"])
    for model, kl in placed:
        colour, gold = COLOURS[model.role], model.gold
        if model.path:
            path = start + [(x, y) for x, y in model.path if known(x) and known(y)]
            ax.plot(*zip(*path, strict=True), color=colour, linewidth=1, alpha=0.6, marker=".", markersize=4, zorder=2)
        if known(gold.lo) and known(gold.hi):
            ax.plot([kl, kl], [gold.lo, gold.hi], color=colour, linewidth=1.6, alpha=0.7, zorder=3)
        if model.kl and known(model.kl.lo) and known(model.kl.hi):
            ax.plot([model.kl.lo, model.kl.hi], [gold.value] * 2, color=colour, linewidth=1.6, alpha=0.7, zorder=3)
        ax.plot([kl], [gold.value], marker="o", markersize=6, color=colour, zorder=4)
    low, high = (_root(x) for x in ax.dataLim.intervalx)
    ax.set_xlim(_square(min(low, 0) - 0.04 * (high - low)), _square(high + 0.04 * (high - low) or 1.0))
    ax.set_ylim(padded(*ax.dataLim.intervaly))
    _name_points(ax, [(kl, model) for model, kl in placed])
    ax.set(xlabel="KL to the reference (nats a completion, root scale)", ylabel=short(report.gold_name, 40))
    draw_legend(ax, columns=2)


def _root(x: Any) -> Any:
    """A square root that keeps the sign: estimates of a small KL may be negative."""
    import numpy as np

    return np.sign(x) * np.abs(x) ** 0.5


def _square(x: Any) -> Any:
    return x * abs(x)


def _draw_best_of_n(ax: Axes, points: list[tuple[int, float, float]], *, label: str, colour: str) -> None:
    found = [point for point in points if known(point[1]) and known(point[2])]
    if not found:
        return
    _, kl, gold = zip(*found, strict=True)
    style = {"markersize": 3.5, "markerfacecolor": COLOURS["card"], "linewidth": 1, "linestyle": DASHES}
    ax.plot(kl, gold, color=colour, marker="o", label=label, zorder=2, **style)
    for n, x, y in found:
        if n > 1 and (n & (n - 1) == 0 or n == found[-1][0]):
            ax.annotate(
                str(n), (x, y), xytext=(-4, 2), textcoords="offset points", ha="right", color=colour, fontsize=6.5
            )


def _name_points(ax: Axes, points: list[tuple[float, PolicyResult]]) -> None:
    """Names down the right margin, in the order of the points and clear of one another, each tied to its point."""
    points = sorted(points, key=lambda point: point[1].gold.value)
    low, high = ax.get_ylim()
    gap = 1.4 * ax.xaxis.label.get_fontsize() / (72 * 0.7 * ax.figure.get_figheight())
    heights = spread([(model.gold.value - low) / (high - low) for _, model in points], gap)
    tie = {
        "arrowstyle": "-",
        "color": COLOURS["muted"],
        "linewidth": 0.5,
        "alpha": 0.6,
        "shrinkA": 1,
        "relpos": (0, 0.5),
        "shrinkB": 5,
    }
    for (kl, model), height in zip(points, heights, strict=True):
        where = {"xytext": (1.04, height), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        text = short(brief(model.name), _LEGIBLE)
        ax.annotate(text, (kl, model.gold.value), color=COLOURS[model.role], arrowprops=tie, **where)


def spread(heights: list[float], gap: float) -> list[float]:
    """Rising heights moved as little as brings them `gap` apart, within [0, 1] where that fits.

    Least squares under an order, by pooling neighbours that are too close.
    """
    pools: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        pools.append((height - i * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (low, m), (high, n) = pools[-2:]
            pools[-2:] = [((m * low + n * high) / (m + n), m + n)]
    free = 1 - gap * (len(heights) - 1)
    starts = [min(max(mean, 0.0), free) for mean, count in pools for _ in range(count)]
    return [start + i * gap for i, start in enumerate(starts)]
