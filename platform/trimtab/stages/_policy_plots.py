"""Plots of the report of policies: gold reward, reward against KL, win rate, preference accuracy, training curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.stages._drawing import (
    COLOURS,
    DASHES,
    draw_curves,
    draw_legend,
    draw_point,
    draw_seeds,
    draw_time,
    name_rows,
    padded,
    panels_svg,
    rows_svg,
    save_headline,
    short,
    svg,
    time_bars,
    write_beside,
)
from trimtab.stages._policy_kl import draw_kl, placed_models
from trimtab.stages._policy_page import Estimate, PolicyReport, PolicyResult, estimate_text
from trimtab.stages._report_page import duration, known, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {
    "loss": {"loss"},
    "reward margin": {"rewards/margins", "margin"},
    "share of pairs ranked right": {"rewards/accuracies", "accuracy", "agreement"},
    "log-prob of chosen": {"logps/chosen"},
}
_BOOKKEEPING = {"epoch", "grad_norm", "learning_rate", "num_tokens", "step"}
_KL_SIZE = (5.2, 3.9)


def overview(report: PolicyReport) -> dict[str, str]:
    """The plots that compare models, and where time went: name -> inline SVG, "" where there is nothing to draw."""
    scored = [model for model in report.models if known(model.gold.value)]
    bars = time_bars(report.stages)
    draws: dict[str, tuple[int, str, Callable[[Axes], None]]] = {
        "gold": (len(scored), "Gold reward by model. " + _said(scored, "gold"), partial(draw_gold, report=report)),
        "time": (
            len(bars),
            "Time by stage. " + "; ".join(f"{name}: {duration(ran + reused)}" for name, ran, reused in bars),
            partial(draw_time, bars=bars),
        ),
    }
    for name, title in {"win_rate": "Win rate against the reference", "accuracy": "Preference accuracy"}.items():
        models = [model for model in report.models if _measured(getattr(model, name))]
        label = f"{title[0].lower()}{title[1:]} (%)"
        draw = partial(draw_shares, models=models, name=name, label=label)
        draws[name] = (len(models), f"{title} by model. {_said(models, name, 1, scale=100, unit=' %')}", draw)
    drawn = {name: rows_svg(draw, rows, alt=alt) if rows else "" for name, (rows, alt, draw) in draws.items()}
    return drawn | {"kl": _kl_svg(report)}


def _said(models: list[PolicyResult], name: str, digits: int = 3, **style: Any) -> str:
    return "; ".join(f"{model.name}: {estimate_text(getattr(model, name), digits, **style)}" for model in models)


def _measured(estimate: Estimate | None) -> bool:
    return estimate is not None and known(estimate.value)


def draw_gold(ax: Axes, *, report: PolicyReport) -> None:
    """Gold reward, interval and seeds, with lines at the reference, the weak line and the ceiling."""
    models = [model for model in report.models if known(model.gold.value)]
    name_rows(ax, [model.name for model in models])
    reference, ceiling = report.first("reference"), report.first("ceiling")
    lines = {
        "reference": reference.gold.value if reference else None,
        "supervisor": report.weak_line(),
        "ceiling": ceiling.gold.value if ceiling else None,
    }
    shown = [v for m in models for v in (m.gold.value, m.gold.lo, m.gold.hi, *m.per_seed)] + list(lines.values())
    ax.set_xlim(padded(min(filter(known, shown), default=0.0), max(filter(known, shown), default=1.0)))
    for role, x in lines.items():
        if known(x):
            ax.axvline(x, color=COLOURS[role], linewidth=1, linestyle=DASHES, zorder=1, label=role)
    for y, model in enumerate(models):
        gold, colour = model.gold, COLOURS[model.role]
        draw_seeds(ax, y, values=model.per_seed, colour=colour)
        draw_point(ax, y, values=(gold.value, gold.lo, gold.hi), colour=colour)
        write_beside(ax, y, text=number(gold.value), x=1, offset=(6, 0), color=COLOURS["ink"])
    ax.set_xlabel(short(f"gold reward: {report.gold_name}", 44))
    draw_legend(ax, columns=3)


def draw_shares(ax: Axes, *, models: list[PolicyResult], name: str, label: str) -> None:
    """Bars of a share in percent with intervals, and a line at one half."""
    name_rows(ax, [model.name for model in models])
    ax.set_xlim(0, 100)
    ax.axvline(50, color=COLOURS["ink"], linewidth=1, linestyle=DASHES, zorder=2)
    for y, model in enumerate(models):
        share: Estimate = getattr(model, name)
        ax.barh(y, 100 * share.value, height=0.55, color=COLOURS[model.role], alpha=0.75)
        if known(share.lo) and known(share.hi):
            ax.plot([100 * share.lo, 100 * share.hi], [y, y], color=COLOURS["ink"], linewidth=1.4, zorder=3)
        text = number(100 * share.value, 1)
        write_beside(ax, y, text=text, x=1, offset=(6, 0), color=COLOURS["ink"])
    ax.set_xlabel(label)


def _kl_svg(report: PolicyReport) -> str:
    placed = placed_models(report)
    said = "; ".join(f"{m.name}: KL {number(kl, 2)}, reward {number(m.gold.value)}" for m, kl in placed)
    best = [f"{n}: {number(gold)}" for n, _, gold in report.best_of_n]
    alt = f"Gold reward against KL to the reference. {said}" + (f". Best of n: {', '.join(best)}" if best else "")
    return svg(lambda figure: draw_kl(figure.subplots(), report), _KL_SIZE, alt=alt) if placed else ""


def curves(report: PolicyReport) -> list[tuple[PolicyResult, str]]:
    """Inline SVG of every model that has training curves."""
    found = [(model, curve_panels(model)) for model in report.models]
    return [(model, _curves_svg(model, panels)) for model, panels in found if panels]


def _curves_svg(model: PolicyResult, panels: dict[str, list[str]]) -> str:
    style = {"colour": COLOURS[model.role], "dashed": held_out}
    drawn = {title: partial(draw_curves, curves=model.curves, keys=keys, **style) for title, keys in panels.items()}
    return panels_svg(
        drawn, wspace=0.26, alt=f"Training of {model.name}: {', '.join(panels)}; {len(model.curves)} seeds"
    )


def curve_panels(model: PolicyResult) -> dict[str, list[str]]:
    """Panel title -> metric keys; where none of the usual ones is there, up to four others."""
    keys = sorted({key for curve in model.curves for _, metrics in curve for key, v in metrics.items() if known(v)})
    usual = {title: [key for key in keys if _bare(key) in names] for title, names in _PANELS.items()}
    others = [key for key in keys if _bare(key) not in _BOOKKEEPING]
    return {title: found for title, found in usual.items() if found} or {short(k, 30): [k] for k in others[:4]}


def held_out(key: str) -> bool:
    """Measured on rows that training does not see."""
    return key.startswith(("eval_", "oracle/"))


def _bare(key: str) -> str:
    for prefix in ("eval_", "oracle/", "train/", "objective/"):
        key = key.removeprefix(prefix)
    return key


def headline_plot(report: PolicyReport, path: Path) -> None:
    """Save one PNG of 1200 x 480: gold reward by model, and reward against KL."""

    def draw(left: Axes, right: Axes) -> None:
        draw_gold(left, report=report)
        draw_kl(right, report)

    save_headline(report.title, path, draw)
