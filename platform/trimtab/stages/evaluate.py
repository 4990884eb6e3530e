"""Stages evaluate and audit: a model on the test split; weak labels against the truth that their maker never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.parts import EvalSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from torch import Tensor

OWN_ROWS = "weak, of a row its maker was trained on"
PREDICTIONS = "predictions.jsonl"


@stage(version=1, on="workers")
def evaluate(
    spec: EvalSpec, out: Path, *, compute: Compute, model: Path, data: Path, features: Path | None = None
) -> Metrics:
    """accuracy, auroc, ece and brier on labelled rows; predictions.jsonl holds id, label and probs of each."""
    from trimtab.data.tables import read_jsonl, write_jsonl
    from trimtab.training.world import world

    table = read_jsonl(data / ROWS)
    probs_NC = classify(model, table, features=features, compute=compute).softmax(-1)
    rows = [
        {"id": row["id"], "label": row["label"], "probs": [round(p, 7) for p in probs]}
        for row, probs in zip(table, probs_NC.tolist(), strict=True)
    ]
    if world().first:
        write_jsonl(out / PREDICTIONS, rows)
    return scores([row["probs"] for row in rows], [row["label"] for row in rows], bins=spec.ece_bins)


@stage(version=1, on="driver")
def audit(spec: EvalSpec, out: Path, *, compute: Compute, labels: Path, truth: Path) -> Metrics:
    """How right the weak labels are: accuracy, noise (share wrong), ece, brier. A diagnosis; no trainer reads it."""
    from trimtab.data.tables import read_jsonl

    right = {row["id"]: row["label"] for row in read_jsonl(truth / ROWS)}
    table = read_jsonl(labels / ROWS)
    found = scores([row["soft_label"] for row in table], [right[row["id"]] for row in table], bins=spec.ece_bins)
    own = sum(row["label_source"] == OWN_ROWS for row in table)
    return found | {"noise": 1 - found["accuracy"], "rows": len(table), "rows_trained_on": own}


def classify(model: Path, table: list[dict[str, Any]], *, features: Path | None, compute: Compute) -> Tensor:
    """logits_NC of every row of a table (id, text) on every rank, the ranks sharing the work.

    Raises DataError for an empty table, and StageError where a logit is not finite: labels or scores made of it would
    look like answers.
    """
    import torch

    from trimtab.models.classifier import Classifier, Inputs
    from trimtab.models.features import States
    from trimtab.training.world import world

    if not table:
        raise DataError(f"no rows for {model.name} to classify")
    ranks = world()
    mine = ranks.share(list(range(len(table))))
    states = States(features) if features else None
    inputs = Inputs([table[i]["id"] for i in mine], [table[i]["text"] for i in mine], states)
    logits = Classifier(model, cache=compute.cache, batch=compute.inference_batch).logits(inputs)
    parts = [(rows, logits_NC) for rows, logits_NC in ranks.gather((mine, logits)) if rows]
    result_NC = torch.empty(len(table), parts[0][1].shape[1])
    for rows, logits_NC in parts:
        result_NC[rows] = logits_NC
    if bad := [table[i]["id"] for i in (~result_NC.isfinite().all(-1)).nonzero()[:, 0].tolist()]:
        raise StageError(f"{model.name} gives {len(bad)} rows logits that are not finite: {', '.join(bad[:8])}")
    return result_NC


def scores(probs: list[list[float]], labels: list[int], *, bins: int) -> Metrics:
    """Accuracy, ECE and Brier score, and for two classes the AUROC."""
    import numpy as np

    from trimtab.metrics import accuracy, auroc, brier, ece

    probs_NC, labels_N = np.asarray(probs), np.asarray(labels)
    values: dict[str, Any] = {
        "accuracy": accuracy(probs_NC, labels_N),
        "ece": ece(probs_NC, labels_N, bins),
        "brier": brier(probs_NC, labels_N),
        "auroc": auroc(probs_NC[:, 1], labels_N) if probs_NC.shape[1] == 2 else None,
    }
    return {name: float(value) for name, value in values.items() if value is not None}
