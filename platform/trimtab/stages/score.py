"""Stages that score completions: VADER's sentiment, and reward models of any making."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trimtab.alignment import EnsembleSpec, RewardModel, Vader
from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import read_scores, write_scores
from trimtab.stages.prepare import ROWS


@stage(version=1, on="driver")
def vader(spec: Vader, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """The compound score of every completion, -1 to 1 (Hutto & Gilbert 2014). Raises DataError where all are alike."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    from trimtab.data.tables import read_jsonl

    score = SentimentIntensityAnalyzer().polarity_scores
    table = read_jsonl(rows / ROWS)
    return _written(
        out, {row["id"]: [score(c["text"])["compound"] for c in row["candidates"]] for row in table}, "VADER"
    )


@stage(version=1, on="workers")
def score(
    spec: RewardModel,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    model: Path | None = None,
    features: Path | None = None,
) -> Metrics:
    """A reward model's score of every completion: the one that an earlier stage trained, or the spec's own."""
    from trimtab.data.tables import read_jsonl
    from trimtab.models.reward import Rewarder
    from trimtab.training.world import world

    ranks = world()
    table = read_jsonl(rows / ROWS)
    mine = ranks.share(table)
    rewarder = Rewarder(spec, model, compute=compute)
    own = rewarder.rewards(mine, features) if mine else {}
    found = {row_id: values for part in ranks.gather(own) for row_id, values in part.items()}
    scores = {row["id"]: found[row["id"]] for row in table}
    return _written(out, scores, model.name if model else spec.model.source, write=ranks.first)


@stage(version=1, on="driver")
def combine(spec: EnsembleSpec, out: Path, *, compute: Compute, members: Mapping[str, Path]) -> Metrics:
    """Several models' scores into one; `disagreement` is the mean standard deviation between them (Coste et al. 2023).

    Each model's scores are first brought to mean 0 and spread 1 over all completions, so that none speaks louder.
    """
    import numpy as np

    tables = [read_scores(folder) for folder in members.values()]
    places = [(row_id, k) for row_id, values in tables[0].items() for k in range(len(values))]
    scores_MN = np.array([[table[row_id][k] for row_id, k in places] for table in tables])
    scores_MN = (scores_MN - scores_MN.mean(1, keepdims=True)) / scores_MN.std(1, keepdims=True)
    spread_N = scores_MN.std(0)
    combined_N = scores_MN.min(0) if spec.how == "min" else scores_MN.mean(0)
    if spec.how == "uncertainty":
        combined_N = combined_N - spec.penalty * spread_N
    found: dict[str, list[float]] = {}
    for (row_id, _), value in zip(places, combined_N.tolist(), strict=True):
        found.setdefault(row_id, []).append(value)
    return _written(out, found, "the ensemble") | {"disagreement": float(spread_N.mean())}


def _written(out: Path, scores: dict[str, list[float]], who: str, *, write: bool = True) -> Metrics:
    import numpy as np

    values = np.array([value for row in scores.values() for value in row])
    if bad := [row_id for row_id, row in scores.items() if not np.isfinite(row).all()]:
        raise StageError(f"{who} gives {len(bad)} rows scores that are not finite: {', '.join(bad[:8])}")
    if len(values) > 1 and values.std() == 0:
        raise DataError(
            f"{who} gives all {len(values)} completions the same score, {values[0]:g}: there is nothing to prefer"
        )
    if write:
        write_scores(out, scores)
    return {"rows": len(scores), "mean": float(values.mean()), "spread": float(values.std())}
