"""What is left of a run to show again: how it ended, its table, its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.compute import Compute, place
from trimtab.errors import DataError
from trimtab.run.artifact import Artifact
from trimtab.run.log import first_event, last_end, last_start, run_folders, settle_runs
from trimtab.run.remote import fetch, fetch_runs

Table = list[list[str]]


@dataclass(frozen=True)
class Found:
    """A run and, when it is done, its report. `status`: done, failed, interrupted, pruned, or running."""

    run_id: str
    status: str
    report: Path | None
    metrics: dict[str, float]
    table: Table


def find(storage: Path, run_id: str | None) -> Found:
    """A run or a trial, by default the run or search that started last. Raises DataError where there is none."""
    folders = {folder.name: folder for folder in run_folders(storage)}
    if not folders or (run_id and run_id not in folders):
        there = ", ".join(list(folders)[:5]) or "none"
        raise DataError(f"no run{f' {run_id}' if run_id else ''} under {storage / 'runs'}; there: {there}")
    own = (folder for folder in folders.values() if "parent" not in first_event(folder))
    folder = folders[run_id] if run_id else next(own, next(iter(folders.values())))
    end = last_end(folder)
    if end is None:
        who = last_start(folder).get("owner", {})
        return Found(folder.name, f"running on {who.get('host')}, process {who.get('pid')}", None, {}, [])
    searched = storage / "searches" / folder.name / "report.html"
    page = Path(end["report"]) if end["report"] else searched if searched.exists() else None
    table = table_of(page.parent) if page else _listed(end["metrics"])
    return Found(folder.name, end["status"], page, end["metrics"], table)


def with_runs(storage: str | Path | None, run_id: str | None) -> Compute:
    """The usual storage or another, with the logs of its runs, or of one, on this node; killed ones are settled."""
    where = place(storage)
    fetch_runs(where.storage, where.remote, run_id)
    settle_runs(where.storage)
    return where


def shown(storage: str | Path | None, run_id: str | None) -> Found:
    """The same of the usual storage or another; from a remote one its report is fetched."""
    where = with_runs(storage, run_id)
    found = find(where.storage, run_id)
    if where.remote is None or found.report is None or found.report.exists():
        return found
    stage, _, key = found.report.parent.name.rpartition("-")
    made = Artifact(stage, key, where.artifacts, remote=where.remote)
    fetch([made])
    return replace(found, report=made.folder / found.report.name, table=table_of(made.folder))


def table_of(folder: Path) -> Table:
    """The table beside a report."""
    return json.loads(path.read_text()) if (path := folder / "table.json").exists() else []


def _listed(metrics: dict[str, float]) -> Table:
    return [["metric", "value"], *([name, f"{value:.4g}"] for name, value in metrics.items())] if metrics else []
