"""Stages validate, validate_order and validate_samples: how models do on what is set aside to choose by.

Everything is said row by row; what takes truth is said only of the rows whose truth may be used.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from trimtab.alignment import MeasureSpec, RankSpec
from trimtab.compute import Compute
from trimtab.parts import EvalSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.evaluate import classify
from trimtab.stages.measure import sampled
from trimtab.stages.outcome import write_outcome
from trimtab.stages.pairs import difference_of, ordering, read_scores
from trimtab.stages.prepare import ROWS


@stage(version=1, on="workers")
def validate(
    spec: EvalSpec, out: Path, *, compute: Compute, model: Path, labels: Path, truth: Path, features: Path | None = None
) -> Metrics:
    """Of every row: agreement with the weak label's class and cross-entropy to it; of rows in `truth`: accuracy."""
    import torch

    from trimtab.data.tables import read_jsonl
    from trimtab.training.world import world

    table = read_jsonl(labels / ROWS)
    right = {row["id"]: row["label"] for row in read_jsonl(truth / ROWS)}
    logits_NC = classify(model, table, features=features, compute=compute)
    weak_NC = torch.tensor([row["soft_label"] for row in table])
    said_N = logits_NC.argmax(-1)
    found = {
        "agreement": (said_N == weak_NC.argmax(-1)).float().tolist(),
        "cross_entropy": torch.nn.functional.cross_entropy(logits_NC.float(), weak_NC, reduction="none").tolist(),
    }
    rows = [{"id": row["id"]} | {k: v[i] for k, v in found.items()} for i, row in enumerate(table)]
    for row, said in zip(rows, said_N.tolist(), strict=True):
        if row["id"] in right:
            row["accuracy"] = float(said == right[row["id"]])
    return write_outcome(out, rows) if world().first else {}


@stage(version=1, on="driver")
def validate_order(
    spec: RankSpec, out: Path, *, compute: Compute, weak: Path, truth: Path | None = None, **by: Path
) -> Metrics:
    """Of every prompt, the share of its pairs that `by` orders as they stand, ties half; `by` is that of stage rank.

    agreement: of pairs by weak scores; accuracy: of pairs by the truth that may be used.
    """
    from trimtab.data.tables import read_jsonl

    given, rows = ordering(spec, by), defaultdict(dict)
    for name, pairs in {"agreement": weak, "accuracy": truth}.items():
        shares: dict[str, list[float]] = defaultdict(list)
        for pair in read_jsonl(pairs / ROWS) if pairs else ():
            difference = difference_of(given, pair)
            shares[pair["prompt_id"]].append(0.5 if difference == 0 else float(difference > 0))
        for prompt, values in shares.items():
            rows[prompt] |= {"id": prompt, name: fmean(values)}
    return write_outcome(out, list(rows.values()))


@stage(version=1, on="driver")
def validate_samples(
    spec: MeasureSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    reference: Path,
    policy: Path | None = None,
    weak: Path | None = None,
    gold: Path | None = None,
) -> Metrics:
    """Of every prompt, means over its samples: kl to the reference, where it is known, tokens, and with the
    supervisor's scores weak_reward; of prompts that `gold` has scores of: gold.
    """
    rewards = {name: read_scores(scores) for name, scores in {"weak_reward": weak, "gold": gold}.items() if scores}
    table = []
    for one in sampled(spec, rows, reference=reference, policy=policy):
        row_id = one.row["id"]
        found = {"id": row_id, "tokens": fmean(one.tokens)} | ({} if None in one.kl else {"kl": fmean(one.kl)})
        table.append(found | {name: fmean(known[row_id]) for name, known in rewards.items() if row_id in known})
    return write_outcome(out, table)
