"""The verbs of the command line as functions with typed results."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute, default_storage
from trimtab.environment import settle
from trimtab.errors import DataError, TrimtabError
from trimtab.load import Job, load_job
from trimtab.run.artifact import Artifact, Node, PlanRunner
from trimtab.run.estimate import Need, need, preflight, total

if TYPE_CHECKING:
    from trimtab.data.doctor import DataReport
    from trimtab.run.track import Synced

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan: there already, or to be run with about so much memory and disk."""

    id: str
    label: str
    stage: str
    have: bool
    need: Need


@dataclass(frozen=True)
class Plan:
    """What `run` would do."""

    job: Job
    stages: list[PlannedStage]
    need: Need

    @property
    def to_run(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.have]


@dataclass(frozen=True)
class RunResult:
    """What a run found. `ran` counts the stages that were not there before."""

    run_id: str | None
    storage: Path
    report: Path
    metrics: dict[str, float]
    table: list[list[str]]
    ran: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


def check(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file. Raises JobError with every mistake at once."""
    return load_job(path, overrides)


def _laid_out(job: Job) -> tuple[PlanRunner, Artifact]:
    runner = PlanRunner(job.compute)
    return runner, job.pipeline(runner)


def plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """The stage graph of a job, what of it is there, and what the rest needs."""
    job = check(path, overrides)
    runner, _ = _laid_out(job)
    missing = {node.artifact.id for node in runner.pending}
    stages = [
        PlannedStage(n.artifact.id, n.label, n.artifact.stage, n.artifact.id not in missing, need(n))
        for n in runner.nodes.values()
    ]
    return Plan(job, stages, total(runner.pending, job.compute, os.cpu_count() or 1))


def run(path: str | Path, overrides: Sequence[str] = (), *, listeners: Sequence[Listener] = ()) -> RunResult:
    """Run what is missing of a job. Raises JobError, ResourceError, DataError before, StageError while it runs."""
    started = time.monotonic()
    job = check(path, overrides)
    runner, last = _laid_out(job)
    pending = runner.pending
    run_id, warnings = None, []
    if pending:
        settle(max(1, int(job.compute.cpus_per_worker)))
        preflight(pending, job.compute)
        sweep(job.compute)
        run_id = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        warnings = _tracked(job, last, run_id, listeners)
    return RunResult(
        run_id=run_id,
        storage=job.compute.storage,
        report=last.folder / "report.html",
        metrics=last.metrics(),
        table=_table(last),
        ran=len(pending),
        seconds=time.monotonic() - started,
        warnings=warnings,
    )


def _tracked(job: Job, last: Artifact, run_id: str, listeners: Sequence[Listener]) -> list[str]:
    from trimtab.run.log import EventLog
    from trimtab.run.track import Tracker, default_uri

    folder = job.compute.storage / "runs" / run_id
    log = EventLog(folder, listeners)
    tracker = Tracker(folder, default_uri(job.compute.storage))
    status, metrics = "failed", {}
    try:
        _execute(job, run_id, log)
        status, metrics = "done", last.metrics()
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        page = str(last.folder / "report.html") if status == "done" else None
        log({"event": "run_end", "status": status, "metrics": metrics, "report": page})
        warning = tracker.close(timeout=30 if status == "done" else 5)
        log.close()
    return [warning] if warning else []


def _execute(job: Job, run_id: str, log: Listener) -> None:
    from trimtab.versions import commit, versions

    described = {"name": job.name, "kind": job.pipeline.kind, "job": job.pipeline.model_dump(mode="json")}
    sha = commit()
    log(
        {"event": "run_start", "run_id": run_id, "commit": sha, "dirty": str(sha).endswith("+"), "versions": versions()}
        | described
    )
    runner = _runner(job, log)
    job.pipeline(runner)
    missing = {node.artifact.id for node in runner.pending}
    log({"event": "plan", "stages": [_short(n, n.artifact.id not in missing) for n in runner.nodes.values()]})
    for node in runner.nodes.values():
        if node.artifact.ready:
            record = node.artifact.record()
            log(
                {
                    "event": "stage_end",
                    "status": "cached",
                    "seconds": record["seconds"],
                    "metrics": node.artifact.metrics(),
                    "path": str(node.artifact.folder),
                }
                | node.describe()
            )
    runner.wait()


def _short(node: Node, have: bool) -> dict[str, Any]:
    return {"stage_id": node.artifact.id, "label": node.label, "stage": node.artifact.stage, "have": have}


def _runner(job: Job, log: Listener) -> Any:
    if job.compute.backend == "inline":
        from trimtab.run.local import LocalRunner

        return LocalRunner(job.compute, sink=log)
    from trimtab.run.on_ray import RayRunner

    return RayRunner(job.compute, sink=log)


def _table(last: Artifact) -> list[list[str]]:
    import json

    path = last.folder / "table.json"
    return json.loads(path.read_text()) if path.exists() else []


def sweep(compute: Compute) -> list[Path]:
    """Remove half-written folders that processes now dead left on this machine; whole ones are never touched."""
    removed = []
    for folder in compute.artifacts.glob(".*-*") if compute.artifacts.is_dir() else []:
        owner = re.search(r"\.(\d+)-[0-9a-f]{8}$", folder.name)
        if owner and not Path("/proc", owner[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def runs(storage: Path | None = None) -> list[Path]:
    """The folders of all runs, newest first."""
    folder = (storage or default_storage()) / "runs"
    return sorted((p for p in folder.glob("*") if (p / "events.jsonl").exists()), key=lambda p: -p.stat().st_mtime)


@dataclass(frozen=True)
class Found:
    """A finished run's report."""

    run_id: str
    status: str
    report: Path | None
    metrics: dict[str, float]
    table: list[list[str]]


def report(run_id: str | None = None, storage: Path | None = None) -> Found:
    """The report of a run, the newest by default. Raises TrimtabError when there is none."""
    import json

    folders = {folder.name: folder for folder in runs(storage)}
    if not folders or (run_id and run_id not in folders):
        there = ", ".join(list(folders)[:5]) or "none"
        raise DataError(f"no run {run_id or ''} under {(storage or default_storage()) / 'runs'}; there: {there}")
    folder = folders[run_id] if run_id else next(iter(folders.values()))
    end = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if '"run_end"' in line]
    if not end:
        return Found(folder.name, "not finished", None, {}, [])
    page = Path(end[-1]["report"]) if end[-1]["report"] else None
    table = page.parent / "table.json" if page else None
    rows = json.loads(table.read_text()) if table and table.exists() else []
    return Found(folder.name, end[-1]["status"], page, end[-1]["metrics"], rows)


def sync(run_id: str | None = None, storage: Path | None = None, uri: str | None = None) -> list[Synced]:
    """Replay runs into MLflow that it has not heard, or not to the end."""
    from trimtab.run.track import sync as replay

    return replay((storage or default_storage()).resolve(), run_id, uri=uri)


def data(source: str, **options: Any) -> DataReport:
    """What a data set looks like to trimtab. Raises DataError when it cannot be read at all."""
    from trimtab.data.doctor import examine
    from trimtab.parts import TaskSpec

    return examine(TaskSpec(source=source, **options))


def doctor(storage: Path | None = None) -> dict[str, str]:
    """Versions, devices, cores, memory, disk and Ray's state, for a bug report."""
    import psutil

    from trimtab.run.estimate import gib
    from trimtab.versions import commit, versions

    place = (storage or default_storage()).resolve()
    near = next(p for p in (place, *place.parents) if p.exists())
    found = versions() | {"commit": commit() or "not a checkout", "cores": str(os.cpu_count())}
    memory = psutil.virtual_memory()
    found["memory"] = f"{gib(memory.available)} free of {gib(memory.total)}"
    found["disk"] = f"{gib(shutil.disk_usage(near).free)} free at {place}"
    found |= _devices()
    found["ray address"] = os.environ.get("RAY_ADDRESS", "none set; a run starts its own")
    found["compiler"] = " and ".join(filter(None, [shutil.which("g++"), shutil.which("ninja")])) or "no g++ or ninja"
    found["mlflow"] = f"{found['mlflow']} at {os.environ.get('MLFLOW_TRACKING_URI', f'sqlite:///{place}/mlflow.db')}"
    return found


def _devices() -> dict[str, str]:
    try:
        import torch

        from trimtab.models.network import has_fast_bf16
    except ImportError as error:
        return {"devices": f"torch cannot be imported: {error}"}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"devices": ", ".join(gpus) or "cpu", "fast bfloat16": "yes" if has_fast_bf16() else "no"}


__all__ = ["TrimtabError", "check", "data", "doctor", "plan", "report", "run", "runs", "sweep", "sync"]
