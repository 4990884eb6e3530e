"""The report of an experiment: what it shows, its verdict in words, its table, and one self-contained HTML page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

if TYPE_CHECKING:
    from trimtab.metrics import Pgr

Role = Literal["supervisor", "student", "ceiling", "intermediate", "judge"]
Curve = list[tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class ModelResult:
    """One model on the test split, averaged over seeds; bins are (confidence, accuracy, count); a curve a seed."""

    name: str
    role: Role
    accuracy: float
    lo: float
    hi: float
    per_seed: list[float] = field(default_factory=list)
    auroc: float | None = None
    ece: float | None = None
    brier: float | None = None
    pgr: Pgr | None = None
    agreement: dict[str, float | None] | None = None
    calibration: list[tuple[float, float, int]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


@dataclass(frozen=True)
class StageTime:
    """Seconds that a stage took; for a cached one, when it ran. `started` is in seconds since the epoch."""

    label: str
    stage: str
    seconds: float
    cached: bool
    started: float | None = None


@dataclass(frozen=True)
class SplitSummary:
    """Rows of one split and how many of each class."""

    seed: int
    split: str
    rows: int
    classes: dict[str, int]


@dataclass(frozen=True)
class LabelQuality:
    """Weak labels of one hop, or one maker, against the truth; `noise` is the share whose argmax is wrong."""

    seed: int
    hop: int | str
    accuracy: float
    ece: float | None
    brier: float | None
    noise: float | None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. All texts count as untrusted. `level` is that of every interval.

    `finding` is the verdict of an experiment that asks more than how much of the gap is recovered.
    """

    title: str
    job_file: str
    versions: dict[str, str]
    commit: str | None
    created: str
    models: list[ModelResult]
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: list[SplitSummary] = field(default_factory=list)
    label_quality: list[LabelQuality] = field(default_factory=list)
    level: float = 0.95
    finding: str = ""

    def of_role(self, role: Role) -> list[ModelResult]:
        return [model for model in self.models if model.role == role]


def known(value: float | None) -> TypeGuard[float]:
    """Neither missing nor infinite nor NaN."""
    return value is not None and math.isfinite(value)


def brief(name: str) -> str:
    """A model's name where its role shows otherwise."""
    return name.removeprefix("student.").removeprefix("guided.")


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals with a true minus sign; a dash for what is missing."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}") if known(value) else "–"


def percent(value: float | None) -> str:
    return f"{number(100 * value, 1)} %" if known(value) else "–"


def accuracy_text(model: ModelResult) -> str:
    """Accuracy and interval: 88.6 % [87.1, 90.0]."""
    interval = f" [{number(100 * model.lo, 1)}, {number(100 * model.hi, 1)}]"
    return percent(model.accuracy) + (interval if known(model.lo) and known(model.hi) else "")


def pgr_text(pgr: Pgr | None) -> str:
    """PGR, interval and status word: 0.47 [0.31, 0.62] ok."""
    if pgr is None:
        return "–"
    if pgr.status == "undefined" or not known(pgr.value):
        return "undefined"
    interval = f" [{number(pgr.lo, 2)}, {number(pgr.hi, 2)}]" if known(pgr.lo) and known(pgr.hi) else ""
    return f"{number(pgr.value, 2)}{interval} {pgr.status}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary_table(data: ReportData) -> list[list[str]]:
    """Head row, then a row a model: name, accuracy with interval, PGR with interval and status word."""
    rows = [[model.name, accuracy_text(model), pgr_text(model.pgr)] for model in data.models]
    return [["model", "accuracy", "PGR"], *rows]


def verdict(data: ReportData) -> str:
    """The result in one sentence, with no more confidence than the numbers carry."""
    if data.finding:
        return data.finding
    supervisors, ceilings = data.of_role("supervisor"), data.of_role("ceiling")
    students = [model for model in data.of_role("student") if known(model.accuracy)]
    if not (supervisors and ceilings and students):
        needed = {"supervisor": supervisors, "ceiling": ceilings, "student": students}
        missing = ", ".join(role for role, found in needed.items() if not found)
        return f"Without a scored {missing} there is no performance gap to recover: this report gives accuracies only."
    best = max(students, key=lambda model: model.accuracy)
    gap = _gap_clause(supervisors[0], ceilings[0])
    among = "the only student" if len(students) == 1 else f"the best of {len(students)} students on these test rows"
    return f"{gap}; {among}, {best.name}, reaches {percent(best.accuracy)}, {_pgr_clause(best, supervisors[0])}."


def _gap_clause(supervisor: ModelResult, ceiling: ModelResult) -> str:
    points = 100 * (ceiling.accuracy - supervisor.accuracy)
    if not math.isfinite(points):
        return "Supervisor or ceiling has no accuracy"
    side = "above" if points >= 0 else "below"
    ceiling_at, supervisor_at = percent(ceiling.accuracy), percent(supervisor.accuracy)
    return f"The ceiling ({ceiling_at}) lies {abs(points):.1f} points {side} the supervisor ({supervisor_at})"


def _pgr_clause(best: ModelResult, supervisor: ModelResult) -> str:
    pgr, against = best.pgr, "above" if best.accuracy > supervisor.accuracy else "not above"
    if pgr is None:
        return f"{against} its supervisor; PGR was not computed"
    if pgr.status == "undefined" or not known(pgr.value):
        return f"{against} its supervisor; PGR is undefined, because the ceiling does not beat the supervisor"
    if pgr.status == "uninformative":
        return f"{against} its supervisor; PGR is uninformative, because that gap is within two of its standard errors"
    shown = f"PGR {pgr_text(pgr).removesuffix(' ok')}"
    if known(pgr.lo) and known(pgr.hi) and pgr.lo <= 0 <= pgr.hi:
        return f"which is not clearly different from its supervisor: {shown} is informative and its interval holds 0"
    if pgr.value < 0:
        return f"below its supervisor: {shown} is informative and negative"
    if pgr.value > 1:
        return f"more than the ceiling: {shown} is informative and exceeds 1"
    return f"recovering {number(100 * pgr.value, 0)} % of that gap: {shown} is informative"


def render_page(data: ReportData) -> str:
    """One HTML page that needs no server, network, font or script."""
    from markupsafe import Markup

    from trimtab.stages import _report_plots as plots

    return render(
        "report.html.j2",
        d=data,
        verdict=verdict(data),
        status=_status(data),
        basis=_basis(data),
        table=_page_table(data),
        plots=plots.overview(data),
        curves=[(model, Markup(svg)) for model, svg in plots.curves(data)],
        calibration=[(model, Markup(svg)) for model, svg in plots.calibrations(data)],
        agreeing=[model for model in data.models if model.agreement],
        time=time_text(data.stages),
    )


def render(template: str, *, plots: dict[str, str], **shown: Any) -> str:
    """A page from a template that extends page.html.j2; all text but the plots is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    sources = FunctionLoader(lambda name: resources.files("trimtab.stages").joinpath(name).read_text("utf-8"))
    env = Environment(autoescape=True, loader=sources, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"number": number, "percent": percent, "brief": brief}
    drawn = {name: Markup(svg) for name, svg in plots.items()}
    return env.get_template(template).render(plots=drawn, **shown).encode("utf-8", "replace").decode("utf-8")


def _status(data: ReportData) -> str:
    found = {model.pgr.status for model in data.of_role("student") if model.pgr}
    return next((status for status in ("ok", "uninformative", "undefined") if status in found), "undefined")


def _basis(data: ReportData) -> str:
    counts = [(model.pgr.n_test, model.pgr.seeds) for model in data.models if model.pgr]
    interval = (
        f"Brackets are {100 * data.level:g} % intervals: a bootstrap over test rows and seeds, paired across models."
    )
    if not counts:
        return interval
    n_test, seeds = counts[0]
    return f"{n_test} test rows, {seeds} {'seed' if seeds == 1 else 'seeds'}. {interval}"


def _page_table(data: ReportData) -> list[dict[str, Any]]:
    rows = zip(data.models, summary_table(data)[1:], strict=True)
    return [{"model": model, "cells": cells, "status": model.pgr.status if model.pgr else ""} for model, cells in rows]


def time_text(stages: list[StageTime]) -> str:
    """How many stages ran, how long they took, and what reuse saved."""
    ran = [stage for stage in stages if not stage.cached]
    text = f"{len(ran)} of {len(stages)} stages ran, {duration(sum(stage.seconds for stage in ran))} of work"
    begun = [stage for stage in ran if known(stage.started)]
    if ran and len(begun) == len(ran):
        span = max(s.started + s.seconds for s in begun) - min(s.started for s in begun)
        text += f" in {duration(span)} from first start to last end"
    saved = sum(stage.seconds for stage in stages if stage.cached)
    return text + (f"; the reused ones had taken {duration(saved)}." if saved else ".")
