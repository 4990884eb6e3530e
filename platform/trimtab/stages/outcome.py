"""What a stage found of every row, as a table that searches and comparisons read: row id, then metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trimtab.errors import DataError
from trimtab.stages._base import Metrics

OUTCOME = "outcome.jsonl"
OF_TRUTH = frozenset({"accuracy", "gold", "gold_reweighted"})
"""What a validation outcome says only of rows whose truth may be used."""
Found = dict[str, dict[str, float]]
"""metric -> row id -> value; a metric need not be known of every row."""


def write_outcome(out: Path, rows: Sequence[dict[str, Any]]) -> Metrics:
    """Keep what was found of every row; the means, and how many rows each is over."""
    from trimtab.data.tables import write_jsonl

    write_jsonl(out / OUTCOME, rows)
    found = by_metric(rows)
    return {name: fmean(of.values()) for name, of in found.items()} | {"rows": len(rows)}


def by_metric(rows: Sequence[dict[str, Any]]) -> Found:
    found: Found = {}
    for row in rows:
        for name, value in row.items():
            if name != "id" and value is not None:
                found.setdefault(name, {})[row["id"]] = value
    return found


def read_outcome(folder: Path) -> Found:
    """What stages found row by row: validate and its like; evaluate, grade and rank (accuracy); measure.

    Raises DataError for the output of another stage.
    """
    from trimtab.data.tables import read_jsonl
    from trimtab.stages.evaluate import PREDICTIONS
    from trimtab.stages.measure import SAMPLES

    if (folder / OUTCOME).exists():
        return by_metric(read_jsonl(folder / OUTCOME))
    if (folder / PREDICTIONS).exists():
        return {"accuracy": {row["id"]: _right(row) for row in read_jsonl(folder / PREDICTIONS)}}
    if not (folder / SAMPLES).exists():
        raise DataError(f"{folder} says nothing of single rows: it is no outcome of a validation or a test")
    return by_metric([_means(row) for row in read_jsonl(folder / SAMPLES)])


def _right(row: dict[str, Any]) -> float:
    return float(max(range(len(row["probs"])), key=row["probs"].__getitem__) == row["label"])


def _means(row: dict[str, Any]) -> dict[str, Any]:
    """Of a prompt's samples; what is not known of them is left out."""
    return {"id": row["id"]} | {name: fmean(row[name]) for name in ("gold", "kl", "tokens") if None not in row[name]}
