"""Stage label: a supervisor's probabilities for rows whose truth it is not shown."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.parts import LabelSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.evaluate import OWN_ROWS, classify
from trimtab.stages.prepare import ROWS
from trimtab.stages.train import TRAINED_ON


@stage(version=1, on="workers")
def label(
    spec: LabelSpec, out: Path, *, compute: Compute, model: Path, data: Path, features: Path | None = None
) -> Metrics:
    """Weak labels: id, text, soft_label, hard_label, weak_model, weak_confidence, label_source.

    A row that the model was itself trained on says so in label_source: its label may be remembered, not judged.
    """
    from trimtab.data.tables import WeakLabel, read_jsonl, write_jsonl
    from trimtab.training.world import world

    table = read_jsonl(data / ROWS)
    logits_NC = classify(model, table, features=features, compute=compute)
    soft_NC = (logits_NC / spec.temperature).softmax(-1)
    confidence_N, hard_N = soft_NC.max(-1)
    trained_on = set((model / TRAINED_ON).read_text().splitlines())
    if world().first:
        write_jsonl(
            out / ROWS,
            [
                WeakLabel(
                    id=row["id"],
                    text=row["text"],
                    soft_label=[round(p, 7) for p in soft],
                    hard_label=hard,
                    weak_model=model.name,
                    weak_confidence=round(confidence, 7),
                    label_source=OWN_ROWS if row["id"] in trained_on else "weak",
                )
                for row, soft, hard, confidence in zip(
                    table, soft_NC.tolist(), hard_N.tolist(), confidence_N.tolist(), strict=True
                )
            ],
        )
    return {"rows": len(table), "weak_confidence": float(confidence_N.mean())}
