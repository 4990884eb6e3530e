"""Stage debate_report: did debate help? The report of an experiment, with every gain against every control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.report import Parts, collected, metrics_of, predicted, write_report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trimtab.metrics import Interval
    from trimtab.stages._report_page import LabelQuality, ReportData

CONTROLS = {
    "single": "one weak model without debate",
    "ensemble": "as many weak models without debate",
    "shuffled": "transcripts of other cases",
    "masked": "transcripts of the same lengths, every word masked",
    "weak_debaters": "the weak model debating itself",
}
BASIS = "Intervals of gains are over cases, both answers of a case drawn together; those of the table are over answers."
SPEND = ("tokens", "tokens_read")


@dataclass(frozen=True)
class Gain:
    """Accuracy with debate less that with a control, over the same cases."""

    who: str
    control: str
    points: Interval

    @property
    def sign(self) -> int:
        """1 where the interval lies above 0, -1 below, 0 where it holds 0."""
        return (self.points.lo > 0) - (self.points.hi < 0)


@stage(version=1, on="driver")
def debate_report(spec: Spec, out: Path, *, compute: Compute, parts: Mapping[str, Path]) -> Metrics:
    """As `report`; gains are paired over cases and seeds, tokens are those of every kind of debate."""
    found = Parts(parts)
    data, gains = collected(spec, found), _gains(spec, found)
    spent = _spent(found)
    notes = [_worded(gain) for gain in gains] + [BASIS] + _judges(found) + _costs(spent)
    data = replace(data, finding=_finding(data, gains), notes=data.notes + notes, label_quality=_named(data, found))
    write_report(data, out)
    metrics = metrics_of(data)
    for gain in gains:
        name = f"gain/{gain.who}/{gain.control}"
        metrics |= {name: gain.points.mean, f"{name}_lo": gain.points.lo, f"{name}_hi": gain.points.hi}
    return metrics | {f"{name}/{what}": value for name, all_of in spent.items() for what, value in all_of.items()}


def _gains(spec: Spec, found: Parts) -> list[Gain]:
    """Students and judges with debate against those without, from resampled seeds and cases: not rows, since what is
    said of a case counts for both its answers.
    """
    from trimtab.metrics import Interval
    from trimtab.policy_metrics import paired_means

    values = {name: [_by_case(seed) for seed in seeds] for name, seeds in predicted(found).items()}
    same_rows = len({tuple(seed["ids"]) for seed in predicted(found)["supervisor"]}) == 1
    options = {"resamples": spec.report.bootstrap, "same_rows": same_rows}
    gains = []
    for name in values:
        role, dot, rest = name.partition(".debate")
        if not dot or role not in ("student", "judge"):
            continue
        differences = paired_means(values, spec.report.level, base=name, **options).difference
        for control in (*spec.rivals, *CONTROLS):
            if (other := f"{role}.{control}{rest}") in differences:
                less = differences[other]
                gains.append(Gain(name, f"{control}{rest}", Interval(-less.mean, -less.hi, -less.lo)))
    return gains


def _by_case(seed: dict[str, Any]) -> NDArray[np.float64]:
    """Share of a case's answers judged correctly, cases in the order of their ids."""
    import numpy as np

    cases = [row_id.rpartition("-")[0] for row_id in seed["ids"]]
    _, place_N, count_C = np.unique(cases, return_inverse=True, return_counts=True)
    return np.bincount(place_N, seed["correct"]) / count_C


def _finding(data: ReportData, gains: list[Gain]) -> str:
    """Whether debate helped the students, with no more confidence than the numbers carry."""
    from trimtab.stages._report_page import accuracy_text

    at = {model.name: accuracy_text(model) for model in data.models}
    students: dict[str, list[Gain]] = {}
    for gain in gains:
        if gain.who.startswith("student."):
            students.setdefault(gain.who, []).append(gain)
    helped = all(gain.sign > 0 for own in students.values() for gain in own)
    told = ["Debate helped." if helped else "Debate was not shown to help."]
    told += [f"{who} reaches {at[who]}, {_against(own)}." for who, own in students.items()]
    return " ".join(told) + f" The supervisor is at {at['supervisor']}, the ceiling at {at['ceiling']}."


def _against(gains: list[Gain]) -> str:
    """Above, below and not clearly different from which controls."""
    words = {1: "above", 0: "not clearly different from", -1: "below"}
    names = {sign: [gain.control for gain in gains if gain.sign == sign] for sign in words}
    return "; ".join(f"{words[sign]} {', '.join(found)}" for sign, found in names.items() if found)


def _worded(gain: Gain) -> str:
    from trimtab.stages._report_page import number

    mean, lo, hi = (number(100 * value, 1) for value in (gain.points.mean, gain.points.lo, gain.points.hi))
    against = f" ({CONTROLS[gain.control]})" if gain.control in CONTROLS else ""
    sure = ("not clearly different", "clear", "clear")[gain.sign]
    return f"{gain.who} against {gain.control}{against}: {mean} points [{lo}, {hi}], {sure}."


def _judges(found: Parts) -> list[str]:
    """Agreement, calibration and bias of every panel, averaged over seeds."""
    from trimtab.stages._report_page import number, percent

    told = []
    for name, folders in found.of("score").items():
        if not name.startswith("judge."):
            continue
        own = name.removeprefix("judge.")
        panels, judged = found.of("panel"), found.of("judged")
        values = _means(folders) | (_means(judged[own]) if own in judged else _means(panels[f"{own}, test"]))
        words = f"{name}: ECE {number(values['ece'])}"
        words += f", members agree on {percent(values['agreement'])}" if "agreement" in values else ""
        if "speaker_bias" in values:
            words += f", P(right) for being argued first {number(values['speaker_bias'])} higher"
        if "position_bias" in values:
            words += f", P for being listed first {number(values['position_bias'])} higher"
            words += f", {percent(values['turns_with_order'])} of verdicts turn with the order"
        told.append(words + ".")
    return told


def _means(folders: list[Path]) -> Metrics:
    tables = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    return {name: sum(table[name] for table in tables) / len(tables) for name in tables[0]}


def _named(data: ReportData, found: Parts) -> list[LabelQuality]:
    """Label quality by who made the labels."""
    names = list(found.of("audit"))
    return [replace(row, hop=names[row.hop]) for row in data.label_quality]


def _spent(found: Parts) -> dict[str, Metrics]:
    """Tokens of every kind of debate, members summed; each debate is held once for all seeds."""
    spent: dict[str, Metrics] = {}
    for record, metrics in found.results():
        if record["stage"] == "debate":
            one = spent.setdefault(record["label"].rsplit(" ", 1)[0], dict.fromkeys(SPEND, 0))
            for what in SPEND:
                one[what] += metrics[what]
    return spent


def _costs(spent: Mapping[str, Metrics]) -> list[str]:
    return [
        f"Cost of {name}: {one['tokens']:,.0f} tokens drawn, {one['tokens_read']:,.0f} tokens of prompts read."
        for name, one in spent.items()
    ]
