"""What the report's plots draw on their axes. Rows are models, first on top; colours tell roles apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trimtab.stages._drawing import COLOURS, draw_point, draw_reference, draw_seeds, name_rows, padded, write_beside
from trimtab.stages._report_page import ModelResult, known, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_pgr(ax: Axes, models: list[ModelResult]) -> None:
    """PGR and interval; small dots are seeds against the mean supervisor and ceiling: their mean is the point."""
    name_rows(ax, [model.name for model in models])
    ax.set_xlim(_pgr_window(models))
    draw_reference(ax, 0, name="supervisor", side="right")
    draw_reference(ax, 1, name="ceiling", side="left")
    for y, model in enumerate(models):
        pgr = model.pgr
        if pgr.status == "undefined" or not known(pgr.value):
            write_beside(ax, y, text="undefined", x=1, offset=(6, 0), color=COLOURS["muted"], style="italic")
            continue
        solid = pgr.status == "ok"
        draw_seeds(ax, y, values=_pgr_of_seeds(model), colour=COLOURS[model.role])
        draw_point(ax, y, values=(pgr.value, pgr.lo, pgr.hi), colour=COLOURS[model.role], solid=solid)
        text = number(pgr.value, 2) + ("" if solid else f"  {pgr.status}")
        write_beside(ax, y, text=text, x=1, offset=(6, 0), color=COLOURS["ink" if solid else "muted"])
    ax.set_xlabel("performance gap recovered (PGR)")


def _pgr_of_seeds(model: ModelResult) -> list[float]:
    return [(seed - model.pgr.weak) / (model.pgr.ceiling - model.pgr.weak) for seed in model.per_seed]


def _pgr_window(models: list[ModelResult]) -> tuple[float, float]:
    """All of what is informative, within [-2, 3]; points of the rest count within [-0.5, 1.5]."""
    sure = [m for m in models if m.pgr.status == "ok"]
    rest = [m for m in models if m.pgr.status == "uninformative"]
    wide = [v for m in sure for v in (m.pgr.value, m.pgr.lo, m.pgr.hi, *_pgr_of_seeds(m)) if known(v)]
    near = [min(max(m.pgr.value, -0.5), 1.5) for m in rest if known(m.pgr.value)]
    return padded(max(-2.0, min([-0.1, *wide, *near])), min(3.0, max([1.1, *wide, *near])))


def draw_accuracy(ax: Axes, models: list[ModelResult]) -> None:
    """Accuracy and interval, with lines at the supervisor and the ceiling."""
    name_rows(ax, [model.name for model in models])
    shown = [100 * v for m in models for v in (m.accuracy, m.lo, m.hi, *m.per_seed) if known(v)]
    ax.set_xlim(padded(min(shown, default=0.0), max(shown, default=100.0)))
    lines = {role: [100 * m.accuracy for m in models if m.role == role][:1] for role in ("supervisor", "ceiling")}
    swapped = sum(lines["supervisor"]) > sum(lines["ceiling"] or [math.inf])
    for (role, at), side in zip(lines.items(), ("left", "right") if swapped else ("right", "left"), strict=True):
        for x in at:
            draw_reference(ax, x, name=role, side=side)
    for y, model in enumerate(models):
        draw_seeds(ax, y, values=[100 * seed for seed in model.per_seed], colour=COLOURS[model.role])
        draw_point(
            ax, y, values=tuple(100 * v for v in (model.accuracy, model.lo, model.hi)), colour=COLOURS[model.role]
        )
        write_beside(ax, y, text=percent(model.accuracy), x=1, offset=(6, 0), color=COLOURS["ink"])
    ax.set_xlabel("accuracy on the test split (%)")


def draw_agreement(ax: Axes, models: list[ModelResult]) -> None:
    """Two bars a model: rows where the supervisor is right, rows where it is wrong."""
    name_rows(ax, [model.name for model in models])
    for key, shift, name, colour in (
        ("supervisor_right", -0.19, "supervisor right", "student"),
        ("supervisor_wrong", 0.19, "supervisor wrong", "wrong"),
    ):
        shares = [model.agreement.get(key) for model in models]
        at = [(y + shift, 100 * share) for y, share in enumerate(shares) if known(share)]
        ax.barh([y for y, _ in at], [x for _, x in at], height=0.32, color=COLOURS[colour], label=name)
        for y, x in at:
            write_beside(ax, y, text=number(x, 1), x=1, offset=(6, 0), color=COLOURS[colour], fontsize="small")
    ax.set_xlim(0, 100)
    ax.set_xlabel("test rows with the supervisor's answer (%)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, borderpad=0.2)


def curve_panels(model: ModelResult) -> dict[str, list[str]]:
    """Panel title -> metric keys that it draws; keys that belong nowhere are left out."""
    keys = {key for curve in model.curves for _, metrics in curve for key in metrics}
    losses = sorted(keys & {"loss", "train/loss", "oracle/loss"})
    shares = sorted(keys & {"eval_agreement"} | {key for key in keys if is_oracle(key)} - set(losses))
    labels = "labels" if model.role in ("supervisor", "ceiling") else "weak labels"
    agreement = f"agreement with {labels}" if any(not is_oracle(key) for key in shares) else "oracle"
    return {title: found for title, found in (("training loss", losses), (agreement, shares)) if found}


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


def is_oracle(key: str) -> bool:
    return key.startswith("oracle/")
