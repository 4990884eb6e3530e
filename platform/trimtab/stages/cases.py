"""Stage cases: a task is read into questions with a right and a wrong answer; truth and texts to quote apart."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.debating import CaseSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import write_scores
from trimtab.stages.prepare import ROWS


@stage(version=1, on="driver")
def cases(spec: CaseSpec, out: Path, *, compute: Compute) -> Metrics:
    """Candidates, their scores (1 right, 0 wrong), and sources.jsonl where there are texts to quote."""
    from trimtab.data.cases import read_cases
    from trimtab.data.doctor import write_quarantine
    from trimtab.data.formats import stable_hash
    from trimtab.data.tables import write_jsonl
    from trimtab.data.transcripts import SOURCES

    found = read_cases(spec)
    rows = sorted(found.rows, key=lambda row: (stable_hash(row.group or row.id), row.id))[: spec.limit]
    write_jsonl(out / ROWS, rows)
    write_scores(out, {row.id: found.scores[row.id] for row in rows})
    if found.sources:
        write_jsonl(out / SOURCES, [{"id": row.id, "source": found.sources.get(row.id)} for row in rows])
    write_quarantine(found.rejected, out / "quarantine.jsonl")
    return {
        "rows": len(rows),
        "rejected": len(found.rejected),
        "unpaired": found.unpaired,
        "beyond_limit": len(found.rows) - len(rows),
        "with_source": sum(row.id in found.sources for row in rows),
    }
