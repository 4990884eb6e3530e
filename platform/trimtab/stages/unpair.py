"""Stage unpair: pairs into single completions, good or not, each beside a completion of another prompt."""

from __future__ import annotations

from pathlib import Path

from trimtab.alignment import PairSpec
from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS


@stage(version=2, on="driver")
def unpair(spec: PairSpec, out: Path, *, compute: Compute, pairs: Path) -> Metrics:
    """Rows of two candidates: the completion (p = 1 good, 0 bad), and that of the next row in an order drawn from ids.

    Raises DataError where all rows share one prompt: then no completion is a stranger.
    """
    from trimtab.data.formats import stable_hash
    from trimtab.data.tables import read_jsonl, write_jsonl

    singles = [
        {"id": f"{row['id']}:{side}", "prompt": row["prompt"], "prompt_id": row["prompt_id"], "own": row[side], "p": p}
        for row in read_jsonl(pairs / ROWS)
        for side, p in (("chosen", 1.0), ("rejected", 0.0))
    ]
    if len({str(row["prompt"]) for row in singles}) < 2:
        raise DataError(f"{pairs / ROWS}: all rows have one prompt, so no completion can serve as another prompt's")
    order = sorted(singles, key=lambda row: stable_hash(spec.seed, row["id"]))
    rows = [
        {k: row[k] for k in ("id", "prompt_id", "prompt", "p")}
        | {"candidates": [row["own"], _stranger(order, place)["own"]]}
        for place, row in enumerate(order)
    ]
    write_jsonl(out / ROWS, rows)
    return {"rows": len(rows), "desirable": sum(row["p"] for row in rows)}


def _stranger(order: list[dict], place: int) -> dict:
    """The next row, round the end, that has another prompt."""
    later = order[place + 1 :] + order[:place]
    return next(row for row in later if str(row["prompt"]) != str(order[place]["prompt"]))
