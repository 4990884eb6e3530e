"""Scored completions of a prompt into pairs of a chosen and a rejected one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from trimtab.alignment import PairSpec
from trimtab.data.formats import stable_hash
from trimtab.errors import DataError

Row = dict[str, Any]


def pair_up(rows: Sequence[Row], scores: Mapping[str, Sequence[float]], spec: PairSpec) -> tuple[list[Row], Counter]:
    """Pairs, chosen being what scores higher, with p = sigmoid(difference / temperature); and what was left out.

    Raises DataError where a row has no score for each completion, a score is not finite, or no pair is left.
    """
    pairs, left_out = [], Counter()
    for row in rows:
        row_scores = _scores_of(row, scores)
        for first, second in _places(row, row_scores, spec):
            if row["candidates"][first]["text"].split() == row["candidates"][second]["text"].split():
                left_out["same text"] += 1
            elif row_scores[first] - row_scores[second] <= 0:
                left_out["tie"] += 1
            elif row_scores[first] - row_scores[second] < spec.min_margin:
                left_out["margin too small"] += 1
            else:
                pairs.append(_pair(row, first, second, margin=row_scores[first] - row_scores[second], spec=spec))
    if not pairs:
        said = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "no prompt has two completions"
        raise DataError(f"no pairs are left of {len(rows)} prompts ({said}): lower pairs.min_margin or sample more")
    return pairs, left_out


def _scores_of(row: Row, scores: Mapping[str, Sequence[float]]) -> Sequence[float]:
    found = scores.get(row["id"])
    if found is None or len(found) != len(row["candidates"]):
        raise DataError(f"row {row['id']}: {len(row['candidates'])} completions but scores {found}")
    if not all(map(math.isfinite, found)):
        raise DataError(f"row {row['id']}: a score is not finite: {list(found)}")
    return found


def _places(row: Row, scores: Sequence[float], spec: PairSpec) -> Iterator[tuple[int, int]]:
    """Places of completions to pair, the higher score first."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    if len(order) < 2:
        return
    if spec.strategy == "best_worst":
        yield order[0], order[-1]
    elif spec.strategy == "all":
        yield from combinations(order, 2)
    else:
        drawn = sorted(order, key=lambda place: stable_hash(spec.seed, row["id"], place))[:2]
        yield tuple(sorted(drawn, key=order.index))


def _pair(row: Row, chosen: int, rejected: int, *, margin: float, spec: PairSpec) -> Row:
    low, high = sorted((chosen, rejected))
    return {
        "id": f"{row['id']}:{low}-{high}",
        "prompt_id": row["id"],
        "prompt": row["prompt"],
        "chosen": row["candidates"][chosen],
        "rejected": row["candidates"][rejected],
        "chosen_index": chosen,
        "rejected_index": rejected,
        "p": 1.0 if spec.certain else 1 / (1 + math.exp(-min(margin / spec.temperature, 60.0))),
        "margin": margin,
    }
