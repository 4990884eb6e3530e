"""The report of policies: what it shows, its table, its numbers by name, and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trimtab.stages._report_page import Curve, LabelQuality, StageTime, known, number, pgr_text, render, time_text

if TYPE_CHECKING:
    from trimtab.metrics import Pgr
    from trimtab.stages._base import Metrics

PolicyRole = Literal["reference", "supervisor", "student", "guided", "ceiling"]
_SHOWN, _LETTERS = 6, 600  # prompts on the page, and characters of a text


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; None where it was not measured or not resampled."""

    value: float | None
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Sample:
    """One completion and its gold reward."""

    prompt: str
    completion: str
    gold: float | None


@dataclass(frozen=True)
class PolicyResult:
    """One model on the test prompts, averaged over seeds.

    `gain` and `win_rate` are against the reference on the same prompts (both orders averaged, ties half). `accuracy`
    is that of held-out preferences, by the implicit reward of a policy or by a reward model. `kl` is in nats a
    completion, to the reference; `length` in tokens, `speed` in tokens/s. `path` holds (kl, gold) after each on-policy
    round, the model's own last. A curve a seed.
    """

    name: str
    role: PolicyRole
    gold: Estimate
    gain: Estimate | None = None
    win_rate: Estimate | None = None
    accuracy: Estimate | None = None
    kl: Estimate | None = None
    length: float | None = None
    speed: float | None = None
    pgr_gold: Pgr | None = None
    pgr_accuracy: Pgr | None = None
    per_seed: list[float] = field(default_factory=list)
    path: list[tuple[float, float]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class PolicyReport:
    """Everything a report shows. All texts count as untrusted. `level` is that of every interval.

    Best-of-n points are (n, KL in nats, expected gold reward); `counts` says what became of rows and pairs, in order.
    """

    title: str
    job_file: str
    versions: dict[str, str]
    commit: str | None
    created: str
    models: list[PolicyResult]
    best_of_n: list[tuple[int, float, float]] = field(default_factory=list)
    best_of_n_weak: list[tuple[int, float, float]] = field(default_factory=list)
    label_quality: list[LabelQuality] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gold_name: str = "gold reward"
    seeds: int = 1
    n_test: int = 0
    level: float = 0.95

    def first(self, role: PolicyRole) -> PolicyResult | None:
        """The first model of this role that has a gold reward."""
        return next((model for model in self.models if model.role == role and known(model.gold.value)), None)

    def students(self) -> list[PolicyResult]:
        """Students, and guided bases, that have a gold reward."""
        return [model for model in self.models if model.role in ("student", "guided") and known(model.gold.value)]

    def best(self) -> PolicyResult | None:
        return max(self.students(), key=lambda model: model.gold.value, default=None)

    def weak_line(self) -> float | None:
        """What PGR counts from: the gold reward of the supervisor."""
        found = [model.pgr_gold.weak for model in self.models if model.pgr_gold]
        supervisor = self.first("supervisor")
        return found[0] if found else supervisor.gold.value if supervisor else None


def estimate_text(estimate: Estimate | None, digits: int = 3, *, scale: float = 1, unit: str = "") -> str:
    """Value, unit and interval: 61.2 % [57.0, 65.3]."""
    if estimate is None or not known(estimate.value):
        return "–"
    text = number(scale * estimate.value, digits) + unit
    if not (known(estimate.lo) and known(estimate.hi)):
        return text
    return f"{text} [{number(scale * estimate.lo, digits)}, {number(scale * estimate.hi, digits)}]"


def summary_table(report: PolicyReport) -> list[list[str]]:
    """Head row, then a row a model; brackets are intervals, PGR carries its status word."""
    head = ["model", "gold reward", "gain", "win rate", "preference accuracy", "PGR (gold)", "PGR (accuracy)"]
    whole = [[*head, "KL", "tokens", "tokens/s"], *(_cells(model) for model in report.models)]
    told = [i for i, column in enumerate(zip(*whole[1:], strict=True)) if i == 0 or set(column) != {"–"}]
    return [[row[i] for i in told] for row in whole]


def _cells(model: PolicyResult) -> list[str]:
    shares = [estimate_text(share, 1, scale=100, unit=" %") for share in (model.win_rate, model.accuracy)]
    ratios = [pgr_text(model.pgr_gold), pgr_text(model.pgr_accuracy)]
    amounts = [estimate_text(model.gold), estimate_text(model.gain)]
    return [
        model.name,
        *amounts,
        *shares,
        *ratios,
        estimate_text(model.kl, 2),
        number(model.length, 1),
        number(model.speed, 0),
    ]


def metrics_of(data: PolicyReport) -> Metrics:
    """Every number of the table, by model/what; limits of intervals end in _lo and _hi."""
    values: dict[str, float | None] = {}
    for model in data.models:
        for what in ("gold", "gain", "win_rate", "accuracy", "kl"):
            found = getattr(model, what)
            if found:
                values |= {f"{model.name}/{what}": found.value, f"{model.name}/{what}_lo": found.lo}
                values |= {f"{model.name}/{what}_hi": found.hi}
        values |= {f"{model.name}/tokens": model.length, f"{model.name}/tokens_per_second": model.speed}
        for what, pgr in {"pgr_gold": model.pgr_gold, "pgr_accuracy": model.pgr_accuracy}.items():
            if pgr and pgr.value is not None:
                values |= {f"{model.name}/{what}": pgr.value, f"{model.name}/{what}_lo": pgr.lo}
                values |= {
                    f"{model.name}/{what}_hi": pgr.hi,
                    f"{model.name}/{what}_informative": float(pgr.status == "ok"),
                }
    return {name: float(value) for name, value in values.items() if value is not None}


def render_page(report: PolicyReport) -> str:
    """One HTML page that needs no server, network, font or script."""
    from markupsafe import Markup

    from trimtab.stages import _policy_plots as plots
    from trimtab.stages._policy_verdict import status, verdict

    head, *cells = summary_table(report)
    return render(
        "policy_report.html.j2",
        d=report,
        verdict=verdict(report),
        status=status(report),
        head=head,
        rows=[{"model": model, "cells": own} for model, own in zip(report.models, cells, strict=True)],
        plots=plots.overview(report),
        curves=[(model, Markup(svg)) for model, svg in plots.curves(report)],
        samples=_samples(report),
        time=time_text(report.stages),
    )


def _samples(report: PolicyReport) -> dict[str, Any]:
    """The same few prompts by one model a role, those first that most of them have answered."""
    chosen = [report.first("reference"), report.first("supervisor"), report.best(), report.first("ceiling")]
    models = [model for model in chosen if model and model.samples]
    by_prompt = [{sample.prompt: sample for sample in reversed(model.samples)} for model in models]
    prompts = dict.fromkeys(sample.prompt for model in models for sample in model.samples)
    shown = sorted(prompts, key=lambda prompt: -sum(prompt in found for found in by_prompt))[:_SHOWN]
    rows = [(_clipped(prompt), [_answer(found.get(prompt)) for found in by_prompt]) for prompt in shown]
    return {"models": models, "rows": rows, "prompts": len(prompts)}


def _answer(sample: Sample | None) -> tuple[str, str] | None:
    return sample and (_clipped(sample.completion), number(sample.gold))


def _clipped(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
