"""Stages evaluate and audit: scores are those of metrics.py, on predictions that can be read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trimtab import metrics
from trimtab.compute import Compute
from trimtab.parts import EvalSpec
from trimtab.stages.evaluate import OWN_ROWS, audit, evaluate, scores

PROBS = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]]
LABELS = [0, 1, 0, 0]


def test_scores_of_predictions_made_by_hand():
    found = scores(PROBS, LABELS, bins=10)
    assert found["accuracy"] == 0.75
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.49 + 0.04) / 4)
    assert found["auroc"] == pytest.approx(2 / 3)
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 0.7 + 0.2) / 4)


def test_what_cannot_be_scored_is_left_out():
    assert "auroc" not in scores(PROBS, [0, 0, 0, 0], bins=10)
    three = scores([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], [0, 1], bins=10)
    assert three.keys() == {"accuracy", "ece", "brier"}
    assert three["accuracy"] == 0.5


def jsonl(folder, rows):
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_an_audit_counts_noise_and_remembered_rows(tmp_path):
    sources = ["weak", OWN_ROWS, "weak", OWN_ROWS]
    given = [
        {"id": f"r{i}", "soft_label": probs, "label_source": source}
        for i, (probs, source) in enumerate(zip(PROBS, sources, strict=True))
    ]
    truth = [{"id": f"r{i}", "label": right} for i, right in reversed(list(enumerate(LABELS)))]
    found = audit(
        EvalSpec(),
        tmp_path,
        compute=Compute(backend="inline"),
        labels=jsonl(tmp_path / "labels", given),
        truth=jsonl(tmp_path / "truth", [*truth, {"id": "another", "label": 1}]),
    )
    assert found == scores(PROBS, LABELS, bins=10) | {"noise": 0.25, "rows": 4, "rows_trained_on": 2}


@pytest.mark.slow
def test_metrics_are_those_of_the_predictions_that_were_written(tiny, tmp_path):
    model = tiny.trained(tiny.spec(eval_fraction=0.25, learning_rate=0.01))
    found = evaluate(EvalSpec(ece_bins=5), tmp_path, compute=tiny.compute(), model=model, data=tiny.test)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    table = tiny.table(tiny.test)
    assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in table]
    probs, truth = np.array([row["probs"] for row in rows]), [row["label"] for row in rows]
    assert found == {
        "accuracy": metrics.accuracy(probs, truth),
        "auroc": metrics.auroc(probs[:, 1], truth),
        "ece": metrics.ece(probs, truth, 5),
        "brier": metrics.brier(probs, truth),
    }
    assert probs.sum(1) == pytest.approx(1, abs=1e-6)
