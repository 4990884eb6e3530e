"""Policies and reward models trained on preferences, on a tiny network in float32."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_rows
from tests.preferring import ROWS, Preferring, asked, metrics_of

from trimtab.alignment import RewardModel
from trimtab.data.rendering import render_all
from trimtab.errors import DataError, StageError
from trimtab.models.language import LanguageModel, load_language
from trimtab.models.network import load_tokenizer
from trimtab.spec import methods_in
from trimtab.stages.align import align
from trimtab.stages.pairs import implied, read_scores
from trimtab.stages.score import score
from trimtab.training.curves import read_curves

pytestmark = pytest.mark.slow

POLICIES = sorted(methods_in("trimtab.methods.preferences"))
REWARDS = sorted(methods_in("trimtab.methods.rewards"))
HALVES = {"lora": {"kind": "lora", "alpha": 64}, "top": {"kind": "top", "layers": 1}}
HELD = {"eval_fraction": 0.25, "batch_size": 8, "num_train_epochs": 3}


@pytest.fixture(scope="module")
def words(tiny):
    return Preferring(tiny)


def trained(words, kind, compute=None, **fields):
    """A policy or a reward model, by the kind of its objective."""
    if kind in POLICIES:
        return words.aligned(words.policy(objective={"kind": kind}, **fields), compute)
    return words.rewarder(words.reward(objective={"kind": kind}, **fields), compute)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def furthest(left, right) -> float:
    """The largest difference between any two weights of the same name."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def same(left, right) -> None:
    """On average to seven digits; Adam's first steps make much of single gradients that are hardly any."""
    assert furthest(left, right) < 1e-4
    assert sum((left[name] - right[name]).abs().mean().item() for name in left) / len(left) < 1e-7


def steps(folder):
    """What was logged of every step."""
    return [values for _, values in read_curves(folder) if "loss" in values]


@pytest.mark.parametrize("kind", POLICIES)
def test_every_objective_trains_a_policy(tiny, words, kind):
    from transformers import AutoModelForCausalLM

    out = trained(words, kind)
    model, report = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert 1e-4 < furthest(weights(out), load_file(tiny.model / "model.safetensors")) < 0.01
    assert len(steps(out)) == metrics_of(out)["train/steps"] == (4 if kind == "kto" else 2)
    assert all(math.isfinite(value) for values in steps(out) for value in values.values())


@pytest.mark.parametrize("kind", [kind for kind in REWARDS if kind != "conflict"])
def test_every_objective_trains_a_reward_model(tiny, words, kind):
    from transformers import AutoModelForSequenceClassification

    out = trained(words, kind)
    model, report = AutoModelForSequenceClassification.from_pretrained(out / "model", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == 1
    before = load_file(tiny.model / "model.safetensors")
    assert {name for name in before if name not in weights(out)} == {"lm_head.weight"}
    assert max((before[n] - weight).abs().max() for n, weight in weights(out).items() if n in before) > 1e-4
    assert all(math.isfinite(value) for values in steps(out) for value in values.values())


def test_a_policy_begins_at_its_reference(words):
    """Every log-ratio is 0 at the first step, so each loss is that of a coin."""
    first = {kind: steps(trained(words, kind))[0] for kind in ("dpo", "softdpo", "kto", "bradley_terry")}
    for kind in ("dpo", "softdpo", "bradley_terry"):
        assert first[kind]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for kind in ("dpo", "softdpo", "kto"):
        assert first[kind]["objective/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["kto"]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["kto"]["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_training_learns_the_preference(words):
    for kind in ("dpo", "kto", "bradley_terry"):
        told = steps(trained(words, kind, num_train_epochs=5))
        accuracy = "objective/rewards/accuracies" if kind == "dpo" else "objective/accuracy"
        assert told[-1]["loss"] < told[0]["loss"] - 0.01
        assert told[-1][accuracy] > 0.9


@pytest.mark.parametrize("kind", ["dpo", "kto", "bradley_terry"])
def test_the_effective_batch_decides_not_the_micro_batch(tiny, words, kind):
    whole, parts = (trained(words, kind, tiny.compute(micro_batch=rows)) for rows in (16, 4))
    same(weights(whole), weights(parts))
    if kind == "kto":
        assert max(values["objective/kl"] for values in steps(whole)) > 0.01, "or there is no distance to agree on"
        for left, right in zip(steps(whole), steps(parts), strict=True):
            assert left["objective/kl"] == pytest.approx(right["objective/kl"], abs=1e-4)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_every_zero_stage_trains_the_same_policy(tiny, words, zero_stage):
    one, other = (weights(trained(words, "dpo", tiny.compute(zero_stage=stage))) for stage in (1, zero_stage))
    same(one, other)


def test_the_second_forward_of_kto_goes_with_spread_weights(tiny, words):
    one, three = (weights(trained(words, "kto", tiny.compute(zero_stage=stage, micro_batch=8))) for stage in (1, 3))
    same(one, three)


@pytest.mark.parametrize("kind", ["dpo", "bradley_terry"])
@pytest.mark.parametrize("tune", HALVES)
def test_only_what_is_tuned_moves(tiny, words, kind, tune):
    out = trained(words, kind, tune=HALVES[tune])
    before, after = load_file(tiny.model / "model.safetensors"), weights(out)
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    if tune == "top":
        assert changed == {n for n in after if n.startswith(("model.layers.3.", "model.norm"))}
    else:
        assert changed == {n for n in after if n.startswith("model.layers.") and "norm" not in n}
        assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_the_language_head_on_completions_alone_says_what_the_others_say(tiny, words):
    """Three ways to a token's log-prob: ours for CPUs, TRL's kernel for GPUs, and the one that frozen models go."""
    from trl.trainer.utils import add_fused_lm_head

    from trimtab.training.completions import Collate, Shown
    from trimtab.training.trainers.pairs import IGNORED, compact, fused

    tokenizer, model = load_tokenizer(tiny.model), load_language(words.policy().model, tiny.root)
    completions = [(row["prompt"], c["text"], c["ended"]) for row in asked() for c in row["candidates"]]
    rendered, _ = render_all(tokenizer, completions, max_length=32)
    rows = [tuple(rendered[i : i + 2]) for i in range(0, len(rendered), 2)]
    data = Shown([str(i) for i in range(len(rows))], rows, torch.ones(len(rows)), torch.ones(len(rows)))
    batch = Collate(data, tokenizer.pad_token_id)([{"row": i} for i in range(len(rows))])
    ids, mask, wanted = (batch[n].flatten(0, 1) for n in ("input_ids", "attention_mask", "completion_mask"))
    labels, shown = ids.masked_fill(wanted == 0, IGNORED), {"input_ids": ids, "attention_mask": mask}
    add_fused_lm_head(model)
    with torch.inference_mode():
        ours, theirs = compact(model, shown, labels), fused(model, shown, labels)
    assert ours.shape == theirs.shape == (2 * ROWS, ids.shape[1] - 1)
    assert (ours - theirs).abs().max() < 1e-5
    assert not ours[wanted[:, 1:] == 0].any()
    scored = LanguageModel(model, ends=frozenset(), batch=7).score(
        [r.prompt_ids for r in rendered], [r.completion_ids for r in rendered]
    )
    said = torch.tensor([p for one in scored for p in one.logprobs])
    assert (ours[wanted[:, 1:] == 1] - said).abs().max() < 1e-5


def test_gradients_flow_through_the_language_head_on_completions_alone(tiny, words):
    from trl.trainer.utils import add_fused_lm_head

    from trimtab.training.trainers.pairs import compact, fused

    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 1, 1]])
    shown = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    labels = torch.tensor([[-100, -100, 5, 6, 7], [-100, 9, 10, -100, -100]])
    found = []
    for kernel in (compact, fused):
        model = load_language(words.policy().model, tiny.root)
        add_fused_lm_head(model)
        kernel(model, shown, labels).sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    assert furthest(*found) < 1e-4
    assert found[0]["model.embed_tokens.weight"].abs().max() > 0.01


def held_out(out):
    """Pairs that a model was not trained on."""
    kept = set((out / "trained_on.txt").read_text().splitlines())
    return [row for row in asked() if not any(name.startswith(f"{row['id']}:") for name in kept)]


def test_rows_held_out_are_watched_and_nothing_else(tiny, words):
    """The last agreement that is logged is what the saved policy itself says of the pairs that were held out."""
    out = trained(words, "dpo", **HELD)
    rows = write_rows(tiny.root / "held", held_out(out))
    assert len(tiny.table(rows)) == ROWS // 4
    after = words.logprobs(rows, model={"source": str(out / "model"), "dtype": "float32"})
    rewards = implied(after, words.logprobs(words.rows), 0.1)
    right = [rewards[p["prompt_id"]] for p in tiny.table(words.pairs) if p["prompt_id"] in rewards]
    chosen = [p["chosen_index"] for p in tiny.table(words.pairs) if p["prompt_id"] in rewards]
    agreement = sum(r[c] > r[1 - c] for r, c in zip(right, chosen, strict=True)) / len(right)
    told = [values["eval_agreement"] for _, values in read_curves(out) if "eval_agreement" in values]
    assert told[-1] == pytest.approx(agreement)
    assert metrics_of(out)["train/rows"] == ROWS * 3 // 4


def test_a_reward_model_and_single_completions_are_watched_too(tiny, words):
    out = trained(words, "bradley_terry", **HELD)
    rows = write_rows(tiny.root / "held", held_out(out))
    wanted = RewardModel(model=words.reward().model, max_length=32)
    scores = read_scores(words.made(score, wanted, rows=rows, model=out))
    chosen = {pair["prompt_id"]: pair["chosen_index"] for pair in tiny.table(words.pairs)}
    right = sum(values[chosen[i]] > values[1 - chosen[i]] for i, values in scores.items()) / len(scores)
    assert read_curves(out)[-1][1]["eval_agreement"] == pytest.approx(right)
    singles = read_curves(trained(words, "kto", **HELD))
    assert 0.5 < singles[-1][1]["eval_agreement"] <= 1


def test_where_an_objective_prefers_nothing_there_is_no_agreement(words):
    out = trained(words, "sft", **HELD)
    assert not any("eval_agreement" in values for _, values in read_curves(out))
    assert metrics_of(out)["train/steps"] == 9


@pytest.mark.parametrize("kind", ["dpo", "bradley_terry"])
def test_too_few_rows_for_one_batch_are_refused(words, kind):
    with pytest.raises(DataError, match=f"{ROWS} rows to train on but batch_size is {ROWS + 1}"):
        trained(words, kind, batch_size=ROWS + 1)


def test_weights_that_are_not_finite_are_not_saved(words, tmp_path):
    spec = words.policy(learning_rate=1e39, num_train_epochs=0.5)
    with pytest.raises(StageError, match="not finite after the last step; lower learning_rate"):
        align(spec, tmp_path, compute=words.tiny.compute(), **words.inputs(spec))
    assert not (tmp_path / "model").exists()
