"""All fields and metrics of a search side by side: a line a trial, the best ones on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from trimtab.ranges import LogUniform
from trimtab.search.board import brief_names, text_of
from trimtab.search.plots import COLOURS, CROWD, finished, framed, is_choice, levels_of, plain, told
from trimtab.search.record import Record, leaders
from trimtab.search.spec import SearchSpec

ABSENT = -0.14
TOP, MOST = 0.1, 5


@dataclass(frozen=True)
class _Axis:
    """A field or a metric: its values by trial, and marks with their heights from 0 to 1."""

    name: str
    heights: dict[int, float]
    marks: dict[float, str]


def parallel(spec: SearchSpec, found: Sequence[Record]) -> go.Figure:
    """A line a finished trial; the best tenth, at most 5, drawn strong; what a trial has not is at the foot."""
    done = finished(found)
    axes = [*_fields(spec, done), *(_metric(spec, done, i) for i in range(len(spec.metrics)))]
    best = [one.number for one in leaders(done, spec.modes)[: min(MOST, math.ceil(TOP * len(done)))]]
    figure, faint = go.Figure(), 0.35 if len(done) < CROWD else 0.15
    for one in sorted(done, key=lambda one: one.number in best):
        strong = one.number in best
        line = {"color": COLOURS["ceiling" if strong else "student"], "width": 2.4 if strong else 1}
        ys = [axis.heights.get(one.number, ABSENT) for axis in axes]
        text = {"hovertext": told(one), "hoverinfo": "text"}
        style = {"line": line, "opacity": 1 if strong else faint, "mode": "lines+markers", "marker": {"size": 4}}
        figure.add_scatter(x=list(range(len(axes))), y=ys, showlegend=False, **style, **text)
    framed(figure, height=400)
    absent = any(one.number not in axis.heights for one in done for axis in axes)
    figure.update_layout(annotations=[note for x, axis in enumerate(axes) for note in _notes(x, axis)])
    figure.update_yaxes(visible=False, range=[(ABSENT if absent else 0) - 0.08, 1.06])
    names = [plain(axis.name, 20) for axis in axes]
    ticks = {"tickmode": "array", "tickvals": list(range(len(axes))), "ticktext": names, "side": "top"}
    return figure.update_xaxes(**ticks, range=[-0.25, len(axes) - 0.25], tickangle=0, gridcolor=COLOURS["muted"])


def _notes(x: int, axis: _Axis) -> list[dict[str, Any]]:
    style = {"showarrow": False, "xanchor": "left", "xshift": 5, "font": {"size": 10, "color": COLOURS["ink"]}}
    style |= {"bgcolor": COLOURS["card"], "opacity": 0.85, "borderpad": 1}
    return [{"x": x, "y": height, "text": plain(text, 18), **style} for height, text in axis.marks.items()]


def _fields(spec: SearchSpec, done: Sequence[Record]) -> list[_Axis]:
    names, axes = brief_names(list(spec.space)), []
    for field, values_of in spec.space.items():
        values = {one.number: one.told.values[field] for one in done if field in one.told.values}
        if is_choice(values_of, list(values.values())):
            texts = {number: text_of(value) for number, value in values.items()}
            axes.append(_levels(names[field], texts, levels_of(values_of, list(values.values()))))
        elif values:
            axes.append(_numbers(names[field], values, log=isinstance(values_of, LogUniform)))
    return axes


def _metric(spec: SearchSpec, done: Sequence[Record], which: int) -> _Axis:
    return _numbers(spec.metrics[which], {one.number: one.objectives[which] for one in done}, log=False)


def _levels(name: str, values: dict[int, str], levels: Sequence[str]) -> _Axis:
    at = {level: i / (len(levels) - 1) if len(levels) > 1 else 0.5 for i, level in enumerate(levels)}
    return _Axis(name, {number: at[value] for number, value in values.items()}, {h: level for level, h in at.items()})


def _numbers(name: str, values: dict[int, float], *, log: bool) -> _Axis:
    scaled = {number: math.log(value) if log else float(value) for number, value in values.items()}
    low, high = min(scaled.values()), max(scaled.values())
    if low == high:
        return _Axis(name, dict.fromkeys(values, 0.5), {0.5: text_of(next(iter(values.values())))})
    heights = {number: (value - low) / (high - low) for number, value in scaled.items()}
    middle = math.exp((low + high) / 2) if log else (low + high) / 2
    marks = {0.0: min(values.values()), 0.5: middle, 1.0: max(values.values())}
    if all(isinstance(value, int) for value in values.values()) and middle % 1:
        marks.pop(0.5)
    return _Axis(name, heights, {height: text_of(float(value)) for height, value in marks.items()})
