"""Drawings of a search by plotly, in the colours of the page's light look; its script puts in the reader's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from trimtab.ranges import AnyRange, Choice, LogUniform
from trimtab.search.board import brief_names, text_of
from trimtab.search.record import Record, front, leaders
from trimtab.search.spec import SearchSpec
from trimtab.stages._drawing import COLOURS as HUES

COLOURS = {name: HUES[name] for name in ("ink", "muted", "line", "card", "supervisor", "student", "ceiling", "wrong")}
BEST = {"color": COLOURS["ceiling"], "size": 11, "symbol": "diamond", "line": {"width": 1, "color": COLOURS["card"]}}
OTHER = {"color": COLOURS["student"], "size": 7, "line": {"width": 1, "color": COLOURS["card"]}}
LONG, CROWD = 26, 60
AXIS = {"gridcolor": COLOURS["line"], "linecolor": COLOURS["line"], "zeroline": False, "automargin": True}


def plain(text: str, limit: int = LONG) -> str:
    """A text as plotly shows it letter by letter; a long one loses its middle."""
    tail = limit // 3
    return escape(text if len(text) <= limit else f"{text[: limit - tail - 1]}…{text[-tail:]}")


def framed(figure: go.Figure, *, height: int, x: str = "", y: str = "") -> go.Figure:
    title = {"font": {"size": 12, "color": COLOURS["muted"]}, "standoff": 8}
    figure.update_layout(
        height=height,
        template=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": COLOURS["ink"]},
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        dragmode=False,
        hoverlabel={"bgcolor": COLOURS["card"], "font": {"color": COLOURS["ink"]}, "bordercolor": COLOURS["line"]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": COLOURS["muted"]}},
    )
    for update, text in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        update(**AXIS, title=title | {"text": plain(text, 48)}, tickfont={"color": COLOURS["muted"], "size": 11})
    return figure


def told(record: Record) -> str:
    """What stands beside a point: the trial, its values, its metrics."""
    values = [f"{plain(name, 48)} = {plain(text_of(value), 40)}" for name, value in record.told.values.items()]
    metrics = [f"{plain(name, 48)} {m.mean:.3f} [{m.lo:.3f}, {m.hi:.3f}]" for name, m in record.told.metrics.items()]
    return "<br>".join([f"<b>trial {record.number}</b> ({record.status})", *values, *metrics])


def finished(found: Sequence[Record]) -> list[Record]:
    return [one for one in found if one.status == "done" and one.objectives]


def history(spec: SearchSpec, found: Sequence[Record], which: int) -> go.Figure:
    """A metric of every trial in the order they came, the best so far, and trials without a result at the foot."""
    name, mode, done = spec.metrics[which], spec.modes[which], finished(found)
    values = [one.objectives[which] for one in done]
    spans = [_span(one, name, value) for one, value in zip(done, values, strict=True)]
    error = {"array": [hi - v for v, (_, hi) in zip(values, spans, strict=True)]}
    error |= {"arrayminus": [v - lo for v, (lo, _) in zip(values, spans, strict=True)], "symmetric": False}
    error |= {"thickness": 1, "width": 0, "color": COLOURS["student"]}
    at, hover = [one.number for one in done], [told(one) for one in done]
    crowded = len(done) > CROWD
    marks = {"x": at, "y": values, "hovertext": hover, "hoverinfo": "text"} | ({} if crowded else {"error_y": error})
    called = "trial" if crowded else "trial and its interval"
    figure = go.Figure(go.Scatter(**marks, mode="markers", marker=OTHER, name=called))
    better = max if mode == "max" else min
    so_far = [better(values[: i + 1]) for i in range(len(values))]
    line = {"color": COLOURS["ceiling"], "shape": "hv", "width": 2}
    figure.add_scatter(x=at, y=so_far, mode="lines", line=line, name="best so far", hoverinfo="skip")
    low, high = min((lo for lo, _ in spans), default=0.0), max((hi for _, hi in spans), default=1.0)
    foot = low - 0.06 * (high - low or 1.0)
    for status, symbol, colour in (("pruned", "line-ns-open", "muted"), ("failed", "x-thin-open", "wrong")):
        without = [one for one in found if one.status == status]
        if without:
            marker = {"symbol": symbol, "color": COLOURS[colour], "size": 8, "line": {"width": 2}}
            spots = {"x": [one.number for one in without], "y": [foot] * len(without)}
            text = {"hovertext": [told(one) for one in without], "hoverinfo": "text"}
            figure.add_scatter(**spots, **text, mode="markers", marker=marker, name=status)
    return framed(figure, height=320, x="trial", y=name)


def _span(record: Record, name: str, value: float) -> tuple[float, float]:
    measured = record.told.metrics.get(name)
    return (min(measured.lo, value), max(measured.hi, value)) if measured else (value, value)


def is_choice(field: AnyRange, values: Sequence[Any]) -> bool:
    return isinstance(field, Choice) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values)


def slices(spec: SearchSpec, found: Sequence[Record], which: int) -> dict[str, go.Figure]:
    """A metric against each field, a small plot each; trials that have no such field are left out."""
    best = leaders(list(found), spec.modes)[:1]
    drawn = {}
    for field, values_of in spec.space.items():
        here = [one for one in finished(found) if field in one.told.values]
        if not here:
            continue
        values = [one.told.values[field] for one in here]
        levels = levels_of(values_of, values) if is_choice(values_of, values) else []
        figure = go.Figure()
        for group, marker in (([one for one in here if one not in best], OTHER), (best, BEST)):
            points = [one for one in group if field in one.told.values]
            at = [one.told.values[field] for one in points]
            xs = [levels.index(text_of(value)) for value in at] if levels else at
            ys, text = [one.objectives[which] for one in points], [told(one) for one in points]
            style = {"mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "text"}
            figure.add_scatter(x=xs, y=ys, hovertext=text, **style)
        framed(figure, height=230).update_xaxes(_ticks(values_of, levels))
        drawn[field] = figure
    return drawn


def levels_of(values_of: AnyRange, values: Sequence[Any]) -> list[str]:
    """The texts of the values of a choice, in its own order."""
    order = values_of.choice if isinstance(values_of, Choice) else ()
    return list(dict.fromkeys(text_of(value) for value in [*order, *values]))


def _ticks(values_of: AnyRange, levels: Sequence[str]) -> dict[str, Any]:
    if not levels:
        return (
            {"type": "log", "dtick": 1, "exponentformat": "power"}
            if isinstance(values_of, LogUniform)
            else {"nticks": 5}
        )
    texts = [plain(level, 12 if len(levels) < 4 else 8) for level in levels]
    ticks = {"tickmode": "array", "tickvals": list(range(len(levels))), "ticktext": texts}
    return ticks | {"range": [-0.5, len(levels) - 0.5], "showgrid": False, "tickangle": 0}


def pareto(spec: SearchSpec, found: Sequence[Record]) -> go.Figure:
    """Both metrics of every finished trial; those that none beats in both are joined."""
    done = finished(found)
    best = sorted(front(done, spec.modes), key=lambda one: one.objectives)
    figure = go.Figure()
    rest = [one for one in done if one not in best]
    joined = {"mode": "lines+markers", "line": {"color": COLOURS["ceiling"], "width": 1, "shape": "linear"}}
    for group, name, style in (
        (rest, "beaten in both", {"mode": "markers", "marker": OTHER | {"color": COLOURS["muted"]}}),
        (best, "Pareto front", joined | {"marker": BEST}),
    ):
        xs, ys = [one.objectives[0] for one in group], [one.objectives[1] for one in group]
        text = {"hovertext": [told(one) for one in group], "hoverinfo": "text"}
        figure.add_scatter(x=xs, y=ys, name=name, **text, **style)
    words = [
        f"{name} ({'more' if mode == 'max' else 'less'} is better)"
        for name, mode in zip(spec.metrics, spec.modes, strict=True)
    ]
    return framed(figure, height=420, x=words[0], y=words[1])


def cost(found: Sequence[Record], saved: dict[int, float]) -> go.Figure:
    """Seconds of every trial, and those that stages had taken which it found."""
    figure, at = go.Figure(), [one.number for one in found]
    text = {"hovertext": [told(one) for one in found], "hoverinfo": "text+y"}
    figure.add_bar(x=at, y=[one.told.seconds for one in found], marker_color=COLOURS["student"], name="took", **text)
    hatched = {"color": "rgba(0,0,0,0)", "line": {"color": COLOURS["muted"], "width": 1}}
    hatched["pattern"] = {"shape": "/", "fgcolor": COLOURS["muted"], "bgcolor": "rgba(0,0,0,0)", "size": 5}
    if any(saved.values()):
        ys = [saved.get(one.number, 0.0) for one in found]
        figure.add_bar(x=at, y=ys, marker=hatched, name="saved by stages found", hoverinfo="y")
    figure.update_layout(barmode="stack", bargap=0.25)
    return framed(figure, height=320, x="trial", y="seconds")


def bars(shares: dict[str, float], names: Callable[[str], str]) -> go.Figure:
    """Shares by name, the greatest on top."""
    order = sorted(shares, key=shares.__getitem__)
    marks = {"x": [shares[name] for name in order], "y": [plain(names(name)) for name in order], "orientation": "h"}
    words = [f"{shares[name]:.0%}" for name in order]
    hover = {"hovertext": [plain(name, 80) for name in order], "hoverinfo": "text"}
    figure = go.Figure(go.Bar(**marks, **hover, text=words, textposition="outside", cliponaxis=False))
    figure.update_traces(marker_color=COLOURS["student"], width=0.6)
    framed(figure, height=90 + 34 * len(order))
    return figure.update_xaxes(range=[0, 1.12 * max(shares.values())], showticklabels=False, showgrid=False)


def importance(spec: SearchSpec, shares: dict[str, float]) -> go.Figure:
    return bars(shares, brief_names(list(spec.space)).__getitem__)
