"""Stages align and train_reward: what they refuse before a model loads, what they count, where they start from."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from tests.conftest import write_rows
from tests.preferring import ROWS, Preferring, asked, metrics_of

from trimtab.alignment import LogprobSpec, PolicySpec
from trimtab.errors import DataError, ModelError
from trimtab.stages.align import align, train_reward
from trimtab.stages.logprobs import Logprobs, logprobs
from trimtab.stages.train import hold_out
from trimtab.training.curves import read_curves

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tiny):
    return Preferring(tiny)


@pytest.fixture
def nowhere(tmp_path):
    """A policy whose model nobody could load."""
    return lambda **fields: PolicySpec(model={"source": str(tmp_path / "nowhere")}, **fields)


def refused(words, spec, out, **inputs):
    out.mkdir()
    align(spec, out, compute=words.tiny.compute(), **inputs)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("dpo", ((), "dpo needs the log-probs of reference: give the output of logprobs")),
        ("kto", ((), "kto needs the log-probs of reference")),
        ("wspo", (("reference", "weak"), "wspo needs the log-probs of weak_reference")),
        ("wspo", (("weak",), "wspo needs the log-probs of reference, weak_reference")),
    ],
)
def test_frozen_models_that_are_not_given_are_named(words, nowhere, tmp_path, kind, case):
    given, missing = case
    inputs = dict.fromkeys(given, tmp_path)
    with pytest.raises(DataError, match=missing):
        refused(words, nowhere(objective={"kind": kind}), tmp_path / "out", data=tmp_path, **inputs)


def test_rows_of_the_wrong_kind_are_refused(words, nowhere, tmp_path):
    with pytest.raises(DataError, match="rows.jsonl: dpo is trained on pairs, these rows are single completions"):
        refused(words, nowhere(), tmp_path / "pairs", data=words.singles, reference=tmp_path)
    kto = nowhere(objective={"kind": "kto"})
    with pytest.raises(DataError, match="rows.jsonl: kto is trained on single completions, these rows are pairs"):
        refused(words, kto, tmp_path / "singles", data=words.pairs, reference=tmp_path)


def test_another_tokenizer_is_refused_by_both_names(words, tmp_path):
    """The policy's weights are no weights at all, so nobody loads them first."""
    other = tmp_path / "other"
    shutil.copytree(words.tiny.model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["bread"], vocabulary["cup"] = vocabulary["cup"], vocabulary["bread"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (other / "model.safetensors").write_bytes(b"none")
    spec = words.policy(model={"source": str(other)})
    reference = words.inputs(words.policy())["reference"]
    theirs = Logprobs(reference).tokenizer
    with pytest.raises(
        ModelError, match=rf"the reference model's tokenizer is not the policy's \({theirs} and \w{{16}}\)"
    ):
        refused(words, spec, tmp_path / "out", data=words.pairs, reference=reference)


def test_log_probs_of_other_tokens_are_refused(words, tmp_path):
    short = words.logprobs(words.rows, max_length=5)
    with pytest.raises(
        DataError, match=r"row q\d+, completion \d: its stored log-probs are of other tokens; use one max"
    ):
        refused(words, words.policy(), tmp_path / "out", data=words.pairs, reference=short)
    few = words.logprobs(write_rows(words.tiny.root / "few", asked()[:20]))
    with pytest.raises(DataError, match=r"has no log-probs of row 'q\d+', candidate \d"):
        refused(words, words.policy(), tmp_path / "few", data=words.pairs, reference=few)


def odd(pair):
    """Pairs with an answer too long, a prompt too long, an answer of nothing."""
    long = {"text": " bread" * 40, "ended": True}
    empty = {"text": "", "ended": False}
    return [
        pair | {"id": "cut", "rejected": long},
        pair | {"id": "cut twice", "chosen": long, "rejected": long | {"text": " cup" * 40}},
        pair | {"id": "no room", "prompt": "bread " * 32},
        pair | {"id": "nothing", "rejected": empty},
    ]


def test_what_is_cut_and_dropped_is_counted(words, tmp_path):
    good = words.tiny.table(words.pairs)
    table = [*good[:16], *odd(good[0])]
    data = write_rows(tmp_path / "data", table)
    (tmp_path / "out").mkdir()
    spec = words.policy(objective={"kind": "simpo"})
    found = align(spec, tmp_path / "out", compute=words.tiny.compute(), data=data)
    kept = [row for row in table if row["id"] not in ("no room", "nothing")]
    assert (found["train/rows"], found["rows_dropped"]) == (18, 2)
    assert (found["rows_truncated"], found["rows_dropped_long_prompt"], found["rows_dropped_empty"]) == (3, 2, 1)
    assert (found["rows_completions"], found["rows_merged_boundary"]) == (2 * 20 - 3, 0)
    room = {row["id"]: 32 - len(row["prompt"].split()) for row in kept}
    tokens = [
        min(room[row["id"]], len(row[side]["text"].split()) + row[side]["ended"])
        for row in kept
        for side in ("chosen", "rejected")
    ]
    assert found["train/supervised_tokens_per_row"] == pytest.approx(sum(tokens) / 18)
    assert set((tmp_path / "out" / "trained_on.txt").read_text().splitlines()) == {row["id"] for row in kept}
    counts = json.loads((tmp_path / "out" / "rendering.json").read_text())
    assert {f"rows_{name}": value for name, value in counts.items()}.items() <= found.items()


def test_only_the_chosen_answer_must_fit_where_only_it_is_read(words, tmp_path):
    good = words.tiny.table(words.pairs)
    data = write_rows(tmp_path / "data", [*good[:16], *odd(good[0])])
    (tmp_path / "out").mkdir()
    spec = words.policy(objective={"kind": "sft"})
    found = align(spec, tmp_path / "out", compute=words.tiny.compute(), data=data)
    assert (found["train/rows"], found["rows_dropped"], found["rows_truncated"]) == (19, 1, 1)


def test_rows_held_out_that_cannot_be_shown_are_none(words, tmp_path):
    spec = words.reward(eval_fraction=0.25)
    kept, held = hold_out(words.tiny.table(words.pairs), spec)
    data = write_rows(tmp_path / "data", [*kept, *(row | {"prompt": "bread " * 32} for row in held)])
    (tmp_path / "out").mkdir()
    found = train_reward(spec, tmp_path / "out", compute=words.tiny.compute(), data=data)
    assert (found["train/rows"], found["rows_dropped"]) == (ROWS - len(held), 0)


def test_training_goes_on_from_an_earlier_policy_and_is_held_to_it(words):
    """Its own log-probs make the first loss a coin's; those of the model before do not."""
    first = words.aligned(words.policy(objective={"kind": "sft"}, learning_rate=0.01))
    spec = words.policy(model={"layers": 4})
    of_itself = words.made(logprobs, LogprobSpec(model=spec.model, max_length=32), rows=words.rows, model=first)
    own = words.aligned(spec, model=first, reference=of_itself)
    other = words.aligned(spec, model=first)
    assert read_curves(own)[0][1]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(read_curves(other)[0][1]["loss"] - math.log(2)) > 0.01
    assert metrics_of(own)["train/steps"] == 2
