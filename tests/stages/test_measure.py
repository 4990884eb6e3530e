"""Stage measure: what samples are worth, and how far from the reference they are."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from tests.conftest import write_rows
from tests.preferring import Preferring, asked, metrics_of

from trimtab.alignment import MeasureSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_jsonl
from trimtab.errors import ModelError
from trimtab.lm import TokenScores
from trimtab.stages.measure import measure
from trimtab.stages.pairs import write_scores

pytestmark = pytest.mark.slow


def said(folder: Path, logps: dict[str, list[list[float]]], tokenizer: str = "t") -> Path:
    """Log-probs as stage logprobs writes them."""
    from trimtab.models.token_table import write_tokens

    folder.mkdir()
    rows = {i: [TokenScores(list(range(len(p))), p) for p in each] for i, each in logps.items()}
    write_tokens(folder, rows, model="m", tokenizer=tokenizer)
    return folder


def measured(folder: Path, policy: Path, reference: Path, gold: dict[str, list[float]]):
    (folder / "gold").mkdir()
    (folder / "out").mkdir()
    write_scores(folder / "gold", gold)
    candidates = {i: [{"text": f"{i} {k}", "ended": True} for k in range(len(values))] for i, values in gold.items()}
    rows = write_rows(folder / "rows", [{"id": i, "prompt": f"p{i}", "candidates": c} for i, c in candidates.items()])
    given = {"rows": rows, "gold": folder / "gold", "policy": policy, "reference": reference}
    return measure(MeasureSpec(), folder / "out", compute=Compute(backend="inline"), **given)


def test_the_numbers_are_those_of_the_formulas(tmp_path: Path) -> None:
    policy = said(tmp_path / "policy", {"a": [[-1.0, -2.0], [-0.5]], "b": [[-3.0], []]})
    reference = said(tmp_path / "reference", {"a": [[-1.5, -1.0], [-0.5]], "b": [[-4.0], []]})
    found = measured(tmp_path, policy, reference, {"a": [0.25, -1.0], "b": [0.5, 1.0]})
    ratios = [0.5, -1.0, 0.0, 1.0]
    k3 = sum(math.exp(-r) - 1 + r for r in ratios) / 4
    assert found == pytest.approx({"rows": 2, "gold": 0.75 / 4, "kl": 0.5 / 4, "kl_k3": k3, "tokens": 1.0})
    first, second = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert first == {
        "id": "a",
        "prompt": "pa",
        "completions": ["a 0", "a 1"],
        "gold": [0.25, -1.0],
        "kl": [-0.5, 0.0],
        "tokens": [2, 1],
    }
    assert (second["kl"], second["tokens"]) == ([1.0, 0.0], [1, 0])


def test_k3_is_never_below_0_whatever_the_samples(tmp_path: Path) -> None:
    draw = random.Random(0)
    for n in range(20):
        folder = tmp_path / str(n)
        folder.mkdir()
        both = [{"a": [[draw.uniform(-9, 0) for _ in range(5)]]} for _ in range(2)]
        found = measured(folder, said(folder / "p", both[0]), said(folder / "r", both[1]), {"a": [1.0]})
        assert found["kl_k3"] >= 0


def test_another_tokenizer_is_no_measure(tmp_path: Path) -> None:
    policy, reference = said(tmp_path / "p", {"a": [[-1.0]]}, "mine"), said(tmp_path / "r", {"a": [[-1.0]]}, "theirs")
    with pytest.raises(ModelError, match=r"the policy's tokenizer is not the reference's \(mine and theirs\)"):
        measured(tmp_path, policy, reference, {"a": [1.0]})


def test_a_policy_is_at_no_distance_from_itself_and_at_some_from_others(tiny) -> None:
    words = Preferring(tiny)
    gold = tiny.root / "gold"
    gold.mkdir()
    write_scores(gold, {row["id"]: [1.0, 0.0] for row in asked()})
    own = words.logprobs(words.rows)
    given = {"rows": words.rows, "gold": gold, "policy": own}
    same = metrics_of(words.made(measure, MeasureSpec(), **given, reference=own))
    assert (same["kl"], same["kl_k3"], same["gold"]) == (0, 0, 0.5)
    other = metrics_of(words.made(measure, MeasureSpec(), **given, reference=words.logprobs(words.rows, layers=2)))
    assert other["kl_k3"] > 0.1
    assert other["tokens"] == same["tokens"]
