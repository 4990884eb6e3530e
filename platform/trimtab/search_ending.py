"""What is said at the end of a search, in words and as the last event."""

from __future__ import annotations

from typing import Any

from trimtab.display import seconds
from trimtab.search.board import brief_names
from trimtab.search.importance import LEAST
from trimtab.search.verb import TuneResult
from trimtab.search.winner import stamp

ENDS = {
    "trials": "the trials of its budget are done",
    "grid": "every point of the grid is done",
    "minutes": "its time is up",
}


def ending(result: TuneResult, file: str) -> list[str]:
    """What is said at the end of a search: what matters, the verdict with its interval, and what was written."""
    found = result.search
    why = ENDS.get(result.why, f"gave up: {result.why}")
    lines = [f"{file}: {result.ran} trials ended in {seconds(result.seconds)}; {why}"]
    names = brief_names(list(found.spec.space))
    for metric, shares in result.importance.items():
        told = ", ".join(f"{names[path]} {share:.0%}" for path, share in shares.items())
        told = told or f"cannot be told before {LEAST} finished trials that differ in outcome and in a field all have"
        lines.append(f"importance for {metric}: {told}")
    lines.append(stamp(found))
    lines.append(result.final.words if result.final else "No trial came to its end, so there is nothing to compare.")
    if result.final:
        lines += [f"best:    {result.final.best}  (trimtab run {result.final.best})"]
        lines += [f"report:  {result.final.report}"]
    lines += [f"search:  {result.page}", f"boards:  trimtab dashboard --storage {found.storage}"]
    return lines


def as_event(result: TuneResult) -> dict[str, Any]:
    """The last line of --json."""
    final = result.final and {
        name: value for name, value in result.final.as_json().items() if name in ("verdict", "words", "entries", "best")
    }
    files = {"report": str(result.page), "leaderboard": str(result.search.folder / "leaderboard.json")}
    told = {"search": result.search.id, "why": result.why, "ran": result.ran, "importance": result.importance}
    truth = {"truth_rows": result.search.spec.truth_budget, "warnings": result.warnings}
    return {"event": "done" if not result.gave_up else "error", **told, **truth, "final": final, **files}
