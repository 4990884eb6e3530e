"""Stages evaluate and audit: a model on the test split; weak labels against the truth that their maker never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.parts import EvalSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS

OWN_ROWS = "weak, of a row its maker was trained on"
PREDICTIONS = "predictions.jsonl"


@stage(version=1, on="workers")
def evaluate(
    spec: EvalSpec, out: Path, *, compute: Compute, model: Path, data: Path, features: Path | None = None
) -> Metrics:
    """accuracy, auroc, ece and brier on labelled rows; predictions.jsonl holds id, label and probs of each."""
    from trimtab.data.tables import read_jsonl, write_jsonl
    from trimtab.models.classifier import classify
    from trimtab.training.world import world

    table = read_jsonl(data / ROWS)
    probs_NC = classify(model, table, features=features, cache=compute.cache, batch=compute.inference_batch).softmax(-1)
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
