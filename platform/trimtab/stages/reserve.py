"""Stages reserve, reserve_prompts and allowed: what is set aside to choose by, before any split; the truth of a few."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.parts import ValidationSpec
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import SCORES, read_scores, write_scores
from trimtab.stages.prepare import ROWS


@stage(version=1, on="driver")
def reserve(spec: ValidationSpec, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """Parts `validation` (without labels), `truth` (the labels that may be used) and `rest`, which splits draw from."""
    from dataclasses import asdict

    from trimtab.data.splits import reserve_rows
    from trimtab.data.tables import Row, read_jsonl, write_jsonl

    found = reserve_rows([Row(**row) for row in read_jsonl(rows / ROWS)], spec)
    parts = {
        "validation": [{"id": row.id, "text": row.text} for row in found.validation],
        "truth": [{"id": row.id, "text": row.text, "label": row.label} for row in found.truth],
        "rest": [asdict(row) for row in found.rest],
    }
    for name, part in parts.items():
        (out / name).mkdir()
        write_jsonl(out / name / ROWS, part)
    return {name: len(part) for name, part in parts.items()}


@stage(version=1, on="driver")
def reserve_prompts(spec: ValidationSpec, out: Path, *, compute: Compute, rows: Path, scores: Path) -> Metrics:
    """Parts `validation` and `rest` of candidates, and `truth`: those whose scores may be used, with their scores.

    Raises DataError where truth may be used and there is none.
    """
    from trimtab.data.splits import reserve_prompts as reserved
    from trimtab.data.tables import read_candidates, write_jsonl

    if spec.truth and not (scores / SCORES).exists():
        raise DataError(f"validation.truth is {spec.truth}, but nothing says which answers are good: set it to 0")
    found = reserved(read_candidates(rows / ROWS), spec)
    parts = {"validation": found.validation, "truth": found.truth, "rest": found.rest}
    for name, part in parts.items():
        (out / name).mkdir()
        write_jsonl(out / name / ROWS, part)
    if spec.truth:
        known = read_scores(scores)
        write_scores(out / "truth", {row.id: known[row.id] for row in found.truth})
    return {name: len(part) for name, part in parts.items()}


@stage(version=1, on="driver")
def allowed(spec: ValidationSpec, out: Path, *, compute: Compute, rows: Path, truth: Path) -> Metrics:
    """Those samples of the validation prompts that a gold reward may be asked of. Raises DataError for none."""
    from trimtab.data.tables import read_jsonl, write_jsonl

    free = {row["id"] for row in read_jsonl(truth / ROWS)}
    kept = [row for row in read_jsonl(rows / ROWS) if row["id"] in free]
    if not kept:
        raise DataError(f"{rows / ROWS}: no prompt whose truth may be used has a sample; raise validation.truth")
    write_jsonl(out / ROWS, kept)
    return {"rows": len(kept)}


def set_aside(spec: Spec) -> list[str]:
    """What a job with validation rows has to say of them."""
    kept = spec.validation
    if kept is None:
        return []
    truth = f"{kept.truth} rows of truth were free to steer hyperparameters" if kept.truth else "none with its truth"
    return [f"{kept.rows} rows were set aside for choosing hyperparameters, in no split of any seed; {truth}."]
