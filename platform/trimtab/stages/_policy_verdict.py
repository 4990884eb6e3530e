"""What a report of policies comes to, in words."""

from __future__ import annotations

from trimtab.stages._policy_page import PolicyReport, PolicyResult, estimate_text
from trimtab.stages._report_page import known, number, pgr_text

_LONGER = 0.2  # a change of length that is mentioned


def status(report: PolicyReport) -> str:
    """ok, uninformative or undefined."""
    best = report.best()
    if not best:
        return "undefined"
    if _side(best) != 1:
        return "uninformative"
    return best.pgr_gold.status if best.pgr_gold else "ok"


def verdict(report: PolicyReport) -> str:
    """The result in a sentence or two, with no more confidence than the numbers carry."""
    best, reference = report.best(), report.first("reference")
    if not best or not reference:
        missing = ", ".join(role for role, found in {"reference": reference, "student": best}.items() if not found)
        return f"Without a scored {missing} there is no change of gold reward to judge: this report gives numbers only."
    students = len(report.students())
    what = "student" if best.role == "student" else "guide"
    among = f"The only {what}" if students == 1 else f"The best of {students} {what}s on these test prompts"
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
