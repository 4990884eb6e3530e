"""One page for a search that needs no server, network or font: verdict, leaderboard, plots, cost, the search file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from trimtab.search import plots
from trimtab.search.board import Row, brief_names, early_names, measured_text, ranked, text_of
from trimtab.search.importance import LEAST, shares
from trimtab.search.job import Search
from trimtab.search.parallel import parallel
from trimtab.search.record import Record
from trimtab.search.spec import FEW

SHOWN = 25
"""Rows of the leaderboard that are seen at once."""
KEY = re.compile(r"\b[0-9a-f]{16}\b")
SMALL = 2
"""Below so many finished trials there is nothing to compare in a plot."""


@dataclass(frozen=True)
class Drawing:
    """A plot with what is written above and below it."""

    id: str
    title: str
    text: str
    place: str


def write_page(search: Search, found: Sequence[Record], *, final: Mapping[str, Any] | None, out: Path) -> Path:
    """Write the page to `out`; `final` is None while nothing was tested.

    It holds plotly's script once, and lets nothing in from anywhere.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    page = _rendered(search, ranked(found, search.spec.modes), final, drawn=_drawn(search, found))
    aside = out.with_name(f".{out.name}")
    aside.write_text(page, encoding="utf-8", errors="replace")
    return aside.replace(out)


def _drawn(search: Search, found: Sequence[Record]) -> list[tuple[Drawing, Any]]:
    """The plots that these trials give, in the order of the page."""
    spec, made = search.spec, []
    done = plots.finished(found)

    def add(place: str, title: str, text: str, figure: Any) -> None:
        made.append((Drawing(f"plot{len(made)}", title, text, place), figure))

    if len(done) >= SMALL and len(spec.metrics) == 2:
        add("pareto", "", "", plots.pareto(spec, found))
    for which, name in enumerate(spec.metrics) if done else ():
        several = name if len(spec.metrics) > 1 else ""
        add("history", several, "", plots.history(spec, found, which))
        if parts := shares(spec, found, which):
            add("importance", several, "", plots.importance(spec, parts))
        for field, figure in plots.slices(spec, found, which).items() if len(done) >= SMALL else ():
            add(f"slices {name}", brief_names(list(spec.space))[field], field, figure)
    if len(done) >= SMALL:
        add("parallel", "", "", parallel(spec, found))
    if any(one.told.seconds for one in found):
        add("cost", "", "", plots.cost(found, saved_seconds(search.storage / "artifacts", found)))
    return made


def saved_seconds(artifacts: Path, found: Sequence[Record]) -> dict[int, float]:
    """For every trial the seconds that stages had taken which it built on and did not run, by their records."""
    records: dict[str, dict[str, Any]] = {}

    def record(stage: str) -> dict[str, Any]:
        if stage not in records:
            path = artifacts / stage / "stage.json"
            records[stage] = json.loads(path.read_text()) if path.exists() else {"inputs": {}, "seconds": 0.0}
        return records[stage]

    saved = {}
    for one in found:
        below, todo = set(), list(one.told.ran)
        while todo:
            inputs = {ref.partition("/")[0] for ref in record(todo.pop())["inputs"].values()}
            todo += inputs - below
            below |= inputs
        saved[one.number] = sum(record(stage)["seconds"] for stage in below - set(one.told.ran))
    return saved


def _rendered(search: Search, rows: Sequence[Row], final: Mapping[str, Any] | None, *, drawn: Sequence[Any]) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        autoescape=True, loader=FunctionLoader(_source), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"value": text_of, "measured": measured_text, "interval": _interval}
    scripts = [_plotly(), _source("search.js")] if drawn else []
    figures = {drawing.id: json.loads(figure.to_json()) for drawing, figure in drawn}
    data = json.dumps({"colours": {hue: name for name, hue in plots.COLOURS.items()}, "figures": figures})
    names = brief_names(list(search.spec.space))
    found = [row.record for row in rows]
    return env.get_template("search.html.j2").render(
        search=search,
        rows=rows,
        shown=SHOWN,
        final=final,
        names=names,
        early=early_names(found),
        errors=_errors(found),
        counts=_counts(found),
        stamp=_stamp(search),
        headline=_headline(search, rows, final),
        place={place: [d for d, _ in drawn if d.place == place] for place in {d.place for d, _ in drawn}},
        least=LEAST,
        cost=_cost_text(search, found),
        file=as_yaml(search),
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'",
        data=Markup(data.replace("<", "\\u003c")),
    )


def _source(name: str) -> str:
    package = "trimtab.stages" if name == "page.css.j2" else "trimtab.search"
    return resources.files(package).joinpath(name).read_text("utf-8")


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _counts(found: Sequence[Record]) -> list[tuple[str, int]]:
    statuses = [one.status for one in found]
    return [(status, statuses.count(status)) for status in dict.fromkeys(sorted(statuses))]


def _errors(found: Sequence[Record]) -> list[tuple[str, list[int]]]:
    """Error texts with the trials that ended so, the most frequent first; what differs in keys alone counts as one."""
    said: dict[str, tuple[str, list[int]]] = {}
    for one in sorted(found, key=lambda one: one.number):
        if one.told.error:
            said.setdefault(KEY.sub("", one.told.error), (one.told.error, []))[1].append(one.number)
    return sorted(said.values(), key=lambda item: -len(item[1]))


def _stamp(search: Search) -> str:
    spec = search.spec
    rows = f"{spec.validation} validation rows, set aside before anything was drawn"
    if not spec.truth_budget:
        return f"Steered by weak labels alone: no row of truth was used, on {rows}."
    much = f" That is more truth than {FEW} rows, as the search file asked." if spec.truth_budget > FEW else ""
    return f"Steered by the truth of {spec.truth_budget} of {rows}.{much}"


def _headline(search: Search, rows: Sequence[Row], final: Mapping[str, Any] | None) -> tuple[str, str]:
    """The result in a sentence, and its kind: beats, ties, loses, or open."""
    if final:
        return final["words"], final["verdict"]
    if not rows or rows[0].rank is None:
        return "No trial has come to its end yet, so there is nothing to choose from.", "open"
    best = rows[0].record
    names = search.spec.metrics
    told = ", ".join(f"{name} {_best_text(best, i, name)}" for i, name in enumerate(names))
    kind = "One of those that none beats in both" if len(names) > 1 else "Best so far"
    return f"{kind} is trial {best.number}: {told} on validation. Nothing was tested yet.", "open"


def _best_text(record: Record, which: int, name: str) -> str:
    measured = record.told.metrics.get(name)
    return measured_text(measured) if measured else text_of(record.objectives[which])


def _interval(told: Mapping[str, float], sign: str = "") -> str:
    """Mean and interval of a final score: 0.743 [0.721, 0.764]; with `sign` + also of what is positive."""
    mean, lo, hi = (f"{told[name]:{sign}.3f}".replace("-", "\N{MINUS SIGN}") for name in ("mean", "lo", "hi"))
    return f"{mean} [{lo}, {hi}]"


def _cost_text(search: Search, found: Sequence[Record]) -> str:
    from trimtab.stages._report_page import duration

    ran, shared = sum(len(one.told.ran) for one in found), sum(one.told.shared for one in found)
    work = duration(sum(one.told.seconds for one in found))
    text = f"{len(found)} trials took {work} in all: they ran {ran} stages and found {shared} that were there."
    saved = sum(saved_seconds(search.storage / "artifacts", found).values())
    return text + (f" What they found would have taken {duration(saved)} if every trial had run it." if saved else "")


def as_yaml(search: Search) -> str:
    """The search file as it was understood, without what says nothing."""
    import yaml

    told = search.spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100)
