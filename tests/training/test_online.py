"""Policies trained on samples of their own, on the tiny network: what moves them, what holds them, what stops them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.alignment import DistilSpec, ExploreSpec, OnlineSpec, PolicySpec
from trimtab.errors import DataError, StageError
from trimtab.pipelines.preference import Preference

GOOD = ("bright", "calm", "clear", "fine", "kind", "warm")
PLAIN = ("bread", "cup", "door", "house", "lamp", "letter", "morning", "river", "road", "stone", "table", "window")
ROWS = [{"id": f"r{i}", "prompt": f"{PLAIN[i % 12]} {PLAIN[(5 * i + i // 12) % 12]}"} for i in range(32)]
SAMPLING = {"samples": 4, "max_new_tokens": 6}


def goodness(prompts: list[Any], completions: list[Any]) -> list[float]:
    """How many good words there are in a completion."""
    return [float(sum(word in GOOD for word in c.text.split())) for c in completions]


def spec(tiny: Any, steps: int = 2, kind: type = OnlineSpec, **fields: Any) -> Any:
    """Steps of 16 samples, in float32."""
    usual = {"model": {"source": str(tiny.model), "dtype": "float32"}, "learning_rate": 1e-2, "sampling": SAMPLING}
    samples = 4 if issubclass(kind, OnlineSpec) else 1
    usual |= {"batch_size": 16, "num_train_epochs": 16 * steps / (len(ROWS) * samples)}
    return kind.model_validate(usual | fields)


def online(tiny: Any, out: Path, *, rows: Any = ROWS, reward: Any = goodness, **fields: Any) -> dict[str, float]:
    from trimtab.training.online import train_online

    compute = tiny.compute(**fields.pop("compute", {}))
    out.mkdir(exist_ok=True)
    partial = fields.pop("partial", None)
    return train_online(spec(tiny, **fields), out, compute=compute, rows=rows, reward=reward, partial=partial)


def curve(out: Path, name: str) -> list[float]:
    entries = [json.loads(line)["values"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [values[name] for values in entries if name in values]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two models."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_what_is_rewarded_becomes_common(tiny: Any, tmp_path: Path) -> None:
    metrics = online(tiny, tmp_path / "out", steps=20)
    rewards = curve(tmp_path / "out", "objective/reward")
    assert len(rewards) == 20 and metrics["train/reward"] == rewards[-1]
    assert sum(rewards[-3:]) / 3 > 2 * sum(rewards[:3]) / 3
    assert curve(tmp_path / "out", "objective/kl")[-1] > 0.1
    assert all(map(math.isfinite, curve(tmp_path / "out", "loss")))


def test_a_reward_that_tells_nothing_apart_moves_nothing_without_a_reference(tiny: Any, tmp_path: Path) -> None:
    online(tiny, tmp_path / "out", reward=lambda prompts, completions: [1.0] * len(completions), beta=0)
    assert curve(tmp_path / "out", "objective/frac_reward_zero_std") == [1, 1]
    assert apart(tmp_path / "out/model", tiny.model) == 0


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_reference_is_the_policy_as_it_came_cut_to_its_layers(tiny: Any, tmp_path: Path, tune: str) -> None:
    model = {"source": str(tiny.model), "dtype": "float32", "layers": 2}
    online(tiny, tmp_path / "out", model=model, tune={"kind": tune})
    first, second = curve(tmp_path / "out", "objective/kl")
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 1e-3


def test_a_stronger_hold_keeps_the_policy_nearer(tiny: Any, tmp_path: Path) -> None:
    for beta in (0.001, 2.0):
        online(tiny, tmp_path / str(beta), steps=10, beta=beta)
    loose, tight = (curve(tmp_path / name, "objective/kl")[-1] for name in ("0.001", "2.0"))
    assert tight < loose / 2


def test_micro_batches_add_up_to_the_step(tiny: Any, tmp_path: Path) -> None:
    online(tiny, tmp_path / "whole")
    online(tiny, tmp_path / "parts", compute={"micro_batch": 4})
    assert apart(tmp_path / "whole/model", tiny.model) > 1e-3
    assert apart(tmp_path / "parts/model", tmp_path / "whole/model") < 1e-4
    assert curve(tmp_path / "parts", "loss") == pytest.approx(curve(tmp_path / "whole", "loss"), abs=1e-5)


def test_a_training_cut_short_ends_as_if_it_had_not_been(tiny: Any, tmp_path: Path) -> None:
    calls = 0

    def fails_once(prompts: list[Any], completions: list[Any]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise ConnectionError("the reward is not to be reached")
        return goodness(prompts, completions)

    # 12 steps are an epoch and a half, and the reward is lost within the second epoch
    often = {"steps": 12, "compute": {"checkpoint_steps": 2}, "partial": tmp_path / "partial"}
    with pytest.raises(ConnectionError):
        online(tiny, tmp_path / "cut", reward=fails_once, **often)
    online(tiny, tmp_path / "resumed", reward=fails_once, **often)
    assert calls == 12 + 2
    online(tiny, tmp_path / "whole", steps=12)
    assert apart(tmp_path / "resumed/model", tmp_path / "whole/model") == 0
    assert curve(tmp_path / "resumed", "objective/reward") == curve(tmp_path / "whole", "objective/reward")


def test_a_reward_that_is_not_finite_is_an_error(tiny: Any, tmp_path: Path) -> None:
    def broken(prompts: list[Any], completions: list[Any]) -> list[float]:
        return [math.nan, *goodness(prompts, completions)[1:]]

    with pytest.raises(StageError, match="1 of 16 rewards are not finite at step 1 of 2"):
        online(tiny, tmp_path / "out", reward=broken)


def test_a_policy_that_fell_apart_is_an_error(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="probabilities are not finite at step 2 of 2: lower learning_rate"):
        online(tiny, tmp_path / "out", learning_rate=1e30)


def test_long_prompts_are_left_out_and_too_few_are_an_error(tiny: Any, tmp_path: Path) -> None:
    rows = [*ROWS, {"id": "long", "prompt": "bread " * 20}]
    seen = set()

    def noting(prompts: list[Any], completions: list[Any]) -> list[float]:
        seen.update(prompts)
        return goodness(prompts, completions)

    metrics = online(tiny, tmp_path / "out", rows=rows, reward=noting, sampling=SAMPLING | {"max_prompt_tokens": 8})
    assert metrics["dropped_long_prompt"] == 1 and metrics["train/rows"] == len(ROWS)
    assert seen <= {row["prompt"] for row in ROWS}
    with pytest.raises(DataError, match="3 prompts with 4 samples each, but batch_size is 16"):
        online(tiny, tmp_path / "few", rows=ROWS[:3])


def test_the_stage_trains_by_vader(tiny: Any, tmp_path: Path) -> None:
    from trimtab.stages.explore import explore

    wanted = spec(tiny, kind=ExploreSpec, reward={"kind": "vader"})
    rows = folder(tmp_path / "rows", [row | {"candidates": []} for row in ROWS])
    out = folder(tmp_path / "out", [])
    metrics = explore(wanted, out, compute=tiny.compute(), rows=rows)
    assert metrics["train/steps"] == 2 and -1 <= metrics["train/reward"] <= 1
    assert apart(out / "model", tiny.model) > 1e-3
    assert (out / "trained_on.txt").read_text().split() == [row["id"] for row in ROWS]


def test_a_trained_reward_model_gives_what_stage_score_gives(tiny: Any, tmp_path: Path) -> None:
    from trimtab.alignment import RewardModel, RewardSpec
    from trimtab.data.tables import Completion
    from trimtab.stages.align import train_reward
    from trimtab.stages.explore import explore, rewarding
    from trimtab.stages.pairs import read_scores
    from trimtab.stages.score import score

    model = {"source": str(tiny.model), "dtype": "float32"}
    pairs = [
        {"id": row["id"], "prompt_id": row["id"], "prompt": row["prompt"], "p": 0.9, "margin": 1.0}
        | {"chosen": {"text": "kind calm", "ended": True}, "rejected": {"text": "cold", "ended": True}}
        | {"chosen_index": 0, "rejected_index": 1}
        for row in ROWS
    ]
    judge = folder(tmp_path / "judge", [])
    fields = {"model": model, "batch_size": 16, "learning_rate": 1e-2, "max_length": 32}
    train_reward(RewardSpec(**fields), judge, compute=tiny.compute(), data=folder(tmp_path / "pairs", pairs))

    said = [{"text": "warm road", "ended": True}, {"text": "sour road", "ended": False}, {"text": "", "ended": False}]
    rows = folder(tmp_path / "rows", [row | {"candidates": said} for row in ROWS])
    wanted, scored = RewardModel(model=model, max_length=32), folder(tmp_path / "scored", [])
    score(wanted, scored, compute=tiny.compute(), rows=rows, model=judge)
    asked = [(row["prompt"], Completion(**one)) for row in ROWS for one in said]
    told = rewarding(wanted, judge, tiny.compute())(*map(list, zip(*asked, strict=True)))
    assert told == pytest.approx([v for values in read_scores(scored).values() for v in values], abs=1e-5)

    out = folder(tmp_path / "out", [])
    explore(spec(tiny, 8, ExploreSpec, reward=wanted), out, compute=tiny.compute(), rows=rows, reward=judge)
    rewards = curve(out, "objective/reward")
    assert sum(rewards[-2:]) > sum(rewards[:2])


def test_a_teacher_is_approached_on_the_policy_s_own_samples(tiny: Any, tmp_path: Path) -> None:
    from trimtab.models.network import load_tokenizer
    from trimtab.training.online import train_distilled

    teacher = other_model(tiny, tmp_path / "teacher")
    load_tokenizer(tiny.model).save_pretrained(teacher)
    before = {name: value.clone() for name, value in weights(teacher).items()}
    for name, beta in (("forward", 0.0), ("reverse", 1.0)):
        wanted = spec(tiny, 12, DistilSpec, beta=beta, teacher={"source": str(teacher), "dtype": "float32"})
        out = folder(tmp_path / name, [])
        metrics = train_distilled(wanted, out, compute=tiny.compute(), rows=ROWS)
        losses = curve(out, "loss")
        assert metrics["train/steps"] == 12 and losses[0] > 0
        assert sum(losses[-3:]) < 0.7 * sum(losses[:3]), (name, losses)
    assert all(bool((before[name] == value).all()) for name, value in weights(teacher).items())


def test_its_own_teacher_has_nothing_to_teach(tiny: Any, tmp_path: Path) -> None:
    from trimtab.training.online import train_distilled

    wanted = spec(tiny, 2, DistilSpec, teacher={"source": str(tiny.model), "dtype": "float32"})
    train_distilled(wanted, tmp_path, compute=tiny.compute(), rows=ROWS)
    assert curve(tmp_path, "loss") == pytest.approx([0, 0], abs=1e-5)


def other_model(tiny: Any, place: Path) -> Path:
    """The tiny network with a little noise on its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.model)
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(place)
    return place


def folder(place: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder as stages read it."""
    from trimtab.data.tables import write_jsonl

    place.mkdir()
    write_jsonl(place / "rows.jsonl", rows)
    return place


JOB = {
    "task": {"source": "builtin:openings"},
    "supervisor": {"kind": "reward", "model": "builtin:smollm2-135m"},
    "ceiling": {"model": "builtin:smollm2-135m"},
}
ONLINE = {"kind": "online", "model": "builtin:smollm2-135m"}


def test_a_student_without_a_kind_learns_from_pairs() -> None:
    job = Preference.model_validate(JOB | {"students": {"plain": JOB["ceiling"], "named": ONLINE}})
    assert type(job.students["plain"]) is PolicySpec and type(job.ceiling) is PolicySpec
    assert type(job.students["named"]) is OnlineSpec


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"supervisor": {"kind": "policy", "model": "builtin:smollm2-135m"}}, "asks one reward model"),
        ({"ensemble": {"members": 3}}, "asks one reward model"),
        ({"ceiling": ONLINE, "gold": {"kind": "given"}, "sampling": None}, "a given order says nothing of new samples"),
    ],
)
def test_an_online_policy_needs_a_reward_that_can_be_asked(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Preference.model_validate(JOB | {"students": {"one": ONLINE}} | changed)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sampling": {"samples": 1}}, "sampling.samples is 1"),
        ({"batch_size": 12}, "batch_size 12 is no multiple of sampling.samples, which is 8"),
        ({"sampling": {"samples": 8, "temperature": 0}}, "all samples would be alike"),
        ({"eval_fraction": 0.1}, "a policy that samples has none"),
    ],
)
def test_what_cannot_be_compared_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        OnlineSpec.model_validate({"model": "builtin:smollm2-135m"} | fields)
