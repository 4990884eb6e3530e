"""Stages prompts and divide: prompts are read and drawn for supervise, transfer and test; truth kept apart."""

from __future__ import annotations

from pathlib import Path

from trimtab.alignment import PromptSpec
from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.parts import SplitSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import SCORES
from trimtab.stages.prepare import ROWS

TRUTH = "truth"


@stage(version=1, on="driver")
def prompts(spec: PromptSpec, out: Path, *, compute: Compute) -> Metrics:
    """Candidates; scores.jsonl where the data say which answer is good. Raises DataError above `max_bad_fraction`."""
    from trimtab.data.doctor import write_quarantine
    from trimtab.data.formats import stable_hash
    from trimtab.data.preferences import read_prompts
    from trimtab.data.tables import write_jsonl

    result = read_prompts(spec)
    rows = sorted(result.rows, key=lambda row: stable_hash(row.id))[: spec.limit] if spec.limit else result.rows
    write_jsonl(out / ROWS, rows)
    if result.given_scores:
        write_jsonl(out / SCORES, [{"id": row.id, "scores": result.given_scores[row.id]} for row in rows])
    write_quarantine(result.rejected, out / "quarantine.jsonl")
    return {"rows": len(rows), "rejected": len(result.rejected), "beyond_limit": len(result.rows) - len(rows)}


@stage(version=1, on="driver")
def divide(spec: SplitSpec, out: Path, *, compute: Compute, rows: Path, scores: Path | None = None) -> Metrics:
    """Parts `supervise`, `transfer`, `transfer.0` ..., `test` of candidates; their scores in parts `truth/<part>`.

    Raises DataError for a row without scores, where there is a file of scores.
    """
    import json

    from trimtab.data.manifest import manifest
    from trimtab.data.splits import split_prompts
    from trimtab.data.tables import read_candidates, read_jsonl, write_jsonl

    drawn = split_prompts(read_candidates(rows / ROWS), spec)
    parts = {"supervise": drawn.supervise, "transfer": drawn.transfer, "test": drawn.test}
    parts |= {f"transfer.{i}": hop for i, hop in enumerate(drawn.hops)}
    given = scores is not None and (scores / SCORES).exists()
    truth = {row["id"]: row for row in read_jsonl(scores / SCORES)} if scores and given else {}
    if given and (without := [row.id for part in parts.values() for row in part if row.id not in truth]):
        raise DataError(f"{scores / SCORES}: no scores for row {without[0]} ({len(without)} rows lack theirs)")
    for name, part in parts.items():
        (out / name).mkdir()
        write_jsonl(out / name / ROWS, part)
        if given:
            (out / TRUTH / name).mkdir(parents=True)
            write_jsonl(out / TRUTH / name / SCORES, [truth[row.id] for row in part])
    (out / "manifest.json").write_text(json.dumps(manifest(drawn), indent=1))
    return {name: len(part) for name, part in parts.items()}
