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


def test_the_stage_trains_by_vader_and_by_a_trained_reward_model(tiny: Any, tmp_path: Path) -> None:
    from trimtab.data.tables import Completion, write_jsonl
    from trimtab.models.reward import Rewarder
    from trimtab.stages.explore import explore, rewarding
    from trimtab.training.policies import new_model, save_trained

    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows/rows.jsonl", [row | {"candidates": []} for row in ROWS])
    (tmp_path / "out").mkdir()
    wanted = spec(tiny, kind=ExploreSpec, reward={"kind": "vader"})
    metrics = explore(wanted, tmp_path / "out", compute=tiny.compute(), rows=tmp_path / "rows")
    assert metrics["train/steps"] == 2 and -1 <= metrics["train/reward"] <= 1
    assert apart(tmp_path / "out/model", tiny.model) > 1e-3
    assert len((tmp_path / "out/trained_on.txt").read_text().split()) == len(ROWS)
