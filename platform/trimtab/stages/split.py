"""Stage split: rows are drawn for supervise, transfer and test; the truth of transfer is a file of its own."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.parts import SplitSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS


@stage(version=1, on="driver")
def split(spec: SplitSpec, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """Parts `supervise`, `test` (with labels), `transfer`, `transfer.0` ... (without), and `truth` for transfer."""
    import json

    from trimtab.data.manifest import manifest
    from trimtab.data.splits import split_rows
    from trimtab.data.tables import Row, read_jsonl, write_jsonl

    parts = split_rows([Row(**row) for row in read_jsonl(rows / ROWS)], spec)
    unlabelled = {"transfer": parts.transfer} | {f"transfer.{i}": hop for i, hop in enumerate(parts.hops)}
    labelled = {"supervise": parts.supervise, "test": parts.test, "truth": parts.transfer}
    for name, part in unlabelled.items():
        (out / name).mkdir()
        write_jsonl(out / name / ROWS, [{"id": r.id, "text": r.text} for r in part])
    for name, part in labelled.items():
        (out / name).mkdir()
        write_jsonl(out / name / ROWS, [{"id": r.id, "text": r.text, "label": r.label} for r in part])
    (out / "manifest.json").write_text(json.dumps(manifest(parts), indent=1))
    return {name: len(part) for name, part in (unlabelled | labelled).items()}
