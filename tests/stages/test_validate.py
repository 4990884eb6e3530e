"""What stages say of the rows set aside: numbers by hand, and truth only where it may be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_rows

from trimtab.alignment import KnownDistance, MeasureSpec, PairSpec, RankSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_candidates, read_jsonl, write_jsonl
from trimtab.errors import DataError
from trimtab.parts import ReportSpec, ValidationSpec
from trimtab.pipelines.weak_to_strong import WeakToStrong
from trimtab.stages.outcome import read_outcome, write_outcome
from trimtab.stages.pairs import pair, read_scores, write_scores
from trimtab.stages.reserve import allowed, reserve_prompts, set_aside
from trimtab.stages.validate import validate_order, validate_samples

COMPUTE = Compute(backend="inline")


def out(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def asked(folder: Path, ids: str, candidates: int = 3) -> Path:
    each = [{"text": f"t{k}", "ended": True} for k in range(candidates)]
    return write_rows(folder, [{"id": i, "prompt": f"p{i}", "candidates": each} for i in ids])


def scored(folder: Path, scores: dict[str, list[float]]) -> Path:
    write_scores(out(folder), scores)
    return folder


def paired(folder: Path, ids: str, scores: dict[str, list[float]]) -> Path:
    rows, given = asked(folder / "rows", ids), scored(folder / "scores", scores)
    pair(PairSpec(strategy="all"), out(folder / "pairs"), compute=COMPUTE, rows=rows, scores=given)
    return folder / "pairs"


WEAK = {"a": [3.0, 2.0, 1.0], "b": [1.0, 2.0, 3.0]}
OURS = {"a": [3.0, 1.0, 2.0], "b": [5.0, 5.0, 5.0], "c": [0.0, 0.0, 1.0]}


def test_agreement_and_accuracy_are_shares_of_a_prompt_s_pairs(tmp_path: Path) -> None:
    weak, truth = paired(tmp_path / "weak", "ab", WEAK), paired(tmp_path / "truth", "a", {"a": [0.0, 1.0, 0.0]})
    given = {"weak": weak, "truth": truth, "scores": scored(tmp_path / "ours", OURS)}
    found = validate_order(RankSpec(), out(tmp_path / "out"), compute=COMPUTE, **given)
    assert read_outcome(tmp_path / "out") == {"agreement": {"a": 2 / 3, "b": 0.5}, "accuracy": {"a": 0.0}}
    assert found == pytest.approx({"agreement": (2 / 3 + 0.5) / 2, "accuracy": 0.0, "rows": 2})


def test_without_truth_there_is_no_accuracy_and_the_order_itself_agrees_with_itself(tmp_path: Path) -> None:
    for name, sign, share in (("same", 1, 1.0), ("turned", -1, 0.0)):
        ours = scored(tmp_path / name / "ours", {i: [sign * v for v in values] for i, values in WEAK.items()})
        weak = paired(tmp_path / name / "weak", "ab", WEAK)
        found = validate_order(RankSpec(), out(tmp_path / name / "out"), compute=COMPUTE, weak=weak, scores=ours)
        assert found == {"agreement": share, "rows": 2}


def test_a_policy_s_implied_reward_orders_too(tmp_path: Path) -> None:
    before = said(tmp_path / "before", {"a": [[-1.0], [-1.0], [-1.0]], "b": [[-3.0], [-2.0], [-1.0]]})
    after = said(tmp_path / "after", {"a": [[-1.0], [-2.0], [-3.0]], "b": [[-3.0], [-2.0], [-1.0]]})
    given = {"weak": paired(tmp_path / "weak", "ab", WEAK), "after": after, "before": before}
    validate_order(RankSpec(), out(tmp_path / "out"), compute=COMPUTE, **given)
    assert read_outcome(tmp_path / "out") == {"agreement": {"a": 1.0, "b": 0.5}}, "what did not move says nothing"


def said(folder: Path, logps: dict[str, list[list[float]]]) -> Path:
    """Log-probs as stage logprobs writes them."""
    from trimtab.lm import TokenScores
    from trimtab.models.token_table import write_tokens

    rows = {i: [TokenScores(list(range(len(p))), p) for p in each] for i, each in logps.items()}
    write_tokens(out(folder), rows, model="m", tokenizer="t")
    return folder


def test_samples_are_told_prompt_by_prompt_and_gold_only_where_it_is_known(tmp_path: Path) -> None:
    policy = said(tmp_path / "policy", {"a": [[-1.0, -2.0], [-0.5]], "b": [[-3.0], [-1.0]]})
    reference = said(tmp_path / "reference", {"a": [[-1.5, -1.0], [-1.0]], "b": [[-4.0], [-3.0]]})
    given: dict[str, Any] = {"rows": asked(tmp_path / "rows", "ab", 2), "reference": reference}
    rewards = {
        "weak": scored(tmp_path / "weak", {"a": [1.0, 2.0], "b": [0.0, 1.0]}),
        "gold": scored(tmp_path / "gold", {"b": [0.5, 0.25]}),
    }
    validate_samples(MeasureSpec(), out(tmp_path / "out"), compute=COMPUTE, policy=policy, **given, **rewards)
    assert read_outcome(tmp_path / "out") == {
        "tokens": {"a": 1.5, "b": 1.0},
        "kl": {"a": 0.0, "b": 1.5},
        "weak_reward": {"a": 1.5, "b": 0.5},
        "gold": {"b": 0.375},
    }
    validate_samples(KnownDistance(kl=0.7), out(tmp_path / "known"), compute=COMPUTE, **given)
    assert read_outcome(tmp_path / "known")["kl"] == {"a": 0.7, "b": 0.7}
    validate_samples(KnownDistance(kl=None), out(tmp_path / "unknown"), compute=COMPUTE, **given)
    assert set(read_outcome(tmp_path / "unknown")) == {"tokens"}


IDS = "abcdefghijklmnopqrst"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twenty prompts with three scored completions each."""
    folder = out(tmp_path / "prompts")
    rows = read_jsonl(asked(tmp_path / "plain", IDS) / "rows.jsonl")
    write_jsonl(folder / "rows.jsonl", [row | {"group": None, "part": "train"} for row in rows])
    write_scores(folder, {i: [float(n), 0.0, 1.0] for n, i in enumerate(IDS)})
    return folder


def test_prompts_set_aside_keep_only_the_truth_that_may_be_used(prompts: Path, tmp_path: Path) -> None:
    made = out(tmp_path / "made")
    spec = ValidationSpec(rows=8, truth=3)
    found = reserve_prompts(spec, made, compute=COMPUTE, rows=prompts, scores=prompts)
    assert found == {"validation": 8, "truth": 3, "rest": 12}
    parts = {name: {row.id for row in read_candidates(made / name / "rows.jsonl")} for name in found}
    assert parts["validation"] | parts["rest"] == set(IDS)
    assert not parts["validation"] & parts["rest"]
    scores = read_scores(made / "truth")
    assert set(scores) == parts["truth"] <= parts["validation"]
    assert all(values[0] == IDS.index(i) for i, values in scores.items())
    assert [path.parent.name for path in made.rglob("scores.jsonl")] == ["truth"]
    kept = allowed(spec, out(tmp_path / "kept"), compute=COMPUTE, rows=made / "validation", truth=made / "truth")
    assert kept == {"rows": 3}
    assert {row.id for row in read_candidates(tmp_path / "kept" / "rows.jsonl")} == parts["truth"]


def test_truth_that_is_not_there_cannot_be_used(prompts: Path, tmp_path: Path) -> None:
    (prompts / "scores.jsonl").unlink()
    given = {"rows": prompts, "scores": prompts}
    with pytest.raises(DataError, match="validation.truth is 3, but nothing says which answers are good"):
        reserve_prompts(ValidationSpec(rows=8, truth=3), out(tmp_path / "no"), compute=COMPUTE, **given)
    made = out(tmp_path / "made")
    assert reserve_prompts(ValidationSpec(rows=8), made, compute=COMPUTE, **given)["truth"] == 0
    with pytest.raises(DataError, match="no prompt whose truth may be used has a sample"):
        allowed(ValidationSpec(rows=8), made, compute=COMPUTE, rows=made / "validation", truth=made / "truth")


def test_outcomes_of_every_kind_are_read_row_by_row(tmp_path: Path) -> None:
    write_outcome(out(tmp_path / "a"), [{"id": "r", "x": 1.0}, {"id": "s", "x": 2.0, "y": None}])
    assert read_outcome(tmp_path / "a") == {"x": {"r": 1.0, "s": 2.0}}
    rows = [{"id": "r", "label": 1, "probs": [0.4, 0.6]}, {"id": "s", "label": 0, "probs": [0.1, 0.2, 0.7]}]
    write_jsonl(out(tmp_path / "b") / "predictions.jsonl", rows)
    assert read_outcome(tmp_path / "b") == {"accuracy": {"r": 1.0, "s": 0.0}}
    sampled = [{"id": "r", "gold": [1.0, 0.0], "kl": [None, None], "tokens": [3, 4], "prompt": "p"}]
    write_jsonl(out(tmp_path / "c") / "samples.jsonl", sampled)
    assert read_outcome(tmp_path / "c") == {"gold": {"r": 0.5}, "tokens": {"r": 3.5}}
    with pytest.raises(DataError, match="says nothing of single rows"):
        read_outcome(out(tmp_path / "d"))


def test_a_report_says_what_was_set_aside() -> None:
    model = {"model": "builtin:smollm2-135m"}
    job = {"task": {"source": "builtin:valence"}, "supervisor": model, "ceiling": model, "students": {}}
    told = {}
    for rows, truth in ((0, 0), (60, 0), (60, 12)):
        kept = {"validation": {"rows": rows, "truth": truth}} if rows else {}
        told[rows, truth] = set_aside(WeakToStrong.model_validate(job | kept | {"report": ReportSpec().model_dump()}))
    assert told[0, 0] == []
    assert told[60, 0][0].startswith("60 rows were set aside for choosing hyperparameters")
    assert "truth were free" not in json.dumps(told[60, 0])
    assert "12 rows of truth were free to steer hyperparameters" in told[60, 12][0]
