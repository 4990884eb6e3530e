"""Stages between scores and training: pairs, how right they are, and who ranks them how well."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_rows

from trimtab.alignment import ImplicitSpec, PairSpec, RankSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.errors import DataError
from trimtab.parts import EvalSpec
from trimtab.stages.pairs import audit_pairs, implicit, pair, rank, read_scores, write_scores

COMPUTE = Compute(backend="inline")
TEXTS = ("a", "b", "c")
N = 400


def asked(folder: Path, n: int = N) -> Path:
    candidates = [{"text": text, "ended": True} for text in TEXTS]
    return write_rows(folder, [{"id": f"r{i}", "prompt": f"p{i}", "candidates": candidates} for i in range(n)])


def scored(folder: Path, scores: dict[str, list[float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder, scores)
    return folder


def drawn(seed: int) -> dict[str, list[float]]:
    draw = random.Random(seed)
    return {f"r{i}": [draw.gauss(0, 1) for _ in TEXTS] for i in range(N)}


def out(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return scored(tmp_path / "divide" / "truth" / "test", drawn(0))


@pytest.fixture
def pairs(tmp_path: Path, truth: Path) -> Path:
    """Pairs in their true order."""
    pair(PairSpec(), out(tmp_path / "pairs"), compute=COMPUTE, rows=asked(tmp_path / "asked"), scores=truth)
    return tmp_path / "pairs"


def ranked(tmp_path: Path, pairs: Path, scores: dict[str, list[float]], name: str = "ranked") -> tuple[Any, Any]:
    """Metrics and predictions of a ranking by scores."""
    by = scored(tmp_path / f"{name} scores", scores)
    found = rank(RankSpec(), out(tmp_path / name), compute=COMPUTE, data=pairs, scores=by)
    return found, read_jsonl(tmp_path / name / "predictions.jsonl")


def test_pairs_say_where_their_order_comes_from(tmp_path: Path, truth: Path, pairs: Path) -> None:
    table = read_jsonl(pairs / "rows.jsonl")
    places = ("chosen", "rejected", "chosen_index", "rejected_index")
    assert {tuple(row) for row in table} == {("id", "prompt_id", "prompt", *places, "p", "margin", "label_source")}
    assert {row["label_source"] for row in table} == {"truth"}
    assert all(row["p"] == pytest.approx(1 / (1 + math.exp(-row["margin"]))) for row in table)
    weak = scored(tmp_path / "truth" / "artifacts" / "score-0123", drawn(0))
    few = asked(tmp_path / "few", 10)
    found = pair(PairSpec(min_margin=1.5), out(tmp_path / "weak"), compute=COMPUTE, rows=few, scores=weak)
    table = read_jsonl(tmp_path / "weak" / "rows.jsonl")
    assert {row["label_source"] for row in table} == {"score-0123"}
    assert found == {
        "rows": len(table),
        "prompts": 10,
        "left_out": 10 - len(table),
        "weak_confidence": pytest.approx(sum(row["p"] for row in table) / len(table)),
    }
    assert json.loads((tmp_path / "weak" / "left_out.json").read_text()) == {"margin too small": 10 - len(table)}
    assert 0 < len(table) < 10


def test_scores_that_are_not_there_are_missed_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"asked has no scores: the task must hold pairs, or say which completions"):
        pair(
            PairSpec(), out(tmp_path / "o"), compute=COMPUTE, rows=asked(tmp_path / "asked"), scores=tmp_path / "asked"
        )


def test_who_scores_as_the_truth_does_ranks_all_pairs_right(tmp_path: Path, pairs: Path) -> None:
    found, predictions = ranked(tmp_path, pairs, drawn(0))
    assert (found["accuracy"], found["auroc"]) == (1, 1)
    for row, one in zip(read_jsonl(pairs / "rows.jsonl"), predictions, strict=True):
        assert one["probs"][one["label"]] == pytest.approx(row["p"], abs=1e-6)
    turned, _ = ranked(tmp_path, pairs, {i: [-s for s in scores] for i, scores in drawn(0).items()}, "turned")
    assert (turned["accuracy"], turned["auroc"]) == (0, 0)


def test_always_naming_the_first_is_right_half_of_the_time(tmp_path: Path, pairs: Path) -> None:
    found, predictions = ranked(tmp_path, pairs, {i: [1.0] * 3 for i in drawn(0)})
    assert {tuple(one["probs"]) for one in predictions} == {(0.5, 0.5)}
    assert 0.4 < found["accuracy"] < 0.6
    assert found["brier"] == pytest.approx(0.25)
    assert 0.4 < sum(one["label"] for one in predictions) / N < 0.6


def test_the_order_shown_hangs_on_the_pair_alone(tmp_path: Path, pairs: Path) -> None:
    """Neither the scores nor which completion stands where in the file tell it."""
    _, one = ranked(tmp_path, pairs, drawn(1), "one")
    _, other = ranked(tmp_path, pairs, drawn(2), "other")
    assert [row["label"] for row in one] == [row["label"] for row in other]
    assert [row["probs"] for row in one] != [row["probs"] for row in other]
    first = {row["id"]: row["chosen_index"] < row["rejected_index"] for row in read_jsonl(pairs / "rows.jsonl")}
    assert 0.4 < sum(row["label"] == first[row["id"]] for row in one) / N < 0.6


def test_differences_beyond_all_measure_are_no_overflow(tmp_path: Path, pairs: Path) -> None:
    found, _ = ranked(tmp_path, pairs, {i: [1e9 * s for s in scores] for i, scores in drawn(0).items()})
    assert found["accuracy"] == 1
    assert found["brier"] == pytest.approx(0)


def test_an_audit_counts_pairs_that_stand_the_wrong_way_round(tmp_path: Path, pairs: Path) -> None:
    """Of every four prompts, the truth turns one round and ties on another."""
    true = {}
    for i, row in enumerate(read_jsonl(pairs / "rows.jsonl")):
        order = {0: (-1, 1), 1: (2, 2)}.get(i % 4, (1, -1))
        true[row["prompt_id"]] = [float(order[k == row["rejected_index"]]) for k in range(3)]
    found = audit_pairs(
        EvalSpec(), out(tmp_path / "audit"), compute=COMPUTE, labels=pairs, truth=scored(tmp_path / "true", true)
    )
    assert (found["rows"], found["ties"]) == (N, N // 4)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["noise"] == pytest.approx(1 / 3)
    assert "auroc" not in found
    p = [row["p"] for i, row in enumerate(read_jsonl(pairs / "rows.jsonl")) if i % 4 != 1]
    wrong = [row["p"] for i, row in enumerate(read_jsonl(pairs / "rows.jsonl")) if i % 4 == 0]
    squares = sum((1 - x) ** 2 for x in p) - sum((1 - x) ** 2 for x in wrong) + sum(x**2 for x in wrong)
    assert found["brier"] == pytest.approx(squares / len(p))


def test_an_audit_without_a_truth_is_refused(tmp_path: Path, pairs: Path) -> None:
    flat = scored(tmp_path / "flat", {i: [1.0] * 3 for i in drawn(0)})
    with pytest.raises(DataError, match="both completions of all 400 pairs the same score"):
        audit_pairs(EvalSpec(), out(tmp_path / "audit"), compute=COMPUTE, labels=pairs, truth=flat)
    few = scored(tmp_path / "fewer", dict(list(drawn(0).items())[1:]))
    with pytest.raises(DataError, match="pair r0:[0-9]-[0-9]: there are no scores for its prompt"):
        audit_pairs(EvalSpec(), out(tmp_path / "second"), compute=COMPUTE, labels=pairs, truth=few)


def said(folder: Path, logps: dict[str, list[list[float]]]) -> Path:
    """Log-probs as stage logprobs writes them."""
    from trimtab.lm import TokenScores
    from trimtab.models.token_table import write_tokens

    rows = {i: [TokenScores(list(range(len(p))), p) for p in each] for i, each in logps.items()}
    write_tokens(out(folder), rows, model="m", tokenizer="t")
    return folder


@pytest.mark.slow
def test_the_reward_that_a_policy_implies_is_beta_times_its_shift(tmp_path: Path, pairs: Path) -> None:
    draw = random.Random(3)
    lengths = {f"r{i}": [draw.randint(0, 4) for _ in TEXTS] for i in range(N)}
    before = {i: [[draw.uniform(-2, -1) for _ in range(n)] for n in each] for i, each in lengths.items()}
    shift = {i: [draw.uniform(0, 1) for _ in TEXTS] for i in lengths}
    after = {i: [[p + s for p in c] for c, s in zip(before[i], shift[i], strict=True)] for i in before}
    folders = {"after": said(tmp_path / "after", after), "before": said(tmp_path / "before", before)}
    found = implicit(ImplicitSpec(beta=0.3), out(tmp_path / "implied"), compute=COMPUTE, **folders)
    rewards = read_scores(tmp_path / "implied")
    assert found == {"rows": N} and list(rewards) == list(before)
    for i, each in rewards.items():
        assert each == pytest.approx([0.3 * s * n for s, n in zip(shift[i], lengths[i], strict=True)], abs=1e-5)
    by_policy = rank(RankSpec(beta=0.3), out(tmp_path / "policy"), compute=COMPUTE, data=pairs, **folders)
    by_scores, predictions = ranked(tmp_path, pairs, rewards)
    assert by_policy == pytest.approx(by_scores)
    assert read_jsonl(tmp_path / "policy" / "predictions.jsonl") == predictions
