"""The report of a preference experiment: what it shows, its verdict in words, its table, and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trimtab.stages._report_page import Curve, LabelQuality, StageTime, known, number, pgr_text, render, time_text

if TYPE_CHECKING:
    from trimtab.metrics import Pgr

PolicyRole = Literal["reference", "supervisor", "student", "ceiling"]
_SHOWN, _LETTERS = 6, 600  # prompts on the page, and characters of a text
_LONGER = 0.2  # a change of length that the verdict mentions


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
    completion, to the reference; `length` in tokens. `path` holds (kl, gold) after each on-policy round, the model's
    own last. A curve a seed.
    """

    name: str
    role: PolicyRole
    gold: Estimate
    gain: Estimate | None = None
    win_rate: Estimate | None = None
    accuracy: Estimate | None = None
    kl: Estimate | None = None
    length: float | None = None
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
        """Students that have a gold reward."""
        return [model for model in self.models if model.role == "student" and known(model.gold.value)]

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
    return [[*head, "KL", "tokens"], *(_cells(model) for model in report.models)]


def _cells(model: PolicyResult) -> list[str]:
    shares = [estimate_text(share, 1, scale=100, unit=" %") for share in (model.win_rate, model.accuracy)]
    ratios = [pgr_text(model.pgr_gold), pgr_text(model.pgr_accuracy)]
    amounts = [estimate_text(model.gold), estimate_text(model.gain)]
    return [model.name, *amounts, *shares, *ratios, estimate_text(model.kl, 2), number(model.length, 1)]


def verdict(report: PolicyReport) -> str:
    """The result in a sentence or two, with no more confidence than the numbers carry."""
    best, reference = report.best(), report.first("reference")
    if not best or not reference:
        missing = ", ".join(role for role, found in {"reference": reference, "student": best}.items() if not found)
        return f"Without a scored {missing} there is no change of gold reward to judge: this report gives numbers only."
    students = len(report.students())
    among = "The only student" if students == 1 else f"The best of {students} students on these test prompts"
    first = f"{among}, {best.name}, {_gain_clause(report, best, reference)}"
    return " ".join(part for part in (first, _place(report, best), _length_clause(best, reference)) if part)


def _gain_clause(report: PolicyReport, best: PolicyResult, reference: PolicyResult) -> str:
    gold, before, after = f"gold reward ({report.gold_name})", number(reference.gold.value), number(best.gold.value)
    between, level = f"from {before} for the reference to {after}", f"{100 * report.level:g} % interval"
    side = _side(best)
    if side is None:
        return f"moves the {gold} {between}; without an interval of the gain, that may be chance."
    shown = f"the gain is {estimate_text(best.gain)}"
    if side == 0:
        return f"does not clearly change the {gold}, {between}: {shown}, and its {level} holds 0."
    return f"{'raises' if side > 0 else 'lowers'} the {gold} {between}: {shown}, and its {level} excludes 0."


def _side(best: PolicyResult) -> int | None:
    """1 or -1 where the gain's interval excludes 0 from above or below, 0 where it holds 0, None without one."""
    gain = best.gain
    if gain is None or not (known(gain.value) and known(gain.lo) and known(gain.hi)):
        return None
    return (gain.lo > 0) - (gain.hi < 0)


def _place(report: PolicyReport, best: PolicyResult) -> str:
    """Where the student stands between the weak line and the ceiling."""
    pgr, ceiling = best.pgr_gold, report.first("ceiling")
    other = best.pgr_accuracy.status if best.pgr_accuracy else "ok"
    aside = f"; PGR of the preference accuracy is {other}" if other != "ok" else ""
    if pgr is None:
        reach = f"; the ceiling reaches {number(ceiling.gold.value)}" if ceiling else ""
        return f"There is no PGR of the gold reward{reach}{aside}."
    weak, top = f"the weak line ({number(pgr.weak)})", f"the ceiling ({number(pgr.ceiling)})"
    shown = f"PGR {pgr_text(pgr).removesuffix(' ok')}"
    if pgr.status == "undefined" or not known(pgr.value):
        return f"PGR of the gold reward is undefined, because {top} is not above {weak}{aside}."
    if pgr.status == "uninformative":
        gap = f"the gap from {weak} to {top} is within two of its standard errors"
        return f"PGR of the gold reward is uninformative, because {gap}{aside}."
    if known(pgr.lo) and known(pgr.hi) and pgr.lo <= 0 <= pgr.hi:
        return f"It is not clearly different from {weak}: {shown} is informative and its interval holds 0{aside}."
    if pgr.value < 0:
        return f"It stays below {weak}: {shown} is informative and negative{aside}."
    if pgr.value > 1:
        return f"It lies above {top}: {shown} is informative and exceeds 1{aside}."
    recovered = f"It recovers {number(100 * pgr.value, 0)} % of the gap from {weak} to {top}"
    return f"{recovered}: {shown} is informative{aside}."


def _length_clause(best: PolicyResult, reference: PolicyResult) -> str:
    if not (known(best.length) and known(reference.length) and reference.length > 0):
        return ""
    change = best.length / reference.length - 1
    if abs(change) < _LONGER:
        return ""
    side, tokens = (
        "longer" if change > 0 else "shorter",
        f"{number(best.length, 1)} against {number(reference.length, 1)}",
    )
    return f"Its completions are {abs(100 * change):.0f} % {side} than the reference's ({tokens} tokens)."


def render_page(report: PolicyReport) -> str:
    """One HTML page that needs no server, network, font or script."""
    from markupsafe import Markup

    from trimtab.stages import _policy_plots as plots

    return render(
        "policy_report.html.j2",
        d=report,
        verdict=verdict(report),
        status=_status(report),
        head=summary_table(report)[0],
        rows=[{"model": model, "cells": _cells(model)} for model in report.models],
        plots=plots.overview(report),
        curves=[(model, Markup(svg)) for model, svg in plots.curves(report)],
        samples=_samples(report),
        time=time_text(report.stages),
    )


def _status(report: PolicyReport) -> str:
    best = report.best()
    if not best:
        return "undefined"
    if _side(best) != 1:
        return "uninformative"
    return best.pgr_gold.status if best.pgr_gold else "ok"


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
