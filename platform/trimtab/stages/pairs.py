"""Stages between scores and training: pairs of completions, how right weak pairs are, and who ranks pairs how well."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.alignment import ImplicitSpec, PairSpec, RankSpec
from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.parts import EvalSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.evaluate import PREDICTIONS
from trimtab.stages.evaluate import scores as scored
from trimtab.stages.prepare import ROWS

SCORES = "scores.jsonl"


def read_scores(folder: Path) -> dict[str, list[float]]:
    """Row id -> a score for each of its completions. Raises DataError where there are none."""
    from trimtab.data.tables import read_jsonl

    if not (folder / SCORES).exists():
        raise DataError(f"{folder} has no scores: the task must hold pairs, or say which completions are good")
    return {row["id"]: row["scores"] for row in read_jsonl(folder / SCORES)}


def write_scores(folder: Path, scores: dict[str, list[float]]) -> None:
    from trimtab.data.tables import write_jsonl

    write_jsonl(folder / SCORES, [{"id": row_id, "scores": values} for row_id, values in scores.items()])


@stage(version=1, on="driver")
def pair(spec: PairSpec, out: Path, *, compute: Compute, rows: Path, scores: Path) -> Metrics:
    """Pairs in the order of the scores, each with p = sigmoid(difference / temperature)."""
    from trimtab.data.pairing import pair_up
    from trimtab.data.tables import read_jsonl, write_jsonl

    table = read_jsonl(rows / ROWS)
    pairs, left_out = pair_up(table, read_scores(scores), spec)
    source = "truth" if scores.parent.name == "truth" else scores.name
    write_jsonl(out / ROWS, [pair | {"label_source": source} for pair in pairs])
    (out / "left_out.json").write_text(json.dumps(left_out))
    confidence = sum(pair["p"] for pair in pairs) / len(pairs)
    return {"rows": len(pairs), "prompts": len(table), "left_out": left_out.total(), "weak_confidence": confidence}


@stage(version=1, on="driver")
def rank(spec: RankSpec, out: Path, *, compute: Compute, data: Path, **by: Path) -> Metrics:
    """How well `scores`, or the reward that a policy implies (`after` and `before`), order the pairs of `data`.

    predictions.jsonl is as of a classifier of which completion is better; each pair is shown in an order drawn from its
    id, so that always naming the first is right half of the time.
    """
    from trimtab.data.formats import stable_hash
    from trimtab.data.tables import read_jsonl, write_jsonl

    given, predictions = ordering(spec, by), []
    for row in read_jsonl(data / ROWS):
        second_is_better = int(stable_hash("order", row["id"])[-1], 16) % 2
        difference = difference_of(given, row) * (1 if second_is_better else -1)
        p = 1 / (1 + math.exp(-max(-60.0, min(60.0, difference))))
        predictions.append({"id": row["id"], "label": second_is_better, "probs": [round(1 - p, 7), round(p, 7)]})
    write_jsonl(out / PREDICTIONS, predictions)
    return scored([row["probs"] for row in predictions], [row["label"] for row in predictions], bins=spec.ece_bins)


def ordering(spec: RankSpec, by: Mapping[str, Path]) -> dict[str, list[float]]:
    """What completions are ordered by: `scores`, or the reward that a policy implies, `after` and `before` training."""
    return read_scores(by["scores"]) if "scores" in by else implied(by["after"], by["before"], spec.beta)


def difference_of(given: dict[str, list[float]], pair: dict[str, Any]) -> float:
    """How much higher what is chosen is than what is rejected. Raises DataError where there are no scores for it."""
    ours = _of(given, pair)
    return ours[pair["chosen_index"]] - ours[pair["rejected_index"]]


def _of(given: dict[str, list[float]], row: dict[str, Any]) -> list[float]:
    if row["prompt_id"] not in given:
        raise DataError(f"pair {row['id']}: there are no scores for its prompt")
    return given[row["prompt_id"]]


@stage(version=1, on="driver")
def audit_pairs(spec: EvalSpec, out: Path, *, compute: Compute, labels: Path, truth: Path) -> Metrics:
    """How often weak pairs stand in the order of the truth; pairs on which the truth ties are left out and counted."""
    from trimtab.data.tables import read_jsonl

    right, probs, ties = read_scores(truth), [], 0
    for row in read_jsonl(labels / ROWS):
        given = _of(right, row)
        margin = given[row["chosen_index"]] - given[row["rejected_index"]]
        ties += margin == 0
        if margin:
            probs.append([1 - row["p"], row["p"]] if margin > 0 else [row["p"], 1 - row["p"]])
    if not probs:
        raise DataError(f"{truth} gives both completions of all {ties} pairs the same score, so none is truly better")
    found = scored(probs, [1] * len(probs), bins=spec.ece_bins)
    return {name: value for name, value in found.items() if name != "auroc"} | {
        "noise": 1 - found["accuracy"],
        "rows": len(probs) + ties,
        "ties": ties,
    }


@stage(version=1, on="driver")
def implicit(spec: ImplicitSpec, out: Path, *, compute: Compute, after: Path, before: Path) -> Metrics:
    """The reward that a policy implies, as scores of completions."""
    rewards = implied(after, before, spec.beta)
    write_scores(out, rewards)
    return {"rows": len(rewards)}


def implied(after: Path, before: Path, beta: float) -> dict[str, list[float]]:
    """Row id -> beta (log pi - log pi_reference) of each completion (Rafailov et al. 2023, equation 5)."""
    from trimtab.stages.logprobs import Logprobs

    ours, reference = Logprobs(after), Logprobs(before)
    return {
        row_id: [
            beta * float(ours.of(row_id, k)[1].sum() - reference.of(row_id, k)[1].sum())
            for k in range(place.candidates)
        ]
        for row_id, place in ours.places.items()
    }
