"""Scored completions into pairs: who is chosen, how sure, what is left out."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from trimtab.alignment import PairSpec
from trimtab.data.pairing import pair_up
from trimtab.errors import DataError


def row(row_id: str, *texts: str) -> dict[str, Any]:
    return {"id": row_id, "prompt": f"about {row_id}", "candidates": [{"text": t, "ended": True} for t in texts]}


def paired(scores: list[float], *texts: str, **spec: Any) -> tuple[list[dict[str, Any]], Counter]:
    """Pairs of one row, and another row's that is fine whatever the spec."""
    texts = texts or tuple("abcdef"[: len(scores)])
    rows = [row("r", *texts), row("fine", "good", "bad")]
    pairs, left_out = pair_up(rows, {"r": scores, "fine": [100.0, -100.0]}, PairSpec(**spec))
    assert [pair["prompt_id"] for pair in pairs if pair["prompt_id"] != "r"] == ["fine"]
    return [pair for pair in pairs if pair["prompt_id"] == "r"], left_out


def places(pairs: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(pair["chosen_index"], pair["rejected_index"]) for pair in pairs]


def test_the_best_and_the_worst_are_one_pair() -> None:
    (pair,), left_out = paired([0.2, -1.0, 3.0, 0.5])
    assert pair == {
        "id": "r:1-2",
        "prompt_id": "r",
        "prompt": "about r",
        "chosen": {"text": "c", "ended": True},
        "rejected": {"text": "b", "ended": True},
        "chosen_index": 2,
        "rejected_index": 1,
        "p": pytest.approx(1 / (1 + math.exp(-4))),
        "margin": 4.0,
    }
    assert not left_out


def test_all_pairs_have_the_higher_score_first() -> None:
    pairs, _ = paired([1.0, 3.0, 2.0], strategy="all")
    assert places(pairs) == [(1, 2), (1, 0), (2, 0)]
    assert [pair["margin"] for pair in pairs] == [1, 2, 1]
    assert len({pair["id"] for pair in pairs}) == 3


def test_a_random_pair_hangs_on_the_seed_and_is_any_of_all() -> None:
    found = Counter(places(paired([1.0, 3.0, 2.0, 0.0], strategy="random", seed=seed)[0])[0] for seed in range(120))
    again = Counter(places(paired([1.0, 3.0, 2.0, 0.0], strategy="random", seed=seed)[0])[0] for seed in range(120))
    assert found == again
    assert set(found) == {(1, 2), (1, 0), (1, 3), (2, 0), (2, 3), (0, 3)}
    assert min(found.values()) >= 8


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_p_is_the_sigmoid_of_the_difference_over_the_temperature(temperature: float) -> None:
    (pair,), _ = paired([1.5, 0.25], temperature=temperature)
    assert math.log(pair["p"] / (1 - pair["p"])) == pytest.approx(1.25 / temperature)


def test_a_difference_beyond_all_measure_is_no_overflow() -> None:
    (pair,), _ = paired([1e6, -1e6], temperature=1e-3)
    assert pair["p"] == pytest.approx(1)
    assert pair["margin"] == 2e6


def test_what_is_left_out_is_counted_by_its_reason() -> None:
    """Of the six pairs of four completions: a tie, two too close, one of the same words, two kept."""
    pairs, left_out = paired([2.0, 2.0, 1.75, 0.0], "a b", "c", "d", "a  b ", strategy="all", min_margin=0.5)
    assert places(pairs) == [(1, 3), (2, 3)]
    assert left_out == {"tie": 1, "margin too small": 2, "same text": 1}


def test_a_margin_that_is_just_met_counts() -> None:
    assert len(paired([1.0, 0.5], min_margin=0.5)[0]) == 1
    assert paired([1.0, 0.5], min_margin=0.5000001) == ([], {"margin too small": 1})


def test_a_prompt_with_one_completion_gives_no_pair() -> None:
    assert paired([1.0]) == ([], {})


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({}, "row r: 2 completions but scores None"),
        ({"r": [1.0]}, r"row r: 2 completions but scores \[1.0\]"),
        ({"r": [1.0, math.nan]}, r"row r: a score is not finite: \[1.0, nan\]"),
        ({"r": [1.0, -math.inf]}, "row r: a score is not finite"),
        ({"r": [1.0, 1.0]}, r"no pairs are left of 1 prompts \(1 tie\): lower pairs.min_margin or sample more"),
        ({"r": [1.0, 0.9]}, r"no pairs are left of 1 prompts \(1 margin too small\): lower pairs.min_margin"),
    ],
)
def test_what_cannot_be_paired_names_the_row_or_the_way_out(scores: dict[str, list[float]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        pair_up([row("r", "a", "b")], scores, PairSpec(min_margin=0.5))


def test_prompts_without_two_completions_are_refused() -> None:
    with pytest.raises(DataError, match=r"no pairs are left of 1 prompts \(no prompt has two completions\)"):
        pair_up([row("r", "a")], {"r": [1.0]}, PairSpec())
