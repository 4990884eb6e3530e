"""Learning curves: metrics.jsonl in a model's folder is the truth; whoever listens hears the same."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab import progress

CURVES = "metrics.jsonl"
TRAININGS = ("train", "align", "train_reward", "explore")
"""Names of the stages that train."""
WATCHED = {
    "eval_weak_agreement": "eval_agreement",
    "eval_weak_cross_entropy": "eval_loss",
    "eval_oracle_agreement": "oracle/accuracy",
}
"""What is measured on rows held out (against their labels) and on oracle rows (against the truth), as it is logged."""

Point = tuple[int, dict[str, float]]


def write_curve(out: Path, step: int, values: dict[str, float]) -> None:
    """One point, appended."""
    with (out / CURVES).open("a") as file:
        file.write(json.dumps({"step": step, "values": values}) + "\n")
    progress.emit("metrics", step=step, values=values)


def read_curves(folder: Path) -> list[Point]:
    """(step, values) in the order they were logged; empty where a training logged nothing."""
    path = folder / CURVES
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["step"], entry["values"]) for entry in map(json.loads, lines)]
