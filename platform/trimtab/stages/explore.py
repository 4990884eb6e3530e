"""Stage explore: a policy trained online, by the reward of what it samples itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.alignment import ExploreSpec, RewardModel, Vader
from trimtab.compute import Compute
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS
from trimtab.stages.train import TRAINED_ON

if TYPE_CHECKING:
    from trimtab.training.trainers.online import Reward


@stage(version=1, on="workers", resumes=True)
def explore(
    spec: ExploreSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    model: Path | None = None,
    reward: Path | None = None,
    partial: Path | None = None,
) -> Metrics:
    """A policy trained on the prompts of `rows`, from `model` where an earlier stage made it.

    `reward` is the output of train_reward; without it the spec's own reward is used.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.models.language import made_by
    from trimtab.training.online import train_online
    from trimtab.training.world import world

    table = read_jsonl(rows / ROWS)
    if world().first:
        (out / TRAINED_ON).write_text("\n".join(row["id"] for row in table))
    given = rewarding(spec.reward, reward, compute)
    spec = spec.model_copy(update={"model": made_by(model, spec.model)})
    return train_online(spec, out, compute=compute, rows=table, reward=given, partial=partial)


def rewarding(spec: Vader | RewardModel, trained: Path | None, compute: Compute) -> Reward:
    """The reward as a function of prompts and completions; a model is loaded once, and now."""
    if isinstance(spec, Vader):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        polarity = SentimentIntensityAnalyzer().polarity_scores
        return lambda prompts, completions: [polarity(c.text)["compound"] for c in completions]
    from trimtab.models.reward import Rewarder

    rewarder = Rewarder(spec, trained, compute=compute).loaded()

    def reward(prompts: list, completions: list) -> list[float]:
        rows = [
            {"id": str(i), "prompt": prompt, "candidates": [asdict(c)]}
            for i, (prompt, c) in enumerate(zip(prompts, completions, strict=True))
        ]
        return [values[0] for values in rewarder.rewards(rows).values()]

    return reward
