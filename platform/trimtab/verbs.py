"""The verbs of the command line as functions with typed results."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.compute import Compute, place
from trimtab.environment import settle
from trimtab.load import Job, load_data, load_job, read_yaml
from trimtab.parts import TaskSpec
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.run.estimate import Need, free_here, need, preflight, text_of, total
from trimtab.run.found import Found, Table, shown, table_of, with_runs
from trimtab.run.gauges import Gauges
from trimtab.run.joining import address_of
from trimtab.run.log import Listener, settle_runs
from trimtab.run.naming import alone, described, fresh_id, given_id, is_done, renamed
from trimtab.run.remote import deliver, fetched, look
from trimtab.tracked import tracked

if TYPE_CHECKING:
    from trimtab.data.doctor import DataReport
    from trimtab.data.prompt_doctor import PromptReport
    from trimtab.run.track import Synced
    from trimtab.search.job import Search
    from trimtab.search.verb import TuneResult
    from trimtab.serving.start import Served


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
    """What a run found. `ran` counts the stages that were not there before; `registered` are versions of models."""

    run_id: str | None
    storage: Path
    report: Path
    metrics: dict[str, float]
    table: Table
    ran: int
    seconds: float
    warnings: list[str]
    registered: list[str]


def check(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file. Raises JobError with every mistake at once."""
    return load_job(path, overrides)


def _laid_out(job: Job) -> tuple[PlanRunner, Artifact]:
    runner = PlanRunner(job.compute)
    last = job.pipeline(runner)
    look(node.artifact for node in runner.needed)
    return runner, last


def _needed(runner: PlanRunner) -> Need:
    return total(runner.needed, runner.pending, runner.compute, cpus=os.cpu_count() or 1)


def plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """The stage graph of a job, what of it is there, and what the rest needs. Raises JobError."""
    runner, _ = _laid_out(job := check(path, overrides))
    nodes = runner.needed
    text, missing = text_of(nodes), {node.artifact.id for node in runner.pending}
    stages = [
        PlannedStage(n.artifact.id, n.label, n.artifact.stage, n.artifact.id not in missing, need(n, text))
        for n in nodes
    ]
    return Plan(job, stages, _needed(runner))


def run(path: str | Path, overrides: Sequence[str] = (), *, listeners: Sequence[Listener] = ()) -> RunResult:
    """Run what is missing of a job; a run that was killed before is settled first, and one of the same id gone on with.

    Raises JobError, ResourceError and ClusterError before anything is written, DataError and ModelError before or while
    a stage reads them, StageError when one fails. Finished stages stay finished; the run's log ends with what became of
    it.
    """
    started, told = time.monotonic(), {"warnings": [], "registered": []}
    job = check(path, overrides)
    run_id = given_id(job.compute.storage, described(job.name, job.pipeline), remote=job.compute.remote)
    runner, last = _laid_out(job)
    deliver(node.artifact for node in runner.needed)
    pending = runner.pending
    if pending or job.register or not is_done(job.compute.storage, run_id):
        if job.compute.backend == "ray":
            address_of(job.compute)
        settle(max(1, int(job.compute.cpus_per_worker)))
        preflight(_needed(runner), job.compute, free=free_here(job.compute))
        settle_runs(job.compute.storage)
        run_id = run_id or fresh_id(job.name)
        with alone(job.compute.storage / "runs" / run_id) as folder:
            told = tracked(job, last, folder, listeners)
    storage, page, seconds = job.compute.storage, fetched(last) / "report.html", time.monotonic() - started
    found = {"report": page, "metrics": last.metrics(), "table": table_of(last.folder)}
    told["warnings"] = [*renamed(run_id), *told["warnings"]]
    return RunResult(run_id, storage, **found, ran=len(pending), seconds=seconds, **told)


def is_search(path: str | Path) -> bool:
    """Whether a file is a search file. Raises JobError where there is none."""
    raw, _ = read_yaml(Path(path), "job or search file", "kind or space")
    return "space" in raw and "kind" not in raw


def search(
    path: str | Path, overrides: Sequence[str] = (), *, method: str | None = None, smoke: bool = False
) -> Search:
    """Read a search file, or with `method` search a job over that method's own ranges. Raises JobError."""
    from trimtab.search.verb import search as read

    return read(path, overrides, method=method, smoke=smoke)


def tune(found: Search, *, listeners: Sequence[Listener] = ()) -> TuneResult:
    """Run the trials that a search lacks, then its winner and the default on test.

    Raises ResourceError, StageError, and KeyboardInterrupt when it is stopped; the same goes on from there.
    """
    from trimtab.search.verb import tune as whole

    return whole(found, listeners=[*listeners, Gauges()])


def serve(path: str | Path, overrides: Sequence[str] = ()) -> AbstractContextManager[Served]:
    """A serve file's models behind an API, for as long as the context lasts.

    Raises JobError, ClusterError, StageError.
    """
    from trimtab.serving.start import served

    return served(path, overrides)


def report(run_id: str | None = None, storage: str | Path | None = None) -> Found:
    """A run or trial, by default the run or search started last, with its report. Raises DataError for none."""
    return shown(storage, run_id)


def sync(run_id: str | None = None, storage: str | Path | None = None, uri: str | None = None) -> list[Synced]:
    """Replay runs into MLflow that it has not heard, or not to the end. Raises DataError for an unknown run."""
    from trimtab.run.track import sync as replay

    settle()
    return replay(with_runs(storage, run_id).storage.resolve(), run_id, uri=uri)


def data(
    source: str, overrides: Sequence[str] = (), *, quarantine: Path | None = None, model: str | None = None
) -> DataReport | PromptReport:
    """What a data set looks like to trimtab, prompts also as `model` sees them; bad rows are written to `quarantine`.

    Raises JobError for wrong fields, DataError when the data set cannot be read at all, ModelError for the model.
    """
    from trimtab.data.doctor import examine, write_quarantine
    from trimtab.data.prompt_doctor import examine_prompts
    from trimtab.models.network import load_tokenizer
    from trimtab.run.registry import located

    spec = load_data(source, overrides)
    if isinstance(spec, TaskSpec):
        found, rejected = examine(spec)
    else:
        tokenizer = load_tokenizer(located(model, Compute().storage)) if model else None
        found, rejected = examine_prompts(spec, tokenizer, model=model)
    if quarantine:
        write_quarantine(rejected, quarantine)
    return found


def doctor(storage: str | Path | None = None) -> dict[str, str]:
    """Versions, devices, cores, memory, disk and Ray's state, for a bug report; needs neither storage nor Ray."""
    from trimtab.run.surroundings import surroundings

    settle()
    return surroundings(place(storage).storage.expanduser().resolve())
