"""The leaderboard of a search: one row a trial, for its page, its CSV file and the terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.search.record import Measured, Record, leaders
from trimtab.search.spec import SearchSpec

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """A trial; `rank` counts those that came to their end, the best is 1."""

    rank: int | None
    record: Record


def ranked(found: Sequence[Record], modes: tuple[str, ...]) -> list[Row]:
    """Finished trials, the best first, then the others as they came."""
    best = leaders(list(found), modes)
    rest = [one for one in found if one not in best]
    return [Row(i, one) for i, one in enumerate(best, 1)] + [Row(None, one) for one in rest]


def brief_names(fields: Sequence[str]) -> dict[str, str]:
    """Every dotted field by as few of its last parts as tell it from the others."""

    def tail(field: str, parts: int) -> str:
        return ".".join(field.split(".")[-parts:])

    def short(field: str) -> str:
        for parts in range(1, field.count(".") + 1):
            if sum(tail(other, parts) == tail(field, parts) for other in fields) == 1:
                return tail(field, parts)
        return field

    return {field: short(field) for field in fields}


def early_names(found: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.told.early))


def text_of(value: Any) -> str:
    """A value of a field: numbers to four digits, a method as kind(field=value), what else is nested as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, dict) and "kind" in value:
        fields = ", ".join(f"{name}={text_of(inner)}" for name, inner in value.items() if name != "kind")
        return f"{value['kind']}({fields})" if fields else str(value["kind"])
    return value if isinstance(value, str) else json.dumps(value, default=str)


def measured_text(measured: Measured | None) -> str:
    """Mean and interval: 0.743 [0.721, 0.764]."""
    if measured is None:
        return MISSING
    mean, lo, hi = (f"{v:.3f}".replace("-", "\N{MINUS SIGN}") for v in (measured.mean, measured.lo, measured.hi))
    return f"{mean} [{lo}, {hi}]"


def table(rows: Sequence[Row], spec: SearchSpec) -> list[list[str]]:
    """Head row, then a row a trial, as texts; where trials failed, with why."""
    names, early = brief_names(list(spec.space)), early_names([row.record for row in rows])
    head = ["rank", "trial", "status", *spec.metrics, *names.values(), *(f"early {name}" for name in early)]
    shown = [[*head, "progress", "seconds", "ran", "shared"], *(_cells(row, spec, early) for row in rows)]
    errors = ["error", *(brief_error(row.record.told.error or "") for row in rows)]
    return [[*cells, error] for cells, error in zip(shown, errors, strict=True)] if any(errors[1:]) else shown


def brief_error(error: str) -> str:
    """What went wrong, without the stage that it went wrong in and its log."""
    return error.partition("\n")[0].rpartition(" failed: ")[2]


def _cells(row: Row, spec: SearchSpec, early: Sequence[str]) -> list[str]:
    told = row.record.told
    return [
        str(row.rank or MISSING),
        str(row.record.number),
        row.record.status,
        *(measured_text(told.metrics.get(name)) for name in spec.metrics),
        *(text_of(told.values[field]) if field in told.values else MISSING for field in spec.space),
        *(text_of(told.early[name]) if name in told.early else MISSING for name in early),
        f"{told.progress:.0%}",
        f"{told.seconds:.1f}",
        str(len(told.ran)),
        str(told.shared),
    ]


def write_tables(rows: Sequence[Row], spec: SearchSpec, folder: Path) -> None:
    """leaderboard.csv with full names and errors, and table.json for the terminal."""
    shown = table(rows, spec)
    (folder / "table.json").write_text(json.dumps(shown))
    early = early_names([row.record for row in rows])
    ends = [f"{name}{end}" for name in spec.metrics for end in ("", "/lo", "/hi")]
    with (folder / "leaderboard.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["rank", "trial", "status", *ends, *spec.space, *(f"early/{name}" for name in early)] + LAST)
        for row in rows:
            out.writerow(_exact(row, spec, early))


LAST = ["progress", "seconds", "ran", "shared", "error"]


def _exact(row: Row, spec: SearchSpec, early: Sequence[str]) -> list[Any]:
    told = row.record.told
    metrics = [told.metrics.get(name) for name in spec.metrics]
    return [
        row.rank,
        row.record.number,
        row.record.status,
        *(number for m in metrics for number in ((m.mean, m.lo, m.hi) if m else (None, None, None))),
        *(json.dumps(told.values[field], default=str) if field in told.values else None for field in spec.space),
        *(told.early.get(name) for name in early),
        *(told.progress, told.seconds, len(told.ran), told.shared, told.error),
    ]
