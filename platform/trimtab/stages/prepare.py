"""Stage prepare: a task is read into rows; rows that cannot be used go to a quarantine file."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.parts import TaskSpec
from trimtab.stages._base import Metrics, stage

ROWS = "rows.jsonl"


@stage(version=1, on="driver")
def prepare(spec: TaskSpec, out: Path, *, compute: Compute) -> Metrics:
    """Rows (id, text, label, group, part) of the task; raises DataError above `max_bad_fraction`."""
    from trimtab.data.doctor import write_quarantine
    from trimtab.data.tables import write_jsonl
    from trimtab.data.tasks import read_task

    result = read_task(spec)
    write_jsonl(out / ROWS, result.rows)
    write_quarantine(result.rejected, out / "quarantine.jsonl")
    return {"rows": len(result.rows), "rejected": len(result.rejected), "classes": result.n_classes}
