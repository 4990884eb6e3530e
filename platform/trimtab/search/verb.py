"""A search from its file to its last word: trials, final evaluation, leaderboard, page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.run.artifact import PlanRunner
from trimtab.run.estimate import free_here, preflight, total
from trimtab.run.joining import address_of
from trimtab.run.log import EventLog, Listener, owner
from trimtab.run.naming import alone
from trimtab.search.board import ranked, table, write_tables
from trimtab.search.checks import warnings
from trimtab.search.final import Final, concluded
from trimtab.search.job import Search
from trimtab.search.load import load_search
from trimtab.search.of_method import search_of
from trimtab.search.record import Record
from trimtab.search.winner import describe, write_aside, write_leaderboard


@dataclass(frozen=True)
class TuneResult:
    """What a search found. `why`: trials, grid, minutes, or over which failure it gave up; `ran` counts its trials.

    `importance` holds, for each metric, the share of every field; empty where there are too few trials to tell.
    """

    search: Search
    why: str
    ran: int
    table: list[list[str]]
    importance: dict[str, dict[str, float]]
    final: Final | None
    page: Path
    seconds: float
    warnings: list[str]

    @property
    def gave_up(self) -> bool:
        return self.why not in ("trials", "grid", "minutes")


def search(
    path: str | Path, overrides: Sequence[str] = (), *, method: str | None = None, smoke: bool = False
) -> Search:
    """A search file, or the ranges of a method of a job. Raises JobError with every mistake."""
    if method:
        return search_of(path, overrides, method=method, smoke=smoke)
    return load_search(path, overrides, smoke=smoke)


def tune(found: Search, *, listeners: Sequence[Listener] = ()) -> TuneResult:
    """Run what a search lacks, and evaluate its best afresh beside the default.

    Raises ResourceError and ClusterError before anything is written, JobError where another process is at it,
    StageError where the final evaluation fails, KeyboardInterrupt when it is stopped: finished trials stay finished,
    and the same goes on from there.
    """
    from trimtab.run.track import SearchReplay, Tracker, default_uri
    from trimtab.search.importance import shares
    from trimtab.search.page import write_page
    from trimtab.search.study import quiet
    from trimtab.search.tuner import tuned

    started, spec = time.monotonic(), found.spec
    _preflight(found)
    write_aside(found.folder / "search.json", json.dumps(describe(found), indent=1, default=str))
    tracker = Tracker(found.storage / "runs" / found.id, default_uri(found.storage), replay=SearchReplay)
    patience, page = 5, found.folder / "report.html"
    try:
        done = tuned(found, listeners)
        rows = ranked(done.records, spec.modes)
        with quiet():
            importance = {metric: shares(spec, done.records, i) for i, metric in enumerate(spec.metrics)}
            write_page(found, done.records, final=None, out=page)
        write_leaderboard(found, done.records, importance)
        write_tables(rows, spec, found.folder)
        final = None if done.gave_up else _last_word(found, done.records, listeners, page)
        patience = 30
    finally:
        warning = tracker.close(timeout=patience)
    said = [*warnings(found), *([warning] if warning else [])]
    seconds = time.monotonic() - started
    return TuneResult(found, done.why, done.ran, table(rows, spec), importance, final, page, seconds, said)


def _preflight(found: Search) -> None:
    job = found.job({}, found.spec.final.seeds)
    runner = PlanRunner(job.compute)
    job.pipeline(runner)
    address_of(job.compute)
    need = total(runner.needed, runner.pending, job.compute, cpus=os.cpu_count() or 1)
    preflight(need, job.compute, free=free_here(job.compute))


def _last_word(found: Search, records: list[Record], listeners: Sequence[Listener], page: Path) -> Final | None:
    """The final evaluation, as a further part of the search's own run, and the page with it."""
    from trimtab.search.page import write_page
    from trimtab.search.study import quiet

    status, metrics = "failed", {}
    with alone(found.storage / "runs" / found.id) as folder, closing(EventLog(folder, listeners)) as log:
        described = {"run_id": found.id, "name": found.name, "kind": "search", "owner": owner()}
        log({"event": "run_start", "part": "final", "job": found.spec.model_dump(mode="json"), **described})
        try:
            final = concluded(found, records, log)
            with quiet():
                write_page(found, records, final=final and final.as_json(), out=page)
            status, metrics = "done", _metrics(final)
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            log({"event": "run_end", "status": status, "metrics": metrics, "report": str(page)})
    return final


def _metrics(final: Final | None) -> dict[str, Any]:
    entries = final.entries if final else []
    return {f"test/{one.name}/{what}": score.mean for one in entries for what, score in one.scores.items()}
