"""What a search leaves behind for the next run: the winner's job file, and the leaderboard as data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trimtab.search.board import ranked
from trimtab.search.job import Search, changed_by
from trimtab.search.record import Record


def write_best(search: Search, winner: Record) -> Path:
    """best.yaml: the winner's job on the seeds of the final evaluation, whose stages a run of it finds.

    What the job registers is left out: it names trainings of the job's own seeds.
    """
    raw = changed_by(search.raw, winner.told.values) | {"seeds": list(search.spec.final.seeds)}
    raw.pop("register", None)
    head = [
        f"The best of search {search.id} ({search.file}), trial {winner.number}.",
        *(f"{name} {_measured(winner, name)}" for name in search.spec.metrics),
        stamp(search),
        *(f"{path}: {json.dumps(value, default=str)}" for path, value in winner.told.values.items()),
    ]
    text = "".join(f"# {line}\n" for line in head)
    return write_aside(search.folder / "best.yaml", text + yaml.safe_dump(_plain(raw), sort_keys=False, width=120))


def _measured(winner: Record, name: str) -> str:
    one = winner.told.metrics.get(name)
    return f"{one.mean:.4f} ({one.lo:.4f} to {one.hi:.4f}) on {one.rows} rows set aside" if one else "not measured"


def _plain(value: Any) -> Any:
    """As a YAML file says it: no tuples, no types of a library."""
    return json.loads(json.dumps(value, default=str))


def stamp(search: Search) -> str:
    """How much truth steered the search, in words."""
    rows = search.spec.truth_budget
    if not rows:
        return "No row of truth steered this search."
    return f"The truth of {rows} of {search.spec.validation} rows set aside was free to steer this search."


def write_leaderboard(search: Search, found: Sequence[Record], importance: dict[str, dict[str, float]]) -> Path:
    """leaderboard.json: finished trials, the best first, then the others; importance by metric."""
    trials = [
        {"rank": row.rank, "trial": row.record.number, "status": row.record.status}
        | {"objectives": row.record.objectives, **row.record.told.as_json()}
        for row in ranked(list(found), search.spec.modes)
    ]
    said = {
        "search": search.id,
        "job": search.spec.job,
        "metric": list(search.spec.metrics),
        "mode": list(search.spec.modes),
        "truth_rows": search.spec.truth_budget,
        "validation_rows": search.spec.validation,
        "seeds": list(search.spec.seeds),
        "importance": importance,
        "trials": trials,
    }
    return write_aside(search.folder / "leaderboard.json", json.dumps(said, indent=1, default=str))


def write_aside(path: Path, text: str) -> Path:
    """Write a file aside and rename it, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def describe(search: Search) -> dict[str, Any]:
    """search.json: what was asked."""
    return {"id": search.id, "file": str(search.file), "spec": search.spec.model_dump(mode="json"), "job": search.raw}
