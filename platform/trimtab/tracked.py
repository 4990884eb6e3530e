"""One run of a job: its stages, its log, and what MLflow hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.load import Job
from trimtab.run.artifact import Artifact
from trimtab.run.gauges import Gauges
from trimtab.run.keeping import kept
from trimtab.run.local import LocalRunner, was_there
from trimtab.run.log import EventLog, Listener, owner, troubles
from trimtab.run.naming import described, told_of
from trimtab.run.registering import telling, wanted

CLOSES_WITHIN_S = 30.0
"""So long MLflow may take, once a run is done, to hear the rest."""


def tracked(job: Job, last: Artifact, folder: Path, listeners: Sequence[Listener]) -> dict[str, list[str]]:
    """Run what is missing of a job, into the run of this folder; its warnings, and the versions it registered.

    Raises as `verbs.run` does; the run's log ends with what became of it.
    """
    from trimtab.run.track import Tracker, default_uri

    log = EventLog(folder, [*listeners, Gauges(), *kept(folder, job.compute.remote)])
    tracker = Tracker(folder, default_uri(job.compute.storage))
    status, metrics = "failed", {}
    try:
        _execute(job, log)
        status, metrics = "done", last.metrics()
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        page = str(last.folder / "report.html") if status == "done" else None
        log({"event": "run_end", "status": status, "metrics": metrics, "report": page})
        warning = tracker.close(timeout=CLOSES_WITHIN_S if status == "done" else 5)
        log.close()
    warnings = [*troubles(folder), *filter(None, [warning])]
    return {"warnings": warnings, "registered": list(dict.fromkeys(tracker.replay.registered))}


def _execute(job: Job, log: EventLog) -> None:
    from trimtab.versions import commit, versions

    sha = commit()
    made_by = {"commit": sha, "dirty": str(sha).endswith("+"), "versions": versions(), "owner": owner()}
    what = described(job.name, job.pipeline)
    log({"event": "run_start", "run_id": log.folder.name, "models": job.versions} | made_by | what)
    runner = _runner(job, log)
    job.pipeline(runner)
    registers = wanted(job.register, runner.nodes.values())[0]
    before = told_of(log.folder, {one.node.artifact.id for one in registers})
    runner.sink = tell = telling(log, registers, job.name, job.pipeline.kind)
    missing = {node.artifact.id for node in runner.pending}
    stages = [(n.artifact.id, n.label, n.artifact.stage) for n in runner.needed]
    plan = [{"stage_id": i, "label": label, "stage": stage, "have": i not in missing} for i, label, stage in stages]
    tell({"event": "plan", "stages": plan})
    for node in runner.needed:
        if node.artifact.ready and node.artifact.id not in before:
            tell(was_there(node))
    runner.wait()


def _runner(job: Job, log: Listener) -> Any:
    if job.compute.backend == "inline":
        return LocalRunner(job.compute, sink=log)
    from trimtab.run.on_ray import RayRunner

    return RayRunner(job.compute, sink=log)
